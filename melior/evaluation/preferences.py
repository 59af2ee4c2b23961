"""How well a model's numbers agree with preferences, and how far it has moved from its start.

A pair's margin is the chosen side's number minus the rejected side's: of the reward that the loss
implies, or of the plain log-probability. A margin of exactly 0 is a tie and counts as half right.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from melior.evaluation.compare import (
    Array,
    Numbers,
    WinRate,
    places_of,
    vector,
    win_rate,
)
from melior.intervals import wilson_interval
from melior.records import Metrics
from melior.types import Pairwise

KlEstimator = Callable[[Float[Tensor, " t"], Float[Tensor, " t"]], Float[Tensor, " t"]]


@dataclass(frozen=True)
class PairScores:
    """Accuracy and margin of a set of pairs."""

    n: int
    accuracy: float
    """Share of pairs with a margin above 0; ties count half."""
    low: float
    """Wilson's 95% interval of the accuracy."""
    high: float
    margin: float
    margin_error: float | None
    """Standard error of the mean margin; None for a single pair."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON."""
        return asdict(self)


@dataclass(frozen=True)
class LengthBias:
    """The same scores where the chosen answer is the shorter, the equal and the longer one.

    A model that has only learned "longer is better" is right on the one and wrong on the other.
    None where there is no such pair.
    """

    chosen_shorter: PairScores | None
    same_length: PairScores | None
    chosen_longer: PairScores | None


@dataclass(frozen=True)
class Estimate:
    """A mean over samples and its standard error; None for a single sample."""

    value: float
    error: float | None
    n: int


def correct(margins: Numbers, *, name: str = "margins") -> Array:
    """Return 1 for each pair ranked right, 0 for wrong and 0.5 for a tie."""
    return (np.sign(vector(margins, name)) + 1) / 2


def pair_scores(margins: Numbers, *, name: str = "margins") -> PairScores:
    """Score pairs by their margins."""
    array = vector(margins, name)
    n, right = len(array), float(correct(array).sum())
    low, high = wilson_interval(right, n)
    mean = _mean(array)
    return PairScores(n, right / n, low, high, mean.value, mean.error)


def pair_scores_by_subset(margins: Numbers, subsets: Sequence[Hashable]) -> dict[str, PairScores]:
    """Score the pairs of each subset, in order of first appearance."""
    array = vector(margins, "margins")
    return {
        str(subset): pair_scores(array[places]) for subset, places in places_of(subsets, len(array))
    }


def ordered_share(
    scores: Float[Tensor, "n k"], values: Float[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """Return of each group the share of its ordered pairs that some values rank the same way.

    An ordered pair is two answers of different scores; equal values count half. A group without
    one gives nan. Of a group of two this is 1, 0.5 or 0, and over a list (1 + Kendall's tau) / 2.
    """
    is_above = scores[:, :, None] > scores[:, None, :]
    right = (values[:, :, None] - values[:, None, :]).sign().double() / 2 + 0.5
    return (right * is_above).sum((1, 2)) / is_above.sum((1, 2))


def pair_metrics(reward: Pairwise, log_prob: Pairwise) -> Metrics:
    """Score held-out pairs by the reward that the loss implies and by the plain log-probability.

    Args:
        reward: what the loss compares: `beta` times the log-ratio to the reference for DPO, `beta`
            times the mean log-probability for SimPO.
        log_prob: the summed log-probability of each answer.
    """
    metrics: Metrics = {}
    for name, sides in (("rewards", reward), ("logps", log_prob)):
        scores = pair_scores(sides.margin, name=f"{name}/margins")
        metrics |= {
            f"{name}/chosen": float(sides.chosen.double().mean()),
            f"{name}/rejected": float(sides.rejected.double().mean()),
            f"{name}/accuracies": scores.accuracy,
            f"{name}/margins": scores.margin,
        }
    return metrics


def length_bias(
    margins: Numbers, chosen_lengths: Sequence[int], rejected_lengths: Sequence[int]
) -> LengthBias:
    """Score apart the pairs whose chosen answer is shorter, as long, and longer."""
    array = vector(margins, "margins")
    if not len(array) == len(chosen_lengths) == len(rejected_lengths):
        raise ValueError(
            "length bias: needs two lengths per pair; found "
            f"{len(chosen_lengths)} and {len(rejected_lengths)} for {len(array)} pairs"
        )
    longer = np.sign(np.asarray(chosen_lengths) - np.asarray(rejected_lengths))
    parts = [array[longer == sign] for sign in (-1, 0, 1)]
    return LengthBias(*(pair_scores(part) if len(part) else None for part in parts))


def kl_k1(log_probs: Float[Tensor, " t"], reference: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """Per token log p - log q: unbiased, of either sign (k1 of Schulman 2020, "Approximating KL").

    The tokens must have been sampled from p (`log_probs`) as it is: temperature 1, no cut-off.
    """
    return log_probs - reference


def kl_k3(log_probs: Float[Tensor, " t"], reference: Float[Tensor, " t"]) -> Float[Tensor, " t"]:
    """Per token (r - 1) - log r with r = q / p: unbiased, never negative, of smaller spread.

    k3 of Schulman 2020, "Approximating KL Divergence"; same demands as `kl_k1`.
    """
    log_ratio = reference - log_probs
    return torch.expm1(log_ratio) - log_ratio


def kl_to_start(
    log_probs: Sequence[Float[Tensor, " _"]],
    reference: Sequence[Float[Tensor, " _"]],
    *,
    estimator: KlEstimator = kl_k3,
) -> Estimate:
    """Estimate KL(model || start) of a whole answer in nats from answers that the model sampled.

    Token estimates are summed along each answer (the chain rule of KL keeps the sum unbiased) and
    averaged over answers; the standard error is over answers.

    Args:
        log_probs: per answer, the model's log-probability of each token.
        reference: the same tokens under the start.
        estimator: `kl_k3` or `kl_k1`.
    """
    if [len(p) for p in log_probs] != [len(q) for q in reference]:
        raise ValueError("KL: model and start must score the same tokens; their lengths differ")
    pairs = zip(log_probs, reference, strict=True)
    answers = [float(estimator(p.double(), q.double()).sum()) for p, q in pairs]
    return _mean(vector(answers, "KL of each answer"))


def wins(before: Numbers, after: Numbers, *, within: float = 0.0) -> WinRate:
    """Count where `after` scores higher, the same and lower than `before`, and the win rate.

    Args:
        before: a score per prompt.
        after: a score for the same prompts.
        within: scores at most this far apart are a tie.
    """
    old, new = vector(before, "scores before"), vector(after, "scores after")
    if len(old) != len(new):
        raise ValueError(f"scores: must be of the same prompts; found {len(old)} and {len(new)}")
    gains = new - old
    won, lost = int((gains > within).sum()), int((gains < -within).sum())
    return win_rate(won, len(gains) - won - lost, lost)


def _mean(array: Array) -> Estimate:
    n = len(array)
    error = float(array.std(ddof=1)) / math.sqrt(n) if n > 1 else None
    return Estimate(float(array.mean()), error, n)
