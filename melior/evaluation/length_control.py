"""The win rate that a model would have if its answers were as long as the baseline's.

Dubois et al. 2024, "Length-Controlled AlpacaEval", arXiv 2404.04475, sec. 3: a logistic model of
what the judge preferred, out of who answered, how the lengths differ and how hard the instruction
is; the win rate is its mean prediction with the length difference set to 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from jaxtyping import Float

from melior.evaluation.compare import Array, Interval

PENALTIES: Final = np.logspace(-4, 4, 10)
"""Inverse strengths of the L1 penalty that cross-validation chooses among."""
FOLDS: Final = 5
GAMED_WEIGHT: Final = 0.2 / 2
"""Of a judgement of a gamed answer: the paper's lambda, shared by the two gamed models."""
FEWEST: Final = 2 * FOLDS
"""Judged answers below which five folds say nothing."""


@dataclass(frozen=True)
class Judged:
    """What a judge preferred, one entry per judged instruction."""

    preferences: Float[np.ndarray, " n"]
    """From 0, the baseline's answer, to 1, the model's."""
    gaps: Float[np.ndarray, " n"]
    """Characters of the baseline's answer minus those of the model's."""
    difficulty: Float[np.ndarray, " n"]
    """Of each instruction; zeros where it is not known, whose weight is then 0."""


@dataclass(frozen=True)
class Gamed:
    """Judgements of the baseline told to be brief or wordy: they hold the length's weight in place.

    The rows that AlpacaEval publishes as `df_gamed.csv`.
    """

    preferences: Float[np.ndarray, " n"]
    scaled_gaps: Float[np.ndarray, " n"]
    difficulty: Float[np.ndarray, " n"]


NO_GAMED: Final = Gamed(np.zeros(0), np.zeros(0), np.zeros(0))


@dataclass(frozen=True)
class LengthControlled:
    """The controlled win rate, and the model that gives it."""

    win_rate: Interval
    """Its interval is a bootstrap of instructions, the model fitted anew each time."""
    standard_error: float
    """Of the mean of the predictions, as AlpacaEval reports it: that of the fit is not in it."""
    length: float
    """Weight of `tanh` of the gap in standard deviations: below 0 the judge liked length."""
    difficulty: float
    quality: float
    """What is left of the model when neither length nor difficulty speaks."""
    penalty: float
    """The inverse strength of the penalty that cross-validation chose."""


def lacks(judged: Judged) -> str:
    """Say what is missing for a length-controlled win rate, or nothing."""
    n = len(judged.preferences)
    if n < FEWEST:
        return f"needs at least {FEWEST} judged answers; found {n}"
    if np.ptp(judged.gaps) == 0:
        return f"needs lengths that differ from the baseline's in more than one way; found {n} gaps"
    return ""


def length_controlled(
    judged: Judged,
    gamed: Gamed = NO_GAMED,
    *,
    generator: torch.Generator,
    confidence: float = 0.95,
    resamples: int = 500,
) -> LengthControlled:
    """Fit the model and predict with equal lengths.

    The penalty's strength is chosen once, by cross-validated likelihood in five folds, and kept
    over resamples. The standard deviation of the gaps is that of these answers, as in the paper.

    Raises:
        ValueError: as `lacks` says.
    """
    if reason := lacks(judged):
        raise ValueError(f"length control: {reason}")
    rows, targets, weights = _training_rows(judged, gamed)
    penalty = _chosen(rows, targets, weights)
    fitted = fit(rows, targets, weights, penalty=penalty)
    predicted = _predictions(fitted, judged.difficulty)

    def again(places: Array) -> float:
        own = Judged(*(part[places] for part in _parts(judged)))
        if np.ptp(own.gaps) == 0:
            return float(predicted[places].mean())
        found = fit(*_training_rows(own, gamed), penalty=penalty, start=fitted)
        return float(_predictions(found, own.difficulty).mean())

    n = len(predicted)
    low, high = _percentiles(again, n, resamples, confidence, generator)
    length, difficulty, quality = map(float, fitted)
    return LengthControlled(
        Interval(float(predicted.mean()), low, high, confidence, n),
        float(predicted.std(ddof=1)) / n**0.5,
        length=length,
        difficulty=difficulty,
        quality=quality,
        penalty=penalty,
    )


