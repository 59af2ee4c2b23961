"""Pairs, without a reference: SimPO and its kin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

import tyro

from melior.checks import in_range
from melior.objectives.objective import ChosenLikelihood, Objective

if TYPE_CHECKING:
    from melior.stages.method import Method


@dataclass(frozen=True)
class Simpo(Objective):
    """Learn from pairs with SimPO: no reference model, length-normalised reward."""

    paper = "Meng et al. 2024, arXiv 2405.14734"
    sweep: ClassVar[Mapping[str, tuple[float, ...]]] = {"beta": (2.0, 10.0)}
    learning_rate = 5e-7

    beta: float = 2.0
    """Scale of the reward; the paper searches 2 to 10."""
    gamma: float | None = None
    """Target margin of the rewards (TRL's simpo_gamma); give this or gamma_beta_ratio."""
    gamma_beta_ratio: float | None = None
    """Target margin over beta, as in the authors' configs; 0.5 where neither is given."""
    label_smoothing: float = 0.0
    """Share of labels taken to be flipped."""
    loss_type: Literal["sigmoid", "hinge"] = "sigmoid"
    """The paper's, or the variant of the authors' code."""
    likelihood: ChosenLikelihood = ChosenLikelihood()

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("beta", self.beta, 0, above=True)
        in_range("label_smoothing", self.label_smoothing, 0, 0.5, below=True)
        in_range("gamma", self.gamma or 0.0, 0)
        in_range("gamma_beta_ratio", self.gamma_beta_ratio or 0.0, 0)
        if self.gamma is not None and self.gamma_beta_ratio is not None:
            raise ValueError("gamma and gamma_beta_ratio say the same: give one; found both")
        if self.loss_type == "hinge" and self.label_smoothing:
            raise ValueError("label_smoothing is for loss_type sigmoid; found hinge")

    @property
    def target_margin(self) -> float:
        """Gamma, absolute, however it was given."""
        if self.gamma is not None:
            return self.gamma
        ratio = 0.5 if self.gamma_beta_ratio is None else self.gamma_beta_ratio
        return ratio * self.beta

    def method(self) -> Method:
        """Return SimPO's loss and reward."""
        from melior.losses.reference_free import simpo, simpo_hinge
        from melior.stages.method import per_token_method

        beta, gamma = self.beta, self.target_margin
        smoothed = partial(simpo, beta=beta, gamma=gamma, label_smoothing=self.label_smoothing)
        loss = smoothed if self.loss_type == "sigmoid" else partial(
            simpo_hinge, beta=beta, gamma=gamma
        )  # fmt: skip
        return per_token_method(loss, beta=beta, **self.likelihood.options())


@dataclass(frozen=True)
class Slic(Objective):
    """Sequence likelihood calibration: a hinge on summed log-probabilities, and the likelihood."""

    paper = "Zhao et al. 2023 (SLiC-HF), arXiv 2305.10425"
    sweep: ClassVar[Mapping[str, tuple[float, ...]]] = {"delta": (1.0, 10.0)}

    delta: float = 1.0
    """Margin of the log-probabilities, in nats per answer."""
    likelihood: ChosenLikelihood = ChosenLikelihood(sft_weight=1.0)

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("delta", self.delta, 0, above=True)

    def method(self) -> Method:
        """Return SLiC's loss; its reward is the log-probability."""
        from melior.losses.reference_free import slic
        from melior.stages.method import Method, pairwise

        return Method(
            lambda a: slic(pairwise(a.policy), delta=self.delta),
            lambda a: a.policy,
            has_reference=False,
            **self.likelihood.options(),
        )


@dataclass(frozen=True)
class Rrhf(Objective):
    """Rank by average log-probability without a margin, and learn the better answers by heart."""

    paper = "Yuan et al. 2023, arXiv 2304.05302"

    likelihood: ChosenLikelihood = ChosenLikelihood(sft_weight=1.0)

    def method(self) -> Method:
        """Return RRHF's loss; its reward is the average log-probability."""
        from melior.losses.reference_free import rrhf
        from melior.stages.method import per_token_method

        return per_token_method(rrhf, beta=1.0, **self.likelihood.options())


@dataclass(frozen=True)
class Cpo(Objective):
    """DPO with a uniform reference, and the likelihood of the better answers."""

    paper = "Xu et al. 2024, arXiv 2401.08417"
    sweep: ClassVar[Mapping[str, tuple[float, ...]]] = {"beta": (0.01, 0.1)}

    beta: float = 0.1
    """Scale of the log-probabilities."""
    label_smoothing: float = 0.0
    """Share of labels taken to be flipped."""
    likelihood: ChosenLikelihood = ChosenLikelihood(sft_weight=1.0)

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("beta", self.beta, 0, above=True)
        in_range("label_smoothing", self.label_smoothing, 0, 0.5, below=True)

    def method(self) -> Method:
        """Return CPO's loss, and its reward `beta log p`."""
        from melior.losses.reference_free import cpo
        from melior.stages.method import Method, pairwise

        loss = partial(cpo, beta=self.beta, label_smoothing=self.label_smoothing)
        return Method(
            lambda a: loss(pairwise(a.policy)),
            lambda a: self.beta * a.policy,
            has_reference=False,
            **self.likelihood.options(),
        )


@dataclass(frozen=True)
class Orpo(Objective):
    """Likelihood of the better answers, and the odds of better against worse, in one stage."""

    paper = "Hong et al. 2024, arXiv 2403.07691"
    sweep: ClassVar[Mapping[str, tuple[float, ...]]] = {"lam": (0.1, 1.0)}

    lam: Annotated[float, tyro.conf.arg(aliases=["--lambda"])] = 0.1
    """Weight of the odds ratio (TRL calls it beta); the paper uses 0.1 to 0.25."""
    likelihood: ChosenLikelihood = ChosenLikelihood(sft_weight=1.0)

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("lam", self.lam, 0)

    def method(self) -> Method:
        """Return ORPO's loss, and its reward: the log-odds."""
        from melior.losses.reference_free import log_odds, orpo
        from melior.stages.method import Method, pairwise

        return Method(
            lambda a: orpo(pairwise(a.per_token), lam=self.lam),
            lambda a: log_odds(a.per_token.flatten()).view_as(a.per_token),
            has_reference=False,
            **self.likelihood.options(),
        )
