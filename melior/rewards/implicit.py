"""Implicit rewards: how much more probable an answer is to a trained model than to its start."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from melior.data.batches import TokenGroup, Tokens
from melior.models.language import LanguageModel
from melior.models.likelihood import token_log_probs
from melior.models.loading import load
from melior.models.names import policy_and_reference
from melior.models.trial import refuse_disagreement
from melior.options import ModelOptions
from melior.records import Group

CHUNK = 256
"""Groups read, sorted by length and computed together; they come out in their order."""


class ImplicitScorer:
    """The log-ratio of two models as a score: log policy(y|x) - log reference(y|x), in nats.

    Times beta it is the reward that DPO's policy is the optimum of, up to a constant of the prompt
    (Rafailov et al. 2023, arXiv 2305.18290, eq. 5), so it ranks answers to one prompt; scores of
    different prompts are not comparable. A prompt is computed once for all its answers.

    Args:
        policy: the trained model; both are prompted by its chat format.
        reference: the model that it started from.
        max_tokens: computed at once.
        max_length: of prompt and answer together; 0 is as long as both models can.

    Raises:
        ValueError: the models have different vocabularies.
    """

    def __init__(
        self,
        policy: LanguageModel,
        reference: LanguageModel,
        *,
        max_tokens: int,
        max_length: int = 0,
    ) -> None:
        if policy.chat.tokenizer.get_vocab() != reference.chat.tokenizer.get_vocab():
            raise ValueError(
                "an implicit reward needs two models of one vocabulary; found different ones;"
                " give the model that the policy was trained from"
            )
        self.policy = policy
        self.reference = reference
        self.max_tokens = max_tokens
        limits = [_positions(model) for model in (policy, reference)]
        self.max_length = min(
            [limit for limit in (max_length, *limits) if limit], default=sys.maxsize
        )
        self.too_long: list[str] = []
        """Origins of answers so far that were too long; they have no score."""

    def groups(self, groups: Iterable[Group]) -> Iterator[Group]:
        """Yield groups with a score for each candidate, and None where it is too long.

        Raises:
            ValueError: a conversation cannot be written, or a score is not finite.
        """
        rest = iter(groups)
        while chunk := list(islice(rest, CHUNK)):
            for group, scores in zip(chunk, self._scores(chunk), strict=True):
                scored = zip(group.candidates, scores, strict=True)
                yield replace(group, candidates=tuple(replace(c, score=s) for c, s in scored))

    def remarks(self) -> list[str]:
        """Say what was left out."""
        if not self.too_long:
            return []
        return [
            f"{len(self.too_long)} answers longer than {self.max_length} tokens with their prompt"
            f" have no score (first {self.too_long[0]})"
        ]

    def _scores(self, groups: Sequence[Group]) -> list[list[float | None]]:
        tokens = self._tokens(groups)
        asked = [[one for one in group if one is not None] for group in tokens]
        for model in (self.policy, self.reference):
            refuse_disagreement(model, zip((g.origin for g in groups), asked, strict=True))
        whole = [TokenGroup(tuple(own), (0.0,) * len(own)) for own in asked if own]
        policy, reference = (
            token_log_probs(model, whole, max_tokens=self.max_tokens).values.double()
            for model in (self.policy, self.reference)
        )
        sizes = [answer.n_scored for group in whole for answer in group.answers]
        ratios = iter([float(part.sum()) for part in (policy - reference).split(sizes)])
        scores: list[list[float | None]] = []
        for group, own in zip(groups, tokens, strict=True):
            scores.append([None if one is None else next(ratios) for one in own])
            _check(scores[-1], group.origin)
        return scores

    def _tokens(self, groups: Sequence[Group]) -> list[list[Tokens | None]]:
        prompts = [group.prompt for group in groups for _ in group.candidates]
        responses = [one.response for group in groups for one in group.candidates]
        origins = [group.origin for group in groups for _ in group.candidates]
        encoded = self.policy.chat.encode_many(prompts, responses, origins=origins)
        kept: list[Tokens | None] = []
        for one, origin in zip(encoded, origins, strict=True):
            is_long = len(one.tokens) > self.max_length
            kept.append(None if is_long else Tokens.of(one, slice(None)))
            self.too_long += [origin] if is_long else []
        rest = iter(kept)
        return [[next(rest) for _ in group.candidates] for group in groups]


def load_implicit(
    names: str, held: ModelOptions, *, max_tokens: int, max_length: int = 0
) -> ImplicitScorer:
    """Load a policy and its reference.

    Args:
        names: `POLICY,REFERENCE`; the second may be left out where the first is an adapter.
        held: how both are held; its name is not read.
        max_tokens: computed at once.
        max_length: of prompt and answer together; 0 is as long as the models can.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: no reference is named or known, or the two do not belong together.
    """
    pair = policy_and_reference(names)
    models = [load(replace(held, model=name), trainable=False) for name in pair]
    return ImplicitScorer(*models, max_tokens=max_tokens, max_length=max_length)


def _positions(model: LanguageModel) -> int:
    """Return how many positions a model has; 0 where it does not say."""
    return getattr(model.core.config.get_text_config(), "max_position_embeddings", None) or 0


def _check(scores: Sequence[float | None], origin: str) -> None:
    wrong = [score for score in scores if score is not None and not math.isfinite(score)]
    if wrong:
        raise ValueError(
            f"{origin}: an implicit reward must be finite; found {wrong}; a model is broken, or its"
            " numbers outgrow its dtype: try --dtype fp32"
        )
