"""Two answers compared in both orders: the verdict, and what a group's verdicts come to together.

A verdict is the mean of both orders' probabilities (Dong et al. 2024, arXiv 2405.07863), so that it
is exactly the contrary of the one on the exchanged answers. What is missing is no number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

Match = tuple[int, int]
"""Places of two candidates of a group, the earlier one first."""
Logits = list[list[float | None]]
CERTAIN = 37.0
"""A logit whose probability is 1 to the last bit: what is stored in place of a larger one, which
may be infinite."""


@dataclass(frozen=True)
class Verdict:
    """What is said of a comparison: the logit that the left answer wins, in each order."""

    left_first: float | None
    right_first: float | None

    @property
    def logit(self) -> float | None:
        """Of the mean of both orders' probabilities; infinite where spoken replies agree.

        Exactly the negative of the verdict on the exchanged comparison.
        """
        if self.left_first is None or self.right_first is None:
            return None
        both = self.left_first, self.right_first
        wins = _log_sum(*map(_log_sigmoid, both))
        return wins - _log_sum(*(_log_sigmoid(-one) for one in both))

    @property
    def win(self) -> float | None:
        """The probability that the left answer wins."""
        return None if self.logit is None else sigmoid(self.logit)

    @property
    def disagrees(self) -> bool:
        """Each order has another winner."""
        return (self.left_first or 0.0) * (self.right_first or 0.0) < 0


TIE = Verdict(0.0, 0.0)
"""Of equal answers."""
UNKNOWN = Verdict(None, None)


def pairings(k: int) -> list[Match]:
    """Return every two of k candidates, once."""
    return list(combinations(range(k), 2))


def mean_wins(k: int, verdicts: Mapping[Match, Verdict]) -> list[float | None]:
    """Return each candidate's mean probability to win over the others; None where none is known.

    Args:
        k: candidates of a group.
        verdicts: on its matches, the earlier candidate on the left.
    """
    wins: list[list[float]] = [[] for _ in range(k)]
    for (left, right), verdict in verdicts.items():
        if verdict.logit is not None:
            wins[left].append(sigmoid(verdict.logit))
            wins[right].append(sigmoid(-verdict.logit))
    return [sum(own) / len(own) if own else None for own in wins]


def logit_facts(k: int, verdicts: Mapping[Match, Verdict]) -> dict[str, Logits]:
    """Return what a group's facts hold of its comparisons, with None where nothing is known.

    `comparisons` are the logits of both orders' mean that the row beats the column: antisymmetric,
    0 on the diagonal. `orders` are those of the order in which the row is shown first.

    Args:
        k: candidates of the group.
        verdicts: on its matches, the earlier candidate on the left.
    """
    mean: Logits = [[0.0 if i == j else None for j in range(k)] for i in range(k)]
    first: Logits = [[None] * k for _ in range(k)]
    for (left, right), verdict in verdicts.items():
        if verdict.logit is not None:
            mean[left][right], mean[right][left] = _stored(verdict.logit), _stored(-verdict.logit)
        if verdict.left_first is not None:
            first[left][right] = _stored(verdict.left_first)
        if verdict.right_first is not None:
            first[right][left] = _stored(-verdict.right_first)
    return {"comparisons": mean, "orders": first}


def completed(logits: Sequence[Sequence[float | None]]) -> Logits:
    """Return a group's logits with those that follow from the others, where nothing contradicts.

    In a knock-out there is one way from each candidate to another, so that Bradley-Terry rewards
    explain all matches exactly, and a match that was not played has the difference of theirs: the
    sum of the logits along the way. Where there are circles, gaps stay gaps.
    """
    k = len(logits)
    beaten = [[j for j in range(k) if j != i and logits[i][j] is not None] for i in range(k)]
    found: Logits = [list(row) for row in logits]
    for start in range(k):
        rewards, waiting = {start: 0.0}, [(start, start)]
        while waiting:
            here, before = waiting.pop()
            for other in beaten[here]:
                if other != before and other in rewards:
                    return [list(row) for row in logits]
                if other not in rewards:
                    rewards[other] = rewards[here] - (logits[here][other] or 0.0)
                    waiting.append((other, here))
        for other, reward in rewards.items():
            if found[start][other] is None and other != start:
                found[start][other] = -reward
    return found


def sigmoid(x: float) -> float:
    """Return the probability of a logit, which may be infinite."""
    return math.exp(_log_sigmoid(x))


def _stored(logit: float) -> float:
    """Return a logit that JSON can hold."""
    return max(-CERTAIN, min(CERTAIN, logit))


def _log_sigmoid(x: float) -> float:
    return -_log_sum(0.0, -x)


def _log_sum(x: float, y: float) -> float:
    """Return log(exp(x) + exp(y))."""
    high, low = max(x, y), min(x, y)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
