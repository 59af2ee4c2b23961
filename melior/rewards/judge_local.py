"""A judge that is loaded here: exact probabilities of its verdicts, what is shared read once."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from melior.data.batches import TokenGroup, Tokens
from melior.models.generation import check_prompt
from melior.models.language import LanguageModel
from melior.models.likelihood import token_log_probs
from melior.models.trial import refuse_disagreement
from melior.options import Sampling
from melior.records import Turn
from melior.rewards.judge import Reply

CHUNK = 32
"""Questions that are read, sorted by length and computed together."""


class LocalModel:
    """A language model whose next token is the verdict.

    Args:
        model: with a chat template, which keeps control tokens in answers apart from its own.
        name: what it is called.
        max_tokens: computed at once.

    Raises:
        ValueError: the model has no chat template.
    """

    def __init__(self, model: LanguageModel, name: str, *, max_tokens: int) -> None:
        if model.chat.name == "plain":
            raise ValueError(
                f"{name}: a judge needs a chat template, so that an answer cannot end its turn;"
                " found none; give --chat-template chatml or a file, or take an instruct model"
            )
        self.model = model
        self.name = name
        self.max_tokens = max_tokens

    @property
    def identity(self) -> Mapping[str, Any]:
        """The model's name, its weights and how it is prompted."""
        weights, chat = self.model.start_hash[:16], self.model.chat.hash[:16]
        return {"model": self.name, "weights": weights, "chat": chat}

    def replies(self, questions: Iterable[str], labels: Sequence[str]) -> Iterator[Reply]:
        """Yield the replies in order: the labels' log-probabilities as the first token.

        Raises:
            ValueError: a label is not one token, or the model mixes answers.
        """
        spellings = {label: self._tokens_of(label) for label in labels}
        rest = iter(questions)
        while chunk := list(islice(rest, CHUNK)):
            yield from self._computed(chunk, spellings)

    def _computed(
        self, questions: Sequence[str], spellings: Mapping[str, Sequence[int]]
    ) -> Iterator[Reply]:
        prompts = [self._prompt(question) for question in questions]
        ends = [token for tokens in spellings.values() for token in tokens]
        groups = [_asked(prompt, ends) for prompt in prompts if not isinstance(prompt, Reply)]
        refuse_disagreement(self.model, (("the judge's question", g.answers) for g in groups))
        values = token_log_probs(self.model, groups, max_tokens=self.max_tokens).values
        found = iter(values.split(len(ends)))
        for prompt in prompts:
            if isinstance(prompt, Reply):
                yield prompt
            else:
                first = _by_label(next(found).tolist(), spellings)
                yield Reply(first=first, tokens=len(prompt) + 1)

    def _prompt(self, question: str) -> list[int] | Reply:
        """Return what the model is fed, or why it cannot be."""
        try:
            tokens = self.model.chat.prompt_tokens((Turn("user", question),))
            check_prompt(self.model.core, tokens, Sampling(max_new_tokens=1), "refused")
        except ValueError as error:
            return Reply(problem=str(error))
        return tokens

    def _tokens_of(self, label: str) -> list[int]:
        tokenizer = self.model.chat.tokenizer
        spelt = [tokenizer.encode(text, add_special_tokens=False) for text in (label, f" {label}")]
        found = sorted({tokens[0] for tokens in spelt if len(tokens) == 1})
        if not found:
            raise ValueError(f"{self.name}: a judge needs {label!r} as one token; found {spelt[0]}")
        return found


def _asked(prompt: Sequence[int], ends: Sequence[int]) -> TokenGroup:
    """Return one question with every reply whose probability is wanted."""
    mask = bytes([*[0] * len(prompt), 1])
    answers = [Tokens(array("i", [*prompt, end]), mask, len(prompt)) for end in ends]
    return TokenGroup(tuple(answers), (0.0,) * len(ends))


def _by_label(
    log_probs: Sequence[float], spellings: Mapping[str, Sequence[int]]
) -> dict[str, float]:
    """Add up the probabilities of a label's spellings."""
    rest = iter(log_probs)
    sums = {label: sum(math.exp(next(rest)) for _ in own) for label, own in spellings.items()}
    return {label: math.log(value) for label, value in sums.items() if value > 0}
