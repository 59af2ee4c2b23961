"""How alike scorers rank, and whether a comparison goes round in circles."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from melior.evaluation.compare import Numbers, vector


def agreement(first: Numbers, second: Numbers) -> float:
    """Return the share of pairs that two scorers rank alike, by their margins on the same pairs.

    A tie of one alone is half alike, a tie of both wholly.
    """
    left, right = vector(first, "margins"), vector(second, "margins")
    if len(left) != len(right):
        raise ValueError(f"agreement: needs the same pairs; found {len(left)} and {len(right)}")
    return float((1 - np.abs(np.sign(left) - np.sign(right)) / 2).mean())


def majority(scores: Sequence[Sequence[float]]) -> Float[np.ndarray, "k k"]:
    """Return how many more of several scorers put each of k answers above each other one.

    Antisymmetric like any comparator's logits, and cyclic where opinions are (Condorcet 1785).
    """
    stacked = np.asarray(scores, dtype=np.float64)
    return np.sign(stacked[:, :, None] - stacked[:, None, :]).sum(0)


def cycles(logits: Float[np.ndarray, "k k"]) -> tuple[int, int]:
    """Count the triples of answers that go round in a circle, and all triples without a tie.

    Args:
        logits: above 0 where the row's answer beats the column's; antisymmetric. Where that is not
            known, they are nan, and decide no triple.
    """
    wins = np.sign(np.nan_to_num(logits))
    cyclic = decided = 0
    for a, b, c in itertools.combinations(range(len(wins)), 3):
        around = wins[a, b], wins[b, c], wins[c, a]
        decided += 0 not in around
        cyclic += abs(sum(around)) == 3
    return int(cyclic), int(decided)
