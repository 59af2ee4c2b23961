"""Intervals of shares and quantiles of the normal distribution; needs neither torch nor numpy."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson_interval(
    successes: int | float, n: int, *, confidence: float = 0.95
) -> tuple[float, float]:
    """Score interval of a share (Wilson 1927): sound near 0 and 1 and for small n."""
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"a share: needs at least 1 trial and from 0 to n successes; found {successes:g} of {n}"
        )
    z = normal_quantile(confidence)
    share = successes / n
    centre = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return max(0.0, centre - half), min(1.0, centre + half)


def normal_quantile(confidence: float) -> float:
    """Return the z that holds `confidence` of the normal distribution between -z and z."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be above 0 and below 1; found {confidence:g}")
    return NormalDist().inv_cdf((1 + confidence) / 2)
