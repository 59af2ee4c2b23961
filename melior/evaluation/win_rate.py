"""How often a judge preferred a model to a baseline, with what a judge left out counted apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from melior.evaluation.compare import Array, Interval
from melior.intervals import wilson_interval


@dataclass(frozen=True)
class HeadToHead:
    """Wins of a model against a baseline; a draw counts half."""

    win_rate: Interval
    """The weighted mean of the preferences."""
    standard_error: float | None
    """Of the mean over instructions; None for a single one."""
    n_wins: int
    n_wins_base: int
    n_draws: int
    discrete_win_rate: float
    """Each preference rounded to a win, a draw or a loss."""
    n_missing: int
    """Instructions whose judgement failed: in no other number."""

    @property
    def n_total(self) -> int:
        """Judged instructions."""
        return self.n_wins + self.n_wins_base + self.n_draws


def head_to_head(
    preferences: Sequence[float | None],
    weights: Sequence[float],
    *,
    generator: torch.Generator,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> HeadToHead:
    """Count wins, and bootstrap the win rate over instructions.

    Args:
        preferences: of each instruction, from 0 (the baseline) to 1 (the model); None where the
            judge gave no verdict.
        weights: how much each speaks; ones, but for judges whose strong verdicts count more.
        generator: draws the resamples.
        confidence: of the interval.
        resamples: drawn instructions, with replacement, so many times.

    Raises:
        ValueError: nothing was judged.
    """
    given = [(p, w) for p, w in zip(preferences, weights, strict=True) if p is not None]
    if not given:
        raise ValueError(
            f"win rate: needs at least one judgement; found {len(preferences)} that are missing"
        )
    values, shares = (np.array(column, dtype=np.float64) for column in zip(*given, strict=True))
    n, mean = len(values), float((values * shares).sum() / shares.sum())
    low, high = _interval(values, shares, confidence, resamples, generator)
    wins, losses = int((values > 0.5).sum()), int((values < 0.5).sum())
    return HeadToHead(
        Interval(mean, low, high, confidence, n),
        _standard_error(values, shares),
        wins,
        losses,
        n - wins - losses,
        discrete_win_rate=(wins + (n - wins - losses) / 2) / n,
        n_missing=len(preferences) - n,
    )


def _interval(
    values: Array, weights: Array, confidence: float, resamples: int, generator: torch.Generator
) -> tuple[float, float]:
    """Bootstrap by percentiles; equal values, whose resamples never vary, get Wilson's interval."""
    n = len(values)
    if (values == values[0]).all():
        return wilson_interval(float(values[0]) * n, n, confidence=confidence)
    means = []
    for _ in range(resamples):
        places = torch.randint(n, (n,), generator=generator).numpy()
        means.append((values[places] * weights[places]).sum() / weights[places].sum())
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _standard_error(values: Array, weights: Array) -> float | None:
    """Of a weighted mean, by linearising the ratio (Cochran 1977, sec. 6.3)."""
    n = len(values)
    if n == 1:
        return None
    mean = (values * weights).sum() / weights.sum()
    residuals = weights * (values - mean) / weights.mean()
    return float(math.sqrt((residuals**2).sum() / (n - 1) / n))
