"""Scores of embedded answers: each is read once, all pairs are compared by one product (GPM)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

import torch

from melior.data.chat import Encoded
from melior.models.general import Embedded, GeneralModel, embedded, load_general_model
from melior.models.trial import refuse_disagreement
from melior.options import ModelOptions
from melior.records import Group
from melior.rewards.fitting import Fitting

CHUNK = 256
"""Groups read, sorted by length and computed together; they come out in their order."""


class GeneralScorer:
    """Compares the answers of groups, and gives each its mean score against the group.

    Zhang et al. 2024, arXiv 2410.02197, sec. 4: a score is the mean of `s_ij` over the group, the
    answer itself included, against which it is 0. Here it is divided by beta, so that of two
    answers the difference of their scores is the log-odds that the first is preferred.

    A conversation beyond what the model takes in loses the start of its prompt; the answer is
    always judged whole.

    Args:
        model: what embeds.
        max_tokens: computed at once; a prompt counts once for all its answers.
        max_length: of prompt and answer together; 0 is as long as the model can.
    """

    def __init__(self, model: GeneralModel, *, max_tokens: int, max_length: int = 0) -> None:
        self.model = model
        self.max_tokens = max_tokens
        longest = model.reward.longest
        self.fitting = Fitting(model.chat, min(max_length or longest, longest))

    def groups(self, groups: Iterable[Group]) -> Iterator[Group]:
        """Yield groups with their comparisons and scores, None where an answer is too long.

        Raises:
            ValueError: a conversation cannot be written, or a score is not finite.
        """
        rest = iter(groups)
        while chunk := list(islice(rest, CHUNK)):
            fitted = self.fitting.groups(chunk)
            asked = [[one for one in own if one] for own in fitted]
            refuse_disagreement(self.model, zip((g.origin for g in chunk), asked, strict=True))
            there = [own for own in asked if own]
            found = iter(embedded(self.model, there, max_tokens=self.max_tokens))
            for group, own in zip(chunk, fitted, strict=True):
                yield self._scored(group, own, next(found) if any(own) else None)

    def remarks(self) -> list[str]:
        """Say what was done to conversations that are too long."""
        return self.fitting.remarks()

    def _scored(
        self, group: Group, fitted: Sequence[Encoded | None], found: Embedded | None
    ) -> Group:
        k, there = len(fitted), [i for i, one in enumerate(fitted) if one]
        logits = torch.zeros(0, 0) if found is None else found.scores / self.model.geometry.beta
        if not logits.isfinite().all():
            raise ValueError(
                f"{group.origin}: scores must be finite; found {logits.tolist()}; the model is"
                " broken, or its numbers outgrow its dtype: try --dtype fp32"
            )
        comparisons: list[list[float | None]] = [
            [0.0 if i == j else None for j in range(k)] for i in range(k)
        ]
        scores: list[float | None] = [None] * k
        for i, row in zip(there, logits.tolist(), strict=True):
            scores[i] = sum(row) / len(row)
            for j, logit in zip(there, row, strict=True):
                comparisons[i][j] = logit
        scored = zip(group.candidates, scores, strict=True)
        return replace(
            group,
            candidates=tuple(replace(one, score=score) for one, score in scored),
            facts={**group.facts, "comparisons": comparisons},
        )


def load_scorer(options: ModelOptions, *, max_tokens: int, max_length: int = 0) -> GeneralScorer:
    """Load a model of general preferences to score with.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: its parts are not of one model.
    """
    model = load_general_model(options)
    return GeneralScorer(model, max_tokens=max_tokens, max_length=max_length)
