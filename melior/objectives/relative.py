"""Pairs, relative to a reference: DPO and its kin."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from melior.checks import in_range
from melior.objectives.objective import ChosenLikelihood, Objective

if TYPE_CHECKING:
    from melior.stages.method import Method


@dataclass(frozen=True)
class Relative(Objective):
    """What losses on log-ratios to the start model share."""

    sweep: ClassVar[Mapping[str, tuple[float, ...]]] = {"beta": (0.01, 0.1)}
    """Of 0.01, 0.05 and 0.1, which SimPO's authors search for DPO and its kin."""

    beta: float = 0.1
    """How strongly the model is held to its start."""
    likelihood: ChosenLikelihood = ChosenLikelihood()

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("beta", self.beta, 0, above=True)

    def on_log_ratios(self, loss: Callable[..., Any], **options: float) -> Method:
        """Return the method of a loss of this beta on summed log-probabilities."""
        from melior.stages.method import log_ratio_method

        loss = partial(loss, beta=self.beta, **options)
        return log_ratio_method(loss, beta=self.beta, **self.likelihood.options())


@dataclass(frozen=True)
class Dpo(Relative):
    """Learn from pairs with DPO, held to the start model."""

    paper = "Rafailov et al. 2023, arXiv 2305.18290"

    beta: float = 0.1
    """How strongly the model is held to its start; the paper uses 0.1 to 0.5."""
    label_smoothing: float = 0.0
    """Share of labels taken to be flipped (conservative DPO)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        in_range("label_smoothing", self.label_smoothing, 0, 0.5, below=True)

    def method(self) -> Method:
        """Return DPO's loss and reward."""
        from melior.losses.preference import dpo

        return self.on_log_ratios(dpo, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class RobustDpo(Relative):
    """DPO whose mean over labels flipped at a known rate is that of DPO on the true ones."""

    paper = "Chowdhury et al. 2024, arXiv 2403.00409"

    label_smoothing: float = 0.1
    """Rate at which labels are flipped."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        in_range("label_smoothing", self.label_smoothing, 0, 0.5, below=True)

    def method(self) -> Method:
        """Return robust DPO's loss and DPO's reward."""
        from melior.losses.preference import robust_dpo

        return self.on_log_ratios(robust_dpo, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class Ipo(Objective):
    """Regress the margin of summed log-ratios on a target: identity preference optimisation."""

    paper = "Azar et al. 2023, arXiv 2310.12036"
    sweep: ClassVar[Mapping[str, tuple[float, ...]]] = {"tau": (0.01, 0.1)}

    tau: float = 0.1
    """Strength of the regularisation; the target margin is 1 / (2 tau), in nats per answer."""
    likelihood: ChosenLikelihood = ChosenLikelihood()

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("tau", self.tau, 0, above=True)

    def method(self) -> Method:
        """Return IPO's loss, and its reward `tau rho`."""
        from melior.losses.preference import ipo
        from melior.stages.method import log_ratio_method

        loss = partial(ipo, tau=self.tau)
        return log_ratio_method(loss, beta=self.tau, **self.likelihood.options())


@dataclass(frozen=True)
class IpoMean(Ipo):
    """IPO on log-ratios averaged over tokens: the form of TRL and of LLaMA-Factory."""

    sweep: ClassVar[Mapping[str, tuple[float, ...]]] = {"tau": (0.1, 1.0)}

    tau: float = 0.1
    """As in `ipo`; the target margin 1 / (2 tau) is in nats per token."""

    def method(self) -> Method:
        """Return IPO's loss on averages, and their reward."""
        from melior.losses.preference import ipo
        from melior.stages.method import Method, pairwise

        return Method(
            lambda a: ipo(pairwise(a.per_token), pairwise(a.reference_per_token), tau=self.tau),
            lambda a: self.tau * (a.per_token - a.reference_per_token),
            has_reference=True,
            **self.likelihood.options(),
        )


@dataclass(frozen=True)
class Hinge(Relative):
    """A hinge on DPO's margin: nothing is learned from a pair that is far enough apart."""

    paper = "Liu et al. 2023 (RSO), arXiv 2309.06657"

    def method(self) -> Method:
        """Return the hinge and DPO's reward."""
        from melior.losses.preference import hinge

        return self.on_log_ratios(hinge)


@dataclass(frozen=True)
class RDpo(Relative):
    """DPO under a price on length."""

    paper = "Park et al. 2024, arXiv 2403.19159"

    alpha: float = 0.05
    """Price of a token, in units of the reward; SimPO's authors search 0.05 to 1."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        in_range("alpha", self.alpha, 0)

    def method(self) -> Method:
        """Return the loss, which reads lengths, and DPO's reward."""
        from melior.losses.preference import r_dpo
        from melior.stages.method import Method, pairwise

        loss = partial(r_dpo, beta=self.beta, alpha=self.alpha)
        return Method(
            lambda a: loss(pairwise(a.policy), pairwise(a.reference), pairwise(a.lengths)),
            lambda a: self.beta * a.log_ratio,
            has_reference=True,
            **self.likelihood.options(),
        )


@dataclass(frozen=True)
class Exo(Relative):
    """The reverse KL from the policy's choice between two answers to the label's."""

    paper = "Ji et al. 2024, arXiv 2402.00856"

    label_smoothing: float = 1e-3
    """Share of labels taken to be flipped; above 0, or the divergence is infinite."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        in_range("label_smoothing", self.label_smoothing, 0, 0.5, above=True, below=True)

    def method(self) -> Method:
        """Return EXO's loss and DPO's reward."""
        from melior.losses.preference import exo

        return self.on_log_ratios(exo, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class Nca(Relative):
    """Noise contrastive alignment: absolute log-ratios, so that the chosen one need not fall."""

    paper = "Chen et al. 2024, arXiv 2402.05369"

    def method(self) -> Method:
        """Return NCA's loss and DPO's reward."""
        from melior.losses.preference import nca

        return self.on_log_ratios(nca)


@dataclass(frozen=True)
class Sppo(Relative):
    """Self-play preference optimisation with win rates of 1 and 0, on stored pairs."""

    paper = "Wu et al. 2024, arXiv 2405.00675"
    sweep: ClassVar[Mapping[str, tuple[float, ...]]] = {"beta": (1e-3, 1e-2)}

    beta: float = 1e-3
    """One over the paper's eta: log-ratios go to 1 / (2 beta) and its negative."""

    def method(self) -> Method:
        """Return SPPO's loss and DPO's reward."""
        from melior.losses.preference import sppo_hard

        return self.on_log_ratios(sppo_hard)


@dataclass(frozen=True)
class Aot(Relative):
    """Optimal transport: a batch's margins, in their order, above those of the reference."""

    paper = "Melnyk et al. 2024, arXiv 2406.05882"

    label_smoothing: float = 0.0
    """Share of labels taken to be flipped."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        in_range("label_smoothing", self.label_smoothing, 0, 0.5, below=True)

    def method(self) -> Method:
        """Return the loss, which couples the pairs of a batch, and DPO's reward."""
        from dataclasses import replace

        from melior.losses.preference import aot

        alone = self.on_log_ratios(aot, label_smoothing=self.label_smoothing)
        return replace(alone, is_coupled=True)


@dataclass(frozen=True)
class ApoZero(Relative):
    """Anchored: the chosen answer rises, the rejected one falls."""

    paper = "D'Oosterlinck et al. 2024, arXiv 2408.06266"

    def method(self) -> Method:
        """Return APO-zero's loss and DPO's reward."""
        from melior.losses.preference import apo_zero

        return self.on_log_ratios(apo_zero)


@dataclass(frozen=True)
class ApoDown(Relative):
    """Anchored, for chosen answers worse than the model's own: both fall, the rejected further."""

    paper = "D'Oosterlinck et al. 2024, arXiv 2408.06266"

    def method(self) -> Method:
        """Return APO-down's loss and DPO's reward."""
        from melior.losses.preference import apo_down

        return self.on_log_ratios(apo_down)


@dataclass(frozen=True)
class Discopop(Relative):
    """The log-ratio modulated loss that a language model found."""

    paper = "Lu et al. 2024, arXiv 2406.08414"

    tau: float = 0.05
    """Temperature of the modulation."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        in_range("tau", self.tau, 0, 1, above=True, below=True)

    def method(self) -> Method:
        """Return DiscoPOP's loss and DPO's reward."""
        from melior.losses.preference import discopop

        return self.on_log_ratios(discopop, tau=self.tau)


@dataclass(frozen=True)
class Dpop(Relative):
    """DPO-positive: a chosen answer that becomes less likely than at the start is paid for."""

    paper = "Pal et al. 2024 (Smaug), arXiv 2402.13228"

    lam: float = 50.0
    """Price of a nat that the chosen answer loses."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        in_range("lam", self.lam, 0)

    def method(self) -> Method:
        """Return DPOP's loss and DPO's reward."""
        from melior.losses.preference import dpop

        return self.on_log_ratios(dpop, lam=self.lam)


@dataclass(frozen=True)
class FDpo(Relative):
    """DPO under another divergence to the start than the reverse KL."""

    paper = "Wang et al. 2023, arXiv 2309.16240"

    divergence: Literal["forward_kl", "jensen_shannon", "alpha", "reverse_kl"] = "jensen_shannon"
    """`reverse_kl` is DPO itself."""
    alpha: float = 0.5
    """Of the alpha divergence: between the reverse KL, at 0, and the forward KL, at 1."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        in_range("alpha", self.alpha, 0, 1, above=True)

    def method(self) -> Method:
        """Return the loss under this divergence, and its reward `beta f'(rho)`."""
        from melior.losses import preference
        from melior.stages.method import Method, pairwise

        slopes: dict[str, preference.Slope] = {
            "forward_kl": preference.forward_kl,
            "jensen_shannon": preference.jensen_shannon,
            "alpha": partial(preference.alpha_divergence, alpha=self.alpha),
            "reverse_kl": preference.reverse_kl,
        }
        slope = slopes[self.divergence]
        loss = partial(preference.f_dpo, beta=self.beta, slope=slope)
        return Method(
            lambda a: loss(pairwise(a.policy), pairwise(a.reference)),
            lambda a: self.beta * slope(a.log_ratio.flatten()).view_as(a.log_ratio),
            has_reference=True,
            **self.likelihood.options(),
        )


@dataclass(frozen=True)
class GpoOffline(Relative):
    """Regress log-ratios on preference scores that the data holds as margins."""

    paper = "Zhang et al. 2024, arXiv 2410.02197"
    reads_margins = True
    sweep: ClassVar[Mapping[str, tuple[float, ...]]] = {"beta": (1e-3, 0.1)}

    beta: float = 0.1
    """Log-ratios go to the answers' scores over beta; the paper's released runs have 0.001."""

    def method(self) -> Method:
        """Return GPO's loss on the margins, and DPO's reward.

        Against the pair itself, of which it is one, an answer scores half the margin on average.
        """
        from melior.losses.preference import gpo
        from melior.stages.method import Method, pairwise
        from melior.types import Pairwise

        loss = partial(gpo, beta=self.beta)
        return Method(
            lambda a: loss(
                pairwise(a.policy), pairwise(a.reference), Pairwise(a.margins / 2, -a.margins / 2)
            ),
            lambda a: self.beta * a.log_ratio,
            has_reference=True,
            needs_margins=self.reads_margins,
            **self.likelihood.options(),
        )
