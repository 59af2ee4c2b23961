"""Whether counts fit exact probabilities."""

import math
from statistics import NormalDist

import numpy as np


def fits(counts, probabilities, *, false_alarm: float = 1e-4) -> bool:
    """Pearson's chi-square test; cells that are expected less than 5 times are pooled.

    The quantile is Wilson and Hilferty's (1931), which is off by less than 1 % here.
    """
    counts, probabilities = np.asarray(counts, float), np.asarray(probabilities, float)
    expected = probabilities * np.sum(counts)
    assert abs(np.sum(probabilities) - 1) < 1e-9
    assert (counts[expected == 0] == 0).all()
    rare = expected < 5
    observed = [*counts[~rare], counts[rare].sum()]
    wanted = [*expected[~rare], expected[rare].sum()]
    cells = [(o, w) for o, w in zip(observed, wanted, strict=True) if w > 0]
    statistic = sum((o - w) ** 2 / w for o, w in cells)
    freedom = len(cells) - 1
    spread = 2 / (9 * freedom)
    z = NormalDist().inv_cdf(1 - false_alarm)
    return statistic < freedom * (1 - spread + z * math.sqrt(spread)) ** 3
