"""Do margins mean what they say: the temperature at which their probabilities are honest."""

from __future__ import annotations

import numpy as np

from melior.evaluation.compare import Array, Numbers, vector


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
