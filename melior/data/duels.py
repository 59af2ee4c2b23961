"""The pairs within groups of answers: of k answers, k (k - 1) / 2, the better one of each first."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior.data.batches import GroupBatch


@dataclass(frozen=True)
class Duels:
    """`p` pairs of answers of a batch."""

    better: Int[Tensor, " p"]
    """Sequence of the forest that is preferred, or either of two equal ones, ..."""
    worse: Int[Tensor, " p"]
    """... and the other one."""
    groups: Int[Tensor, " p"]
    """Row of the batch that both answer."""
    shares: Float[Tensor, " p"]
    """In which the better one is preferred, from a half (nobody knows) to 1."""
    each: Float[Tensor, " p"]
    """What a pair counts, so that those of a group add up to 1, ..."""
    decided: Float[Tensor, " p"]
    """... and what it counts among its group's pairs of which one is preferred; 0 for a tie."""


def duels(batch: GroupBatch) -> Duels:
    """Return all pairs of a batch; answers of equal scores are one of which nobody knows.

    What has no score (one that is nan) is read, and in no pair.
    """
    found = [
        (row, *_ordered((members[i], scores[i]), (members[j], scores[j]), share))
        for row, (members, scores, share) in enumerate(
            zip(batch.members.tolist(), batch.scores.tolist(), batch.shares.tolist(), strict=True)
        )
        for i, j in combinations(range(len(members)), 2)
        if members[j] >= 0 and not math.isnan(scores[i] + scores[j])
    ]
    all_of = Counter(row for row, *_ in found)
    decided_of = Counter(row for row, *_, share in found if share > 0.5)
    return Duels(
        better=torch.tensor([better for _, better, _, _ in found], dtype=torch.long),
        worse=torch.tensor([worse for _, _, worse, _ in found], dtype=torch.long),
        groups=torch.tensor([row for row, *_ in found], dtype=torch.long),
        shares=torch.tensor([share for *_, share in found], dtype=torch.float64),
        each=torch.tensor([1 / all_of[row] for row, *_ in found], dtype=torch.float64),
        decided=torch.tensor(
            [(share > 0.5) / max(1, decided_of[row]) for row, *_, share in found],
            dtype=torch.float64,
        ),
    )


def _ordered(
    one: tuple[int, float], other: tuple[int, float], share: float
) -> tuple[int, int, float]:
    """Return the better of two answers, the other, and the share in which it is preferred."""
    if one[1] == other[1]:
        return one[0], other[0], 0.5
    better, worse = (one, other) if one[1] > other[1] else (other, one)
    if share < 0.5:
        better, worse, share = worse, better, 1 - share
    return better[0], worse[0], share
