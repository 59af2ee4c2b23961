"""Is it better, and how sure are we: intervals, paired tests and corrections for many looks.

Everything here speaks of the mean of one number per example, so shares, win rates, rewards and
lengths are all served. `before` and `after` are paired: place i of both is the same prompt.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from jaxtyping import Shaped
from torch import Tensor

from melior.intervals import normal_quantile, wilson_interval

Array = Shaped[np.ndarray, "..."]
Numbers = Sequence[float] | Sequence[int] | Sequence[bool] | Array | Tensor
"""One number per example."""

CHUNK = 2**22
"""Draws held in memory at once."""


@dataclass(frozen=True)
class Interval:
    """A mean and where it lies at the stated confidence."""

    estimate: float
    low: float | None
    """None where a single example or run says nothing of its spread."""
    high: float | None
    confidence: float
    n: int


@dataclass(frozen=True)
class WinRate:
    """Wins, ties and losses of `after` against `before`; a tie counts half."""

    wins: int
    ties: int
    losses: int
    win_rate: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """Return the `win_rate` entry of `evaluation.json`."""
        return asdict(self)


@dataclass(frozen=True)
class Comparison:
    """One quantity before and after, on the same examples."""

    name: str
    unit: str
    """`share` for numbers from 0 to 1 that people read as percent; else a word such as `tokens`."""
    before: float
    after: float
    difference: float
    """After minus before; `low` to `high` is its interval."""
    low: float | None
    high: float | None
    confidence: float
    n: int
    p_value: float
    higher_is_better: bool | None
    """None where neither direction is good in itself, such as length."""

    def to_json(self) -> dict[str, Any]:
        """Return one of the `comparisons` of `evaluation.json`."""
        return asdict(self)


def compare(
    before: Numbers,
    after: Numbers,
    *,
    name: str,
    generator: torch.Generator,
    unit: str = "",
    higher_is_better: bool | None = True,
    confidence: float = 0.95,
    resamples: int = 10_000,
) -> Comparison:
    """Compare paired numbers: a BCa bootstrap interval of the mean difference, and a paired test.

    The test is McNemar's exact one where all numbers are 0 or 1, else the sign-flip test.
    """
    old, new = _paired(before, after, name)
    gains = new - old
    interval = bca_interval(
        gains, confidence=confidence, resamples=resamples, generator=generator, name=name
    )
    is_binary = bool(np.isin(old, (0, 1)).all() and np.isin(new, (0, 1)).all())
    p_value = (
        mcnemar(old, new)
        if is_binary
        else sign_flip_test(gains, resamples=resamples, generator=generator, name=name)
    )
    return Comparison(
        name=name,
        unit=unit,
        before=float(old.mean()),
        after=float(new.mean()),
        difference=interval.estimate,
        low=interval.low,
        high=interval.high,
        confidence=confidence,
        n=len(gains),
        p_value=p_value,
        higher_is_better=higher_is_better,
    )


def compare_by_subset(
    before: Numbers,
    after: Numbers,
    subsets: Sequence[Hashable],
    *,
    generator: torch.Generator,
    unit: str = "",
    higher_is_better: bool | None = True,
    confidence: float = 0.95,
) -> list[Comparison]:
    """Compare within each subset, in order of first appearance; p-values are Holm-corrected."""
    old, new = _paired(before, after, "subsets")
    rows = [
        compare(
            old[places],
            new[places],
            name=str(subset),
            unit=unit,
            higher_is_better=higher_is_better,
            confidence=confidence,
            generator=generator,
        )
        for subset, places in places_of(subsets, len(old))
    ]
    corrected = holm([row.p_value for row in rows])
    return [replace(row, p_value=p) for row, p in zip(rows, corrected, strict=True)]


def percentile_interval(
    values: Numbers,
    *,
    generator: torch.Generator,
    confidence: float = 0.95,
    resamples: int = 10_000,
    name: str = "values",
) -> Interval:
    """Bootstrap interval of the mean by percentiles (Efron and Tibshirani 1993, ch. 13).

    For a paired comparison give the differences. Too narrow below some 20 examples.
    """
    array = _checked(values, name, confidence)
    tails = np.array([(1 - confidence) / 2, (1 + confidence) / 2])
    return _bootstrap(array, tails, _resampled_means(array, resamples, generator), confidence)


def bca_interval(
    values: Numbers,
    *,
    generator: torch.Generator,
    confidence: float = 0.95,
    resamples: int = 10_000,
    name: str = "values",
) -> Interval:
    """Bootstrap interval of the mean, bias-corrected and accelerated (Efron 1987, sec. 3 and 6).

    The acceleration is the jackknife's. Resamples equal to the estimate count half below it,
    so that few distinct values leave the bias near 0. For a paired comparison give the differences.
    """
    array = _checked(values, name, confidence)
    means = _resampled_means(array, resamples, generator)
    normal = NormalDist()
    offset = means - array.mean()
    rounding = 1e-9 * np.abs(array).max()  # equal means of other resamples round apart
    below = (np.mean(offset < -rounding) + np.mean(offset <= rounding)) / 2
    bias = normal.inv_cdf(float(np.clip(below, 0.5 / resamples, 1 - 0.5 / resamples)))
    centred = array - array.mean()
    spread = float((centred**2).sum()) ** 1.5
    acceleration = float((centred**3).sum()) / (6 * spread) if spread else 0.0
    tails = []
    for tail in ((1 - confidence) / 2, (1 + confidence) / 2):
        shifted = bias + normal.inv_cdf(tail)
        tails.append(normal.cdf(bias + shifted / (1 - acceleration * shifted)))
    return _bootstrap(array, np.array(tails), means, confidence)


def sign_flip_test(
    differences: Numbers,
    *,
    generator: torch.Generator,
    resamples: int = 10_000,
    name: str = "differences",
) -> float:
    """Two-sided p-value that paired differences are symmetric around 0 (Fisher 1935, sec. 21).

    Exact where all sign patterns are at most `resamples`; else sampled, with the observed pattern
    counted in, so that p is never 0 (Phipson and Smyth 2010, arXiv:1603.05766). Zeros carry no
    sign.
    """
    array = vector(differences, name)
    array = array[array != 0]
    if not len(array):
        return 1.0
    observed = abs(array.sum()) - 1e-9 * np.abs(array).sum()  # equal sums may round apart
    if 2 ** len(array) <= resamples:
        patterns = np.arange(2 ** len(array))[:, None] >> np.arange(len(array)) & 1
        return float(np.mean(np.abs((2 * patterns - 1) @ array) >= observed))
    extreme = 0
    for rows in _chunks(resamples, len(array)):
        signs = torch.randint(2, (rows, len(array)), generator=generator).numpy()
        extreme += int(np.sum(np.abs((2 * signs - 1) @ array) >= observed))
    return (1 + extreme) / (1 + resamples)


def mcnemar(before: Numbers, after: Numbers) -> float:
    """Exact two-sided p-value for paired 0/1 outcomes (McNemar 1947): binomial in the changes."""
    old, new = _paired(before, after, "McNemar's test")
    if not (np.isin(old, (0, 1)).all() and np.isin(new, (0, 1)).all()):
        raise ValueError("McNemar's test: outcomes must be 0 or 1; use sign_flip_test for others")
    gained, lost = int(np.sum(new > old)), int(np.sum(new < old))
    changed = gained + lost
    steps = np.arange(1, min(gained, lost) + 1)
    log_terms = np.concatenate([[0.0], np.cumsum(np.log((changed - steps + 1) / steps))])
    return float(min(1.0, 2 * np.exp(log_terms - changed * math.log(2)).sum()))


def win_rate(wins: int, ties: int, losses: int, *, confidence: float = 0.95) -> WinRate:
    """Share won, a tie counting half, with Wilson's interval.

    Numbers between 0 and 1 of mean p vary by at most p(1-p), so ties only make it conservative.
    """
    if min(wins, ties, losses) < 0:
        raise ValueError(f"win rate: counts must be at least 0; found {(wins, ties, losses)}")
    n, won = wins + ties + losses, wins + ties / 2
    low, high = wilson_interval(won, n, confidence=confidence)
    return WinRate(wins, ties, losses, won / n, low, high)


def t_interval(values: Numbers, *, confidence: float = 0.95, name: str = "runs") -> Interval:
    """Mean over several seeds or runs, with Student's interval (Student 1908)."""
    array = _checked(values, name, confidence)
    n, mean = len(array), float(array.mean())
    if n == 1:
        return Interval(mean, None, None, confidence, 1)
    half = student_quantile(confidence, n - 1) * float(array.std(ddof=1)) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, confidence, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for how many they are (Holm 1979): reject what stays below the level."""
    array = vector(p_values, "p-values") if len(p_values) else np.zeros(0)
    if ((array < 0) | (array > 1)).any():
        raise ValueError(f"p-values: must lie from 0 to 1; found {list(p_values)}")
    order = np.argsort(array, kind="stable")
    scaled = array[order] * np.arange(len(array), 0, -1)
    corrected = np.empty_like(array)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(scaled))
    return [float(p) for p in corrected]


def student_quantile(confidence: float, freedom: int) -> float:
    """Return the t that holds `confidence` of Student's distribution between -t and t.

    By bisection of the finite sums for whole degrees of freedom (Abramowitz and Stegun 1964,
    26.7.3 and 26.7.4, with theta = atan(t / sqrt(freedom))).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(80):
        theta = (low + high) / 2
        low, high = (theta, high) if _student_mass(theta, freedom) < confidence else (low, theta)
    return math.tan(low) * math.sqrt(freedom)


