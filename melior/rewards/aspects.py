"""Scores of a mixture of objectives: each candidate's ratings, their mixture, and why (ArmoRM)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from melior.data.chat import Encoded
from melior.models.aspects import AspectModel, Mixed, load_aspect_model
from melior.models.trial import refuse_disagreement
from melior.options import ModelOptions
from melior.records import Candidate, Group
from melior.rewards.fitting import Fitting
from melior.types import Scorer

CHUNK = 256
"""Groups read, sorted by length and computed together; they come out in their order."""


class AspectScorer:
    """Gives candidates a score, and the rating by each objective on the scale of its raters.

    A conversation beyond what the model takes in loses the start of its prompt; the answer is
    always judged whole.

    Args:
        model: what scores.
        max_tokens: computed at once; a prompt counts once for all its answers.
        max_length: of prompt and answer together; 0 is as long as the model can.
    """

    def __init__(self, model: AspectModel, *, max_tokens: int, max_length: int = 0) -> None:
        self.model = model
        self.max_tokens = max_tokens
        longest = model.reward.longest
        limit = min(max_length or longest, longest)
        self.fitting = Fitting(model.reward.chat, limit, opening=model.opening)
        self.explains = False
        """Whether each candidate's facts get an `explanation`."""

    def groups(self, groups: Iterable[Group]) -> Iterator[Group]:
        """Yield groups with scores and ratings of their candidates, None where one is too long.

        Raises:
            ValueError: a conversation cannot be written, or a score is not finite.
        """
        rest = iter(groups)
        while chunk := list(islice(rest, CHUNK)):
            fitted = self.fitting.groups(chunk)
            asked = [[one for one in own if one] for own in fitted]
            refuse_disagreement(
                self.model.reward, zip((g.origin for g in chunk), asked, strict=True)
            )
            mixed = iter(
                self.model.mixed([own for own in asked if own], max_tokens=self.max_tokens)
            )
            for group, own in zip(chunk, fitted, strict=True):
                yield self._scored(group, own, next(mixed)) if any(own) else _unscored(group)

    def remarks(self) -> list[str]:
        """Say what was done to conversations that are too long."""
        return self.fitting.remarks()

    def _scored(self, group: Group, fitted: Sequence[Encoded | None], mixed: Mixed) -> Group:
        if not mixed.scores.isfinite().all():
            raise ValueError(
                f"{group.origin}: a score must be finite; found {mixed.scores.tolist()}; the model"
                " is broken, or its numbers outgrow its dtype: try --dtype fp32"
            )
        places = iter(range(len(mixed.scores)))
        found = (
            self._told(one, mixed, next(places)) if own else replace(one, score=None)
            for one, own in zip(group.candidates, fitted, strict=True)
        )
        return replace(group, candidates=tuple(found))

    def _told(self, candidate: Candidate, mixed: Mixed, place: int) -> Candidate:
        rewards, aspects = mixed.rewards[place], self.model.aspects
        facts = dict(candidate.facts)
        if self.explains:
            facts["explanation"] = aspects.explanation(rewards, mixed.coefficients)
        ratings = {**candidate.aspects, **aspects.ratings(rewards)}
        return replace(candidate, score=float(mixed.scores[place]), aspects=ratings, facts=facts)


def load_scorer(options: ModelOptions, *, max_tokens: int, max_length: int = 0) -> AspectScorer:
    """Load a mixture of objectives to score with.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: its parts are not of one model.
    """
    model = load_aspect_model(options)
    return AspectScorer(model, max_tokens=max_tokens, max_length=max_length)


def explaining(scorer: Scorer) -> Scorer:
    """Let the scorer of a mixture say why."""
    assert isinstance(scorer, AspectScorer)
    scorer.explains = True
    return scorer


def _unscored(group: Group) -> Group:
    return replace(group, candidates=tuple(replace(one, score=None) for one in group.candidates))
