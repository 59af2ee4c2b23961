"""Pairs that count unequally: weights, betas and log-probabilities that adapt to the pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from melior.checks import in_range
from melior.objectives.relative import Relative

if TYPE_CHECKING:
    import torch

    from melior.losses.weights import GapState
    from melior.stages.memory import Memory
    from melior.stages.method import Answers, Method


@dataclass(frozen=True)
class Madpo(Relative):
    """DPO on pairs weighted by a reward model's margins, which the data holds."""

    paper = "Rho 2025, arXiv 2510.05342"
    reads_margins = True

    c_max: float = 2.0
    """How far narrow margins are amplified; the paper's best is 4."""
    tau: float = 7.0
    """Margin at which amplifying turns into dampening; `melior margins` suggests one."""
    lam: float = 1.0
    """Steepness of that turn."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        in_range("c_max", self.c_max, 1)
        in_range("tau", self.tau, 0, above=True)
        in_range("lam", self.lam, 0, above=True)

    def fitted(self, margins: Sequence[float]) -> Madpo:
        """Take tau from the margins: the 90th percentile of their sizes, as its page suggests."""
        from melior.stages.reward_models.margins import quantile

        tau = quantile(list(map(abs, margins)), 0.9) if margins else 0.0
        return replace(self, tau=tau) if tau > 0 else self

    def method(self) -> Method:
        """Return the weighted loss and DPO's reward."""
        from melior.losses.weights import madpo, madpo_weight
        from melior.stages.method import Method, pairwise

        weight = partial(madpo_weight, c_max=self.c_max, tau=self.tau, lam=self.lam)
        return Method(
            lambda a: madpo(
                pairwise(a.policy), pairwise(a.reference), weight(a.margins), beta=self.beta
            ),
            lambda a: self.beta * a.log_ratio,
            has_reference=True,
            needs_margins=self.reads_margins,
            **self.likelihood.options(),
        )


@dataclass(frozen=True)
class BetaDpo(Relative):
    """DPO with a beta for each batch and a filter on unusual pairs, as in the paper's formulas."""

    paper = "Wu et al. 2024, arXiv 2407.08639"

    alpha: float = 0.6
    """How strongly beta follows the batch's average gap."""
    keep: float = 0.8
    """Share of a batch that the filter keeps."""
    momentum: float = 0.9
    """Of the running mean and spread of the gaps."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        in_range("alpha", self.alpha, 0)
        in_range("keep", self.keep, 0, 1, above=True)
        in_range("momentum", self.momentum, 0, 1, below=True)

    def gaps(self, answers: Answers) -> torch.Tensor:
        """Return what is tracked of each pair: the margins of the rewards."""
        return self.beta * (answers.log_ratio[:, 0] - answers.log_ratio[:, 1]).detach()

    def seen(self, state: GapState, gaps: torch.Tensor) -> GapState:
        """Return what the batch is held against: what was tracked before it."""
        return state

    def adapted(self, gaps: torch.Tensor, kept: torch.Tensor, state: GapState) -> torch.Tensor:
        """Return the batch's beta."""
        from melior.losses.weights import adaptive_beta

        return adaptive_beta(gaps, state, beta=self.beta, alpha=self.alpha)

    def method(self) -> Method:
        """Return the loss, which couples a batch and remembers its gaps, and DPO's reward."""
        from melior.stages.memory import Memory
        from melior.stages.method import Method

        memory = Memory(mean=0.0, std=1.0, beta=self.beta)
        return Method(
            partial(self._loss, memory),
            lambda a: self.beta * a.log_ratio,
            has_reference=True,
            is_coupled=True,
            memory=memory,
            remember=partial(self._remember, memory),
            **self.likelihood.options(),
        )

    def _loss(self, memory: Memory, answers: Answers) -> torch.Tensor:
        """Return what each pair that the filter keeps adds to the mean over them."""
        from melior.losses.weights import beta_dpo, drawn_without_replacement, gap_filter
        from melior.stages.method import pairwise

        gaps = self.gaps(answers)
        state = self.seen(_tracked(memory, gaps), gaps)
        chances = gap_filter(gaps, state).cpu()  # the generator's device, whatever the model's
        kept = drawn_without_replacement(chances, share=self.keep, generator=memory.generator)
        kept = kept.to(gaps.device)
        beta = memory.values["beta"] = self.adapted(gaps, kept, state)
        losses = beta_dpo(pairwise(answers.policy), pairwise(answers.reference), beta)
        shares = losses[kept] * (len(losses) / len(kept))
        return losses.new_zeros(len(losses)).index_copy(0, kept, shares)

    def _remember(self, memory: Memory, answers: Answers) -> dict[str, float]:
        from melior.losses.weights import tracked_gap

        gaps = self.gaps(answers)
        now = tracked_gap(_tracked(memory, gaps), gaps, momentum=self.momentum)
        memory.values |= {"mean": now.mean, "std": now.std}
        return {"beta": float(memory.values["beta"]), "gap": float(now.mean)}


