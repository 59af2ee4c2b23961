"""Scores of a trained reward model: of the candidates of groups, and of both answers of pairs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any, TypeVar

from jaxtyping import Float
from torch import Tensor

from melior.models.heads import RewardModel, load_reward_model, rewards_of
from melior.models.trial import refuse_disagreement
from melior.options import ModelOptions
from melior.records import Group, Pair
from melior.rewards.fitting import Fitting, Row

CHUNK = 256
"""Rows read, sorted by length and computed together; they come out in their order."""
R = TypeVar("R", Group, Pair)


class ScalarScorer:
    """A reward model that scores records as they come by.

    A conversation beyond what the model takes in loses the start of its prompt; the answer is
    always judged whole.

    Args:
        model: the reward model.
        max_tokens: computed at once; a prompt counts once for all its answers.
        max_length: of prompt and answer together; 0 is as long as the model can.
    """

    def __init__(self, model: RewardModel, *, max_tokens: int, max_length: int = 0) -> None:
        self.model = model
        self.max_tokens = max_tokens
        limit = min(max_length or model.longest, model.longest)
        self.fitting = Fitting(model.chat, limit)

    def groups(self, groups: Iterable[Group]) -> Iterator[Group]:
        """Yield groups with a score for each candidate, and None where it is too long.

        Raises:
            ValueError: a conversation cannot be written, or a reward is not finite.
        """
        for chunk in _chunks(groups):
            rows = [(g.prompt, [one.response for one in g.candidates], g.origin) for g in chunk]
            for group, scores in zip(chunk, self._scores(rows), strict=True):
                scored = zip(group.candidates, scores, strict=True)
                yield replace(group, candidates=tuple(replace(c, score=s) for c, s in scored))

    def pairs(self, pairs: Iterable[Pair]) -> Iterator[tuple[Pair, float | None, float | None]]:
        """Yield pairs with the rewards of their chosen and their rejected answer.

        Raises:
            ValueError: as for groups.
        """
        for chunk in _chunks(pairs):
            rows = [(pair.prompt, [pair.chosen, pair.rejected], pair.origin) for pair in chunk]
            for pair, (chosen, rejected) in zip(chunk, self._scores(rows), strict=True):
                yield pair, chosen, rejected

    def about(self, name: str, *, temperature: float = 1.0) -> dict[str, Any]:
        """Return what is stored with rewards: by what, and divided by which temperature."""
        return {"name": name, **self.model.identity, "temperature": temperature}

    def remarks(self) -> list[str]:
        """Say what was done to conversations that are too long."""
        return self.fitting.remarks()

    def _scores(self, rows: Sequence[Row]) -> list[list[float | None]]:
        fitted = self.fitting.rows(rows)
        asked = [[one for one in group if one is not None] for group in fitted]
        refuse_disagreement(self.model, zip((origin for *_, origin in rows), asked, strict=True))
        found = rewards_of(self.model, asked, max_tokens=self.max_tokens)
        for (_, _, origin), rewards in zip(rows, found, strict=True):
            _check(rewards, origin)
        given = [iter(rewards.tolist()) for rewards in found]
        return [
            [None if one is None else next(own) for one in group]
            for group, own in zip(fitted, given, strict=True)
        ]


def with_margin(pair: Pair, chosen: float, rejected: float, about: Mapping[str, Any]) -> Pair:
    """Return a pair that holds its rewards, their margin, and where they come from."""
    own = {"reward_chosen": chosen, "reward_rejected": rejected, "reward_model": dict(about)}
    return replace(pair, margin=chosen - rejected, facts={**pair.facts, **own})


def load_scorer(options: ModelOptions, *, max_tokens: int, max_length: int = 0) -> ScalarScorer:
    """Load a trained reward model to score with.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: it is no reward model, or has a head that nothing has trained.
    """
    model = load_reward_model(options, trainable=False)
    if model.is_fresh:
        raise ValueError(
            f"{options.model}: scoring needs a trained reward model; found a language model,"
            " without a head; train one with melior train-reward"
        )
    return ScalarScorer(model, max_tokens=max_tokens, max_length=max_length)


def _check(rewards: Float[Tensor, " n"], origin: str) -> None:
    if not rewards.isfinite().all():
        raise ValueError(
            f"{origin}: a reward must be finite; found {rewards.tolist()}; the reward model is"
            " broken, or its numbers outgrow its dtype: try --dtype fp32"
        )


def _chunks(records: Iterable[R]) -> Iterator[list[R]]:
    rest = iter(records)
    while chunk := list(islice(rest, CHUNK)):
        yield chunk
