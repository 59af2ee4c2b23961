"""Does a scorer know where it errs: which pairs are ranked wrong, told by how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from melior.evaluation.compare import Array, Numbers, vector
from melior.evaluation.preferences import correct
from melior.intervals import normal_quantile

SHARES: Final = tuple(i / 10 for i in range(1, 11))
"""Of the pairs, the surest first, of which the accuracy is kept."""


@dataclass(frozen=True)
class Ranking:
    """How well a number tells pairs ranked right from pairs ranked wrong."""

    value: float
    """The chance that of a right and a wrong pair it is the greater for the right one; 0.5 knows
    nothing."""
    low: float | None
    """Of the 95 % interval; None where one side has a single pair, or the two never mix."""
    high: float | None
    n_right: int
    n_wrong: int


@dataclass(frozen=True)
class Sureness:
    """What one way to be sure is worth."""

    by: str
    auroc: Ranking | None
    """None where all pairs are ranked right, or all wrong."""
    accuracies: tuple[float, ...]
    """Among the surest tenth of the pairs, two tenths, ..., all: `SHARES`."""
    risk: float
    """Share ranked wrong among the surest pairs, averaged over how many are taken (AURC)."""
    least_risk: float
    """The same, had every pair that is ranked right been surer than any other."""


def sureness(margins: Numbers, members: Sequence[Numbers] = ()) -> tuple[Sureness, ...]:
    """Judge the size of the margin as a sign of being right; of an ensemble, what lies apart, too.

    Args:
        margins: of pairs: better minus worse answer.
        members: the same margins by each member of an ensemble; constants of a prompt, which its
            members may differ by, are not in a margin.
    """
    h = vector(margins, "margins")
    signs = {"size of the margin": np.abs(h)}
    if members:
        spread = np.stack([vector(own, "a member's margins") for own in members]).std(0)
        signs["members close together"] = -spread
        # Equal members are wholly sure, but of a tie nobody is.
        over = np.divide(np.abs(h), spread, out=np.full_like(h, math.inf), where=spread > 0)
        signs["margin over spread"] = np.where(h == 0, 0.0, over)
    return tuple(_judged(name, sign, correct(h)) for name, sign in signs.items())


def auroc(sign: Array, right: Array) -> Ranking | None:
    """Return the area under the curve of a sign of being right, with DeLong's interval.

    DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44. Ties of the sign are half; pairs that are
    half right, themselves ties, are left out.

    Args:
        sign: of each pair, greater where it is surer.
        right: 1, 0, or 0.5.
    """
    above, below = sign[right == 1], sign[right == 0]
    if not len(above) or not len(below):
        return None
    wins, losses = _shares_below(above, below), 1 - _shares_below(below, above)
    value = float(wins.mean())
    low = high = None
    if min(len(above), len(below)) > 1:
        error = math.sqrt(wins.var(ddof=1) / len(above) + losses.var(ddof=1) / len(below))
        if error > 0:
            reach = normal_quantile(0.95) * error
            low, high = max(0.0, value - reach), min(1.0, value + reach)
    return Ranking(value, low, high, len(above), len(below))


def risks(sign: Array, right: Array) -> Array:
    """Return the share ranked wrong among the surest 1, 2, ..., n pairs.

    The risk-coverage curve of El-Yaniv and Wiener 2010, JMLR 11. Pairs of one sureness come in any
    order: each counts as their mean.
    """
    values, block, sizes = np.unique(-sign, return_inverse=True, return_counts=True)
    wrong = np.bincount(block, weights=1 - right, minlength=len(values)) / sizes
    return np.cumsum(np.repeat(wrong, sizes)) / np.arange(1, len(sign) + 1)


def _judged(name: str, sign: Array, right: Array) -> Sureness:
    found = risks(sign, right)
    places = [math.ceil(share * len(found) - 1e-9) - 1 for share in SHARES]
    return Sureness(
        name,
        auroc(sign, right),
        tuple(float(1 - found[place]) for place in places),
        float(found.mean()),
        float(risks(right, right).mean()),
    )


def _shares_below(values: Array, others: Array) -> Array:
    """Return for each value which share of the others is below it, equal ones half."""
    ordered = np.sort(others)
    places = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return places / (2 * len(ordered))