def vector(values: Numbers, name: str) -> Array:
    """Return one float64 per example; refuses none at all and what is not finite."""
    if isinstance(values, Tensor):
        values = values.detach().cpu().double().numpy()
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or not len(array):
        found = f"shape {list(array.shape)}" if array.ndim != 1 else "0"
        raise ValueError(f"{name}: needs one number for each of at least 1 example; found {found}")
    wrong = np.flatnonzero(~np.isfinite(array))
    if len(wrong):
        raise ValueError(
            f"{name}: all {len(array)} numbers must be finite; found {array[wrong[0]]} at place "
            f"{wrong[0]} and {len(wrong)} such in all; look at those examples first"
        )
    return array


def places_of(subsets: Sequence[Hashable], n: int) -> Iterator[tuple[Hashable, Array]]:
    """Yield each subset's name and where its examples stand, in order of first appearance."""
    if len(subsets) != n:
        raise ValueError(f"subsets: needs one name per example; found {len(subsets)} for {n}")
    for subset in dict.fromkeys(subsets):
        yield subset, np.array([i for i, own in enumerate(subsets) if own == subset])


def _paired(before: Numbers, after: Numbers, name: str) -> tuple[Array, Array]:
    old, new = vector(before, f"{name} before"), vector(after, f"{name} after")
    if len(old) != len(new):
        raise ValueError(
            f"{name}: before and after must be of the same examples; "
            f"found {len(old)} and {len(new)}"
        )
    return old, new


