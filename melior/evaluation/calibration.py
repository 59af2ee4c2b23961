"""Do margins mean what they say: reliability, and the temperature at which they are honest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from melior.evaluation.compare import Array, Numbers, vector


@dataclass(frozen=True)
class Bin:
    """Pairs of like confidence: how sure the model was, and how often it was right."""

    n: int
    confidence: float
    accuracy: float


def reliability(margins: Numbers, *, n_bins: int = 10) -> tuple[Bin, ...]:
    """Return the reliability diagram of preferences: bins that hold pairs, of equal width.

    Guo et al. 2017, arXiv 1706.04599, sec. 2: the confidence is the probability `sigmoid(|h|)` of
    the answer that is preferred, from 0.5 to 1; a margin of 0 is half right.
    """
    h = vector(margins, "margins")
    confidence = np.exp(-np.logaddexp(0.0, -np.abs(h)))
    right = (np.sign(h) + 1) / 2
    place = np.minimum((2 * (confidence - 0.5) * n_bins).astype(int), n_bins - 1)
    parts = [place == i for i in range(n_bins)]
    return tuple(
        Bin(int(own.sum()), float(confidence[own].mean()), float(right[own].mean()))
        for own in parts
        if own.any()
    )


def calibration_error(bins: Sequence[Bin]) -> float:
    """Return the expected calibration error: how far the bins are off, by their sizes (eq. 3)."""
    total = sum(one.n for one in bins)
    return sum(one.n * abs(one.accuracy - one.confidence) for one in bins) / total


def fit_temperature(margins: Numbers) -> float:
    """Return the T for which `sigmoid(h / T)` is most likely to have labelled held-out pairs.

    Guo et al. 2017, arXiv 1706.04599, sec. 4.2, for two classes: the minimum over T of the mean of
    `-log sigmoid(h / T)`, convex in `1 / T`. Above 1 the margins were too bold.

    Args:
        margins: of pairs the reward model was not trained on: chosen minus rejected, before any
            temperature.

    Raises:
        ValueError: no T above 0 is the best one, since all pairs are ranked right, or the pairs
            are on the whole ranked wrong.
    """
    h = vector(margins, "margins")
    if not h.min() < 0:
        raise ValueError(
            "calibration: needs held-out pairs of which some are ranked wrong, or the temperature"
            f" would be 0; found {len(h)} pairs, all ranked right; give more pairs"
        )
    if h.sum() <= 0:
        raise ValueError(
            "calibration: needs a reward model that ranks pairs better than chance; found a mean"
            f" margin of {h.mean():.3g} on held-out pairs"
        )
    low, high = 0.0, 1.0 / float(np.abs(h).max())
    while _slope(h, high) < 0:
        low, high = high, 2 * high
    for _ in range(200):  # halved until two neighbouring floats are left
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if _slope(h, middle) < 0 else (low, middle)
    return 1 / high


def pair_loss(margins: Numbers) -> float:
    """Return the mean of `-log sigmoid(h)`: what Bradley-Terry's loss is on these pairs."""
    return float(np.logaddexp(0.0, -vector(margins, "margins")).mean())


def _slope(h: Array, inverse: float) -> float:
    """Derivative of the summed loss by 1 / T: it only rises."""
    return -float((h * np.exp(-np.logaddexp(0.0, inverse * h))).sum())