def fit(
    rows: Float[np.ndarray, "n d"],
    targets: Float[np.ndarray, " n"],
    weights: Float[np.ndarray, " n"],
    *,
    penalty: float,
    start: Float[np.ndarray, " d"] | None = None,
) -> Float[np.ndarray, " d"]:
    """Minimise the L1 norm plus `penalty` times the summed cross-entropy of shares.

    By proximal Newton steps (Lee, Sun and Saunders 2014, arXiv 1206.1623) until a step changes
    nothing any more; liblinear, which AlpacaEval uses, stops at a tolerance of 1e-4.
    """
    found = np.zeros(rows.shape[1]) if start is None else start
    value = _objective(found, rows, targets, weights, penalty)
    for _ in range(100):
        p = _logistic(rows @ found)
        slope = penalty * rows.T @ (weights * (p - targets))
        curve = penalty * (rows * (weights * p * (1 - p))[:, None]).T @ rows
        step = _quadratic_step(found, slope, curve)
        size = 1.0
        while size > 1e-10:
            trial = found + size * step
            below = _objective(trial, rows, targets, weights, penalty)
            if below < value:
                break
            size /= 2
        else:
            return found
        is_still = np.abs(trial - found).max() <= 1e-12 * (1 + np.abs(trial).max())
        found, value = trial, below
        if is_still:
            break
    return found


def _parts(judged: Judged) -> tuple[Array, Array, Array]:
    return judged.preferences, judged.gaps, judged.difficulty


def _training_rows(judged: Judged, gamed: Gamed) -> tuple[Array, Array, Array]:
    """Return the features, the shares to predict and the weights; gamed rows first."""
    scaled = np.concatenate([gamed.scaled_gaps, judged.gaps / judged.gaps.std(ddof=1)])
    difficulty = np.concatenate([gamed.difficulty, judged.difficulty])
    is_own = np.repeat([0.0, 1.0], [len(gamed.preferences), len(judged.preferences)])
    targets = np.concatenate([gamed.preferences, judged.preferences])
    weights = np.where(is_own, 1.0, GAMED_WEIGHT)
    return np.stack([np.tanh(scaled), difficulty, is_own], 1), targets, weights


def _chosen(rows: Array, targets: Array, weights: Array) -> float:
    """Return the strength whose fits are most likely on the fold that they have not seen."""
    fold = np.arange(len(rows)) % FOLDS
    losses = []
    for penalty in PENALTIES:
        held_out = []
        for k in range(FOLDS):
            seen, rest = fold != k, fold == k
            found = fit(rows[seen], targets[seen], weights[seen], penalty=penalty)
            held_out.append((weights[rest] * _losses(rows[rest] @ found, targets[rest])).mean())
        losses.append(np.mean(held_out))
    return float(PENALTIES[int(np.argmin(losses))])


def _predictions(fitted: Array, difficulty: Array) -> Array:
    """Return the chance of each answer of the model at equal lengths."""
    return _logistic(fitted[1] * difficulty + fitted[2])


def _percentiles(
    statistic: Callable[[Array], float],
    n: int,
    resamples: int,
    confidence: float,
    generator: torch.Generator,
) -> tuple[float, float]:
    draws = torch.randint(n, (resamples, n), generator=generator).numpy()
    found = [statistic(places) for places in draws]
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _logistic(x: Array) -> Array:
    return np.exp(-np.logaddexp(0.0, -x))


def _losses(logits: Array, targets: Array) -> Array:
    """Cross-entropy of a share: -p log q - (1 - p) log(1 - q)."""
    return np.logaddexp(0.0, logits) - targets * logits


def _objective(w: Array, rows: Array, targets: Array, weights: Array, penalty: float) -> float:
    return float(np.abs(w).sum() + penalty * (weights * _losses(rows @ w, targets)).sum())


def _quadratic_step(at: Array, slope: Array, curve: Array) -> Array:
    """Minimise the second-order model plus the L1 norm by turns, one coordinate at a time.

    In plain numbers: for three coordinates they are several times faster than arrays.
    """
    start, slopes, bends = at.tolist(), slope.tolist(), curve.tolist()
    step = [0.0] * len(start)
    for _ in range(1000):
        change = 0.0
        for j, row in enumerate(bends):
            if row[j] <= 0:
                continue
            pull = slopes[j] + sum(a * b for a, b in zip(row, step, strict=True))
            aim = start[j] + step[j] - pull / row[j]
            moved = math.copysign(max(abs(aim) - 1 / row[j], 0.0), aim) - start[j]
            change = max(change, abs(moved - step[j]))
            step[j] = moved
        if change <= 1e-14 * (1 + max(map(abs, step))):
            break
    return np.array(step)
