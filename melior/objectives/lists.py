"""Scored lists of answers: TPO and its baselines. Pairs are read as lists of two."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from melior.checks import in_range
from melior.objectives.objective import ChosenLikelihood, Objective

if TYPE_CHECKING:
    import torch

    from melior.stages.method import Answers, Method


@dataclass(frozen=True)
class Listwise(Objective):
    """What losses on lists share."""

    data = "lists"
    sweep: ClassVar[Mapping[str, tuple[float, ...]]] = {"beta": (0.01, 0.1)}

    beta: float = 0.1
    """Scale of the implicit rewards: how strongly the model is held to its start."""
    likelihood: ChosenLikelihood = ChosenLikelihood()

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("beta", self.beta, 0, above=True)

    def on_rewards(self, loss: Callable[[Answers, Any], Any], **options: Any) -> Method:
        """Return the method of a loss on answers and their implicit rewards."""
        from melior.stages.method import Method

        def reward(answers: Answers) -> torch.Tensor:
            return self.beta * answers.log_ratio

        return Method(
            lambda a: loss(a, reward(a)), reward, has_reference=True, data="lists",
            **options, **self.likelihood.options(),
        )  # fmt: skip


@dataclass(frozen=True)
class Tpo(Listwise):
    """Rank a whole list, pairs weighted by rank and steps by how unlike they are."""

    paper = "Liao et al. 2024, arXiv 2410.12854"
    learning_rate = 5e-7

    score_low: float | None = None
    """Lower end of the scores' scale, such as -100; without both ends, each list's own."""
    score_high: float | None = None
    """Upper end of the scores' scale."""
    adaptive_steps: bool = True
    """Weigh steps by 1 - cos of their states, where the data cuts answers into steps."""
    pair_reduction: Literal["sum", "mean"] = "sum"
    """Over the pairs of a list; the paper's is the sum."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        low, high = self.score_low, self.score_high
        if (low is None) != (high is None):
            raise ValueError("score_low and score_high are given together; found one of them")
        if low is not None and high is not None:
            in_range("score_high", high, low, above=True)

    def method(self) -> Method:
        """Return the ranking loss and DPO's reward."""
        from melior.losses import listwise

        over_pairs = {"sum": listwise.sum_over_pairs, "mean": listwise.mean_over_pairs}

        def loss(answers: Answers, rewards: torch.Tensor) -> torch.Tensor:
            is_plain = not self.adaptive_steps
            margins = listwise.margins(rewards) if is_plain else _step_margins(answers, self.beta)
            return listwise.lambda_rank_of_margins(
                margins, rewards, self._normalised(answers), answers.is_there,
                over_pairs=over_pairs[self.pair_reduction],
            )  # fmt: skip

        low, high = self.score_low, self.score_high
        return self.on_rewards(
            loss,
            extras=frozenset({"states"}) if self.adaptive_steps else frozenset(),
            score_range=(-math.inf, math.inf) if low is None or high is None else (low, high),
        )

    def _normalised(self, answers: Answers) -> torch.Tensor:
        """Return scores from 0 to 1."""
        from melior.losses.listwise import global_scores, per_list_scores

        low, high = self.score_low, self.score_high
        if low is None or high is None:
            return per_list_scores(answers.scores, answers.is_there)
        return global_scores(answers.scores, low=low, high=high).where(answers.is_there, 0.0)


@dataclass(frozen=True)
class PlackettLuce(Listwise):
    """Likelihood of the list's order when answers are drawn one by one (ListMLE)."""

    paper = "Rafailov et al. 2023, arXiv 2305.18290, eq. 20"

    def method(self) -> Method:
        """Return the loss and DPO's reward."""
        from melior.losses.listwise import plackett_luce

        return self.on_rewards(lambda a, r: plackett_luce(r, a.scores, a.is_there))


@dataclass(frozen=True)
class ListSoftmax(Listwise):
    """Cross-entropy of the rewards' softmax against that of the scores (ListNet)."""

    paper = "Cao et al. 2007; Liu et al. 2024 (LiPO), arXiv 2402.01878"

    temperature: float = 1.0
    """Of the scores."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        in_range("temperature", self.temperature, 0, above=True)

    def method(self) -> Method:
        """Return the loss and DPO's reward."""
        from melior.losses.listwise import softmax_cross_entropy

        loss = partial(softmax_cross_entropy, temperature=self.temperature)
        return self.on_rewards(lambda a, r: loss(r, a.scores, a.is_there))


@dataclass(frozen=True)
class AllPairsDpo(Listwise):
    """DPO on every ordered pair of a list."""

    paper = "Rafailov et al. 2023, arXiv 2305.18290"

    def method(self) -> Method:
        """Return the loss and DPO's reward."""
        from melior.losses.listwise import all_pairs

        return self.on_rewards(lambda a, r: all_pairs(r, a.scores, a.is_there))


@dataclass(frozen=True)
class BestWorstDpo(Listwise):
    """DPO on the best answer of a list against its worst."""

    paper = "Rafailov et al. 2023, arXiv 2305.18290"

    def method(self) -> Method:
        """Return the loss and DPO's reward."""
        from melior.losses.listwise import best_against_worst

        return self.on_rewards(lambda a, r: best_against_worst(r, a.scores, a.is_there))


def _step_margins(answers: Answers, beta: float) -> torch.Tensor:
    """Return margins of lists whose steps count by how unlike they are.

    A step is embedded as the mean of the model's last hidden states over its tokens, less the mean
    over the steps of its list. A list in which no answer has a second step keeps plain margins.
    """
    import torch

    from melior.losses.listwise import adaptive_step_margin, margins

    rewards = beta * answers.step_sums(answers.tokens - answers.reference_tokens)
    counts = answers.step_sums(torch.ones_like(answers.tokens))
    is_step, n_steps = counts > 0, counts.shape[-1]
    states = answers.extras["states"].to(rewards.dtype)
    summed = states.new_zeros(counts.numel(), states.shape[-1]).index_add(
        0, answers.places * n_steps + answers.steps, states
    )
    means = summed.view(*counts.shape, -1) / counts.clamp(min=1)[..., None]
    # A model's states lie in a narrow cone, in which all steps would look alike.
    common = means.sum((1, 2)) / is_step.sum((1, 2)).clamp(min=1)[:, None]
    in_steps = adaptive_step_margin(rewards, means - common[:, None, None], is_step)
    is_cut = is_step[..., 1:].flatten(1).any(-1)
    return in_steps.where(is_cut[:, None, None], margins(rewards.sum(-1)))
