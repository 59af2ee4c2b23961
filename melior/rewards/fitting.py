"""Conversations brought to the length that a reward model reads, and what that took."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from melior.data.chat import ChatFormat, Encoded
from melior.records import Group, Turns

Row = tuple[Turns, Sequence[Turns], str]
"""A prompt, its answers, and where they were read."""


class Fitting:
    """Cuts the start of prompts that are too long; answers are always read whole.

    Args:
        chat: how conversations become tokens.
        limit: tokens of prompt and answer together.
        opening: tokens of the prompt's end that are never cut.
    """

    def __init__(self, chat: ChatFormat, limit: int, *, opening: int = 1) -> None:
        self.chat = chat
        self.limit = limit
        self.opening = opening
        self.n_cut = 0
        """Conversations so far that lost the start of their prompt."""
        self.too_long: list[str] = []
        """Origins of answers so far that are too long by themselves."""

    def groups(self, groups: Sequence[Group]) -> list[list[Encoded | None]]:
        """Return each group's answers as tokens, None where one is too long by itself."""
        return self.rows([(g.prompt, [c.response for c in g.candidates], g.origin) for g in groups])

    def rows(self, rows: Sequence[Row]) -> list[list[Encoded | None]]:
        """Return the answers of each row as tokens, None where one is too long by itself."""
        prompts = [prompt for prompt, responses, _ in rows for _ in responses]
        responses = [response for _, responses, _ in rows for response in responses]
        origins = [origin for _, responses, origin in rows for _ in responses]
        encoded = iter(self.chat.encode_many(prompts, responses, origins=origins))
        return [
            [self._fitted(whole, origin) for whole in islice(encoded, len(responses))]
            for _, responses, origin in rows
        ]

    def remarks(self) -> list[str]:
        """Say what was done to conversations that are too long."""
        limit = f"longer than {self.limit} tokens"
        found = []
        if self.n_cut:
            found.append(f"{self.n_cut} conversations {limit} lost the start of their prompt")
        if self.too_long:
            found.append(
                f"{len(self.too_long)} answers {limit} by themselves have no score"
                f" (first {self.too_long[0]})"
            )
        return found

    def _fitted(self, whole: Encoded, origin: str) -> Encoded | None:
        found = shortened(whole, self.limit, self.opening)
        if found is None:
            self.too_long.append(origin)
        elif len(found.tokens) < len(whole.tokens):
            self.n_cut += 1
        return found


def shortened(whole: Encoded, limit: int, opening: int) -> Encoded | None:
    """Cut the start of a prompt so that its answer fits; None where its end would be cut, too."""
    extra = max(0, len(whole.tokens) - limit)
    if extra > whole.n_prompt - opening:
        return None
    return Encoded(whole.tokens[extra:], whole.mask[extra:], whole.n_prompt - extra)