def _checked(values: Numbers, name: str, confidence: float) -> Array:
    normal_quantile(confidence)
    return vector(values, name)


def _chunks(rows: int, width: int) -> Iterator[int]:
    size = max(1, CHUNK // width)
    for start in range(0, rows, size):
        yield min(size, rows - start)


def _resampled_means(array: Array, resamples: int, generator: torch.Generator) -> Array:
    n = len(array)
    parts = [
        array[torch.randint(n, (rows, n), generator=generator).numpy()].mean(-1)
        for rows in _chunks(resamples, n)
    ]
    return np.concatenate(parts)


def _bootstrap(array: Array, tails: Array, means: Array, confidence: float) -> Interval:
    mean = float(array.mean())
    if len(array) == 1:
        return Interval(mean, None, None, confidence, 1)
    if (array == array[0]).all():  # resampled means of equal values differ by rounding only
        return Interval(mean, mean, mean, confidence, len(array))
    low, high = np.quantile(means, tails)
    return Interval(mean, float(low), float(high), confidence, len(array))


def _student_mass(theta: float, freedom: int) -> float:
    cosine, term, total = math.cos(theta), 1.0, 0.0
    if freedom % 2:
        term = cosine
        for k in range(1, freedom - 1, 2):
            total += term
            term *= cosine**2 * (k + 1) / (k + 2)
        return 2 / math.pi * (theta + math.sin(theta) * total)
    for k in range(0, freedom - 1, 2):
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
    return math.sin(theta) * total
