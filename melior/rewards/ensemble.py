"""Several scorers as one: what they say together, and how far they lie apart.

Reward models that rank the pairs of a test alike may still disagree on answers unlike those they
were trained on, and a policy finds the answers that one of them overrates. What all of them say
is harder to deceive (Coste et al. 2023, arXiv 2310.02743; Eisenstein et al. 2023, arXiv
2312.09244), as far as they do not err alike. Needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import tee
from typing import TYPE_CHECKING, Final

import numpy as np
from jaxtyping import Float

from melior.options import EnsembleOptions
from melior.records import Candidate, Group

if TYPE_CHECKING:
    from melior.types import Scorer

FACT: Final = "ensemble"
"""A candidate's fact: `scores` of the members, scaled as asked; `spread`, their deviation."""
Scores = Float[np.ndarray, "m k"]


class EnsembleScorer:
    """Scorers that score together; all of them are held at once.

    A candidate that one of them cannot score has no score: a mean over fewer members is another
    number than that of its rivals.

    Args:
        members: two or more, by name.
        options: how their scores become one.

    Raises:
        ValueError: there are fewer than two.
    """

    def __init__(self, members: Mapping[str, Scorer], options: EnsembleOptions) -> None:
        if len(members) < 2:
            raise ValueError(
                f"an ensemble needs two different scorers or more; found {', '.join(members)}"
            )
        self.members = dict(members)
        self.options = options
        self.n_missing = 0
        """Candidates so far that some member could not score."""

    def groups(self, groups: Iterable[Group]) -> Iterator[Group]:
        """Yield groups with the scores of all members together; each reads ahead as it does alone.

        Raises:
            ValueError: a member cannot score a group.
        """
        own, *copies = tee(groups, len(self.members) + 1)
        scored = [one.groups(copy) for one, copy in zip(self.members.values(), copies, strict=True)]
        for said in zip(*scored, strict=True):
            yield self._together(next(own), said)

    def remarks(self) -> list[str]:
        """Say what each member has to say, and how many candidates were left without a score."""
        found = [
            f"{name}: {remark}" for name, one in self.members.items() for remark in one.remarks()
        ]
        if self.n_missing:
            found.append(f"{self.n_missing} answers have no score, as a member could give none")
        return found

    def _together(self, group: Group, said: Sequence[Group]) -> Group:
        columns = [[one.score for one in other.candidates] for other in said]
        rows = list(zip(*columns, strict=True))
        places = [i for i, row in enumerate(rows) if None not in row]
        self.n_missing += len(rows) - len(places)
        known = np.array([rows[i] for i in places], dtype=np.float64)
        scores = SCALES[self.options.ensemble_scale](known.reshape(-1, len(said)).T)
        together = AGGREGATES[self.options.ensemble_by](scores, self.options.ensemble_coefficient)
        candidates = [replace(one, score=None) for one in group.candidates]
        for i, value, own in zip(places, together, scores.T, strict=True):
            candidates[i] = self._scored(candidates[i], float(value), own)
        return replace(group, candidates=tuple(candidates))

    def _scored(self, one: Candidate, value: float, own: Float[np.ndarray, " m"]) -> Candidate:
        scores = dict(zip(self.members, own.tolist(), strict=True))
        fact = {"scores": scores, "spread": float(own.std())}
        return replace(one, score=value, facts={**one.facts, FACT: fact})


def mean(scores: Scores, coefficient: float) -> Float[np.ndarray, " k"]:
    """Return the members' mean."""
    return scores.mean(0)


def median(scores: Scores, coefficient: float) -> Float[np.ndarray, " k"]:
    """Return the members' median: one member alone moves it little (Eisenstein et al., sec. 4)."""
    return np.median(scores, 0)


def worst(scores: Scores, coefficient: float) -> Float[np.ndarray, " k"]:
    """Return what the strictest member says: worst-case optimisation (Coste et al., sec. 3)."""
    return scores.min(0)


def mean_minus_std(scores: Scores, coefficient: float) -> Float[np.ndarray, " k"]:
    """Return the mean less the coefficient times the standard deviation over members."""
    return scores.mean(0) - coefficient * scores.std(0)


def mean_minus_variance(scores: Scores, coefficient: float) -> Float[np.ndarray, " k"]:
    """Return the mean less the coefficient times the variance over members.

    Coste et al., sec. 3: uncertainty-weighted optimisation; the coefficient is their lambda.
    """
    return scores.mean(0) - coefficient * scores.var(0)


AGGREGATES: Final[dict[str, Callable[[Scores, float], Float[np.ndarray, " k"]]]] = {
    one.__name__: one for one in (mean, median, worst, mean_minus_std, mean_minus_variance)
}
"""By `--ensemble-by`."""


def raw(scores: Scores) -> Scores:
    """Return scores as they are."""
    return scores


def centred(scores: Scores) -> Scores:
    """Take each member's mean over the prompt's answers off.

    A reward model knows rewards only up to a constant of the prompt, so that members trained apart
    differ by constants that say nothing of an answer, but much of a minimum or a spread.
    """
    return scores - scores.mean(1, keepdims=True) if scores.size else scores


def standardised(scores: Scores) -> Scores:
    """Bring each member's scores of a prompt's answers to mean 0 and standard deviation 1.

    Equal ones are 0. How sure a member is goes, and so does its unit.
    """
    around = centred(scores)
    size = around.std(1, keepdims=True) if scores.size else around
    return np.divide(around, size, out=np.zeros_like(around), where=size > 0)


SCALES: Final[dict[str, Callable[[Scores], Scores]]] = {
    one.__name__: one for one in (raw, centred, standardised)
}
"""By `--ensemble-scale`."""