@dataclass(frozen=True)
class BetaDpoClamped(BetaDpo):
    """Beta-DPO as its released code has it: of raw gaps of the pairs kept, at least 0.001."""

    def gaps(self, answers: Answers) -> torch.Tensor:
        """Return what is tracked of each pair: the raw margins."""
        return (answers.log_ratio[:, 0] - answers.log_ratio[:, 1]).detach()

    def seen(self, state: GapState, gaps: torch.Tensor) -> GapState:
        """Return what the batch is held against: what is tracked with it."""
        from melior.losses.weights import tracked_gap

        return tracked_gap(state, gaps, momentum=self.momentum)

    def adapted(self, gaps: torch.Tensor, kept: torch.Tensor, state: GapState) -> torch.Tensor:
        """Return the batch's beta."""
        from melior.losses.weights import clamped_adaptive_beta

        return clamped_adaptive_beta(gaps[kept], state, beta=self.beta, alpha=self.alpha)


def _tracked(memory: Memory, like: torch.Tensor) -> GapState:
    """Return the running mean and spread, where the gaps are."""
    from melior.losses.weights import GapState

    return GapState(memory.values["mean"].to(like), memory.values["std"].to(like))


@dataclass(frozen=True)
class Wpo(Relative):
    """DPO on pairs weighted by how likely the model itself would be to write them."""

    paper = "Zhou et al. 2024, arXiv 2406.11827"

    def method(self) -> Method:
        """Return the loss under sampled alignment, and DPO's reward."""
        from melior.losses.preference import dpo
        from melior.losses.weights import wpo_weight
        from melior.stages.method import Method, pairwise

        def loss(answers: Answers) -> torch.Tensor:
            collision = answers.sums(answers.extras["collision"])
            alignment = collision / answers.lengths.clamp(min=1)
            weight = wpo_weight(pairwise(answers.per_token), pairwise(alignment))
            policy, reference = pairwise(answers.policy), pairwise(answers.reference)
            return weight * dpo(policy, reference, beta=self.beta)

        return Method(
            loss,
            lambda a: self.beta * a.log_ratio,
            has_reference=True,
            extras=frozenset({"collision"}),
            **self.likelihood.options(),
        )


@dataclass(frozen=True)
class LdDpo(Relative):
    """DPO in which tokens beyond the shorter answer's length count less."""

    paper = "Liu et al. 2024, arXiv 2409.06411"

    alpha: float = 0.5
    """Weight of those tokens: 0 leaves them out, 1 is DPO."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        in_range("alpha", self.alpha, 0, 1)

    def method(self) -> Method:
        """Return DPO's loss and reward on desensitised log-probabilities."""
        from melior.losses.preference import dpo
        from melior.losses.weights import length_desensitized
        from melior.stages.method import Method, pairwise
        from melior.types import Pairwise

        def counted(answers: Answers, tokens: torch.Tensor) -> Pairwise:
            shorter = answers.lengths.amin(-1)[answers.places // answers.is_there.shape[1]]
            common = answers.sums(tokens * (answers.ranks < shorter))
            whole = answers.sums(tokens)
            return length_desensitized(pairwise(whole), pairwise(common), alpha=self.alpha)

        def reward(answers: Answers) -> torch.Tensor:
            ratio = counted(answers, answers.tokens - answers.reference_tokens)
            return self.beta * _columns(ratio)

        return Method(
            lambda a: dpo(counted(a, a.tokens), counted(a, a.reference_tokens), beta=self.beta),
            reward,
            has_reference=True,
            **self.likelihood.options(),
        )


def _columns(sides: Any) -> torch.Tensor:
    import torch

    return torch.stack([sides.chosen, sides.rejected], -1)
