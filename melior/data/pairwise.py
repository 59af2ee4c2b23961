"""Two answers to one prompt as one question, always in the same words, and its tokens.

The template is that of RLHF Workflow's pairwise preference model (Dong et al. 2024, arXiv
2405.07863, and its released code): one turn of a user, which holds the conversation so far and both
answers, each behind a tag, and one turn of the assistant, the letter of the better answer. A tag
inside what people wrote is broken up (`[RESPONSE B]` becomes `[ RESPONSE B]`), so that an answer
cannot begin another one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Final

from melior.data.chat import ChatFormat, Encoded
from melior.records import Turn, Turns

NAME: Final = "rlhf-workflow"
LABELS: Final = ("A", "B")
"""What the assistant says: the slot of the better answer."""
TAGS: Final = ("[CONTEXT]", "[RESPONSE A]", "[RESPONSE B]")
Question = tuple[Turns, Turns, Turns]
"""A prompt, and the answers that stand in slot A and in slot B."""

_TAG = re.compile(r"\[(?=(?:CONTEXT|RESPONSE [AB])\])|<(?=turn>)", re.IGNORECASE)
_PROBE = (Turn("assistant", "a"),), (Turn("assistant", "\ufffd"),)
"""Two answers that have no token in common, whatever joins the space before them."""


def question(prompt: Turns, first: Turns, second: Turns) -> str:
    """Return what is asked about two answers to a prompt."""
    said = _context(prompt), _answer(first), _answer(second)
    return "".join(f"{tag} {text} " for tag, text in zip(TAGS, said, strict=True)) + "\n"


def has_tags(turns: Turns) -> bool:
    """Say whether anything in a conversation looks like one of the template's tags."""
    return any(_TAG.search(_said(turn)) for turn in turns)


def without_start(turns: Turns, count: int) -> Turns:
    """Return a conversation without its first so many characters, whole turns as they go."""
    kept: list[Turn] = []
    for turn in turns:
        gone = min(count, len(turn.content))
        count -= gone
        if gone == 0 or gone < len(turn.content):
            kept.append(replace(turn, content=turn.content[gone:]))
    return tuple(kept)


def template_hash() -> str:
    """Return a fingerprint of every word that the template writes, and of how it breaks up tags."""
    tags = Turn("user", " ".join([*TAGS, "<turn>"]))
    prompt = (Turn("system", "rules"), tags, Turn("assistant", "said"), Turn("user", "asked"))
    several = (Turn("assistant", "one", {"name": "two"}), Turn("tool", "three"))
    asked = [question(prompt, (tags,), several), *LABELS]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Orders:
    """One comparison as tokens, up to before the letter, in both orders."""

    prompt: Turns
    """What is left of it."""
    left_first: tuple[int, ...]
    right_first: tuple[int, ...]
    fits: bool = True
    """Neither is too long; where they are, they are whole."""


class Comparisons:
    """How comparisons become tokens, and counts of what was met on the way.

    Args:
        chat: of the model that reads them.

    Raises:
        ValueError: it has no chat template, or a letter is not one token behind it.
    """

    def __init__(self, chat: ChatFormat) -> None:
        if chat.name == "plain":
            raise ValueError(
                "a pairwise model needs a chat template, so that an answer cannot end its turn;"
                " found none; give --chat-template chatml or a file"
            )
        self.chat = chat
        self.lead, self.labels = _letters(chat)
        """What the chat template writes before the letter, and the tokens of both letters."""
        self.n_tags = 0
        """Comparisons so far in which something looked like a tag, and was broken up."""
        self.cut: list[str] = []
        """Origins of comparisons so far that lost the start of their prompt, ..."""
        self.too_long: list[str] = []
        """... and of those whose answers by themselves are too long."""

    def both_orders(
        self, questions: Sequence[Question], *, max_length: int, origins: Sequence[str] = ()
    ) -> list[Orders]:
        """Encode each question as it is, and with its answers exchanged.

        Where an order is too long, both lose the same start of their prompt; the answers always
        stand whole. Where nothing would be left of the prompt, they do not fit.

        Args:
            questions: each with the answers in their first order.
            max_length: tokens that a question may have.
            origins: where each was read, for messages.

        Raises:
            ValueError: a conversation cannot be written.
        """
        origins = origins or [""] * len(questions)
        encoded = self._encode(questions, origins)
        for asked in questions:
            self.n_tags += any(map(has_tags, asked))
        return [
            self._fitted(asked, orders, origin, max_length)
            for asked, orders, origin in zip(questions, encoded, origins, strict=True)
        ]

    def with_letters(
        self, orders: Sequence[Orders], answers: Sequence[tuple[Turns, Turns]]
    ) -> list[list[Encoded]]:
        """Return what may be said of each comparison: four sequences that end with a letter.

        Of the first order that the left answer is better and that the right one is, then the same
        of the second order. The mask marks the answer that the letter names, with as many tokens as
        it has by itself, so that whoever counts lengths counts those of answers. `n_prompt` counts
        what stands before slot A.

        Args:
            orders: of comparisons.
            answers: the left and the right one of each.
        """
        prompts = list(dict.fromkeys(one.prompt for one in orders))
        probes = self._encode([(prompt, *_PROBE) for prompt in prompts], [""] * len(prompts))
        frames = {one.prompt: _frame(one) for one in probes}
        sides = [side for both in answers for side in both]
        lengths = iter([len(tokens) for tokens in self._alone(sides)])
        found = []
        for one in orders:
            begin, tail = frames[one.prompt]
            left, right = next(lengths), next(lengths)
            first, second = one.left_first, one.right_first
            a, b = self.labels
            found.append(
                [
                    _ending(first, a, (begin, left), begin),
                    _ending(first, b, (len(first) - tail - right, right), begin),
                    _ending(second, b, (len(second) - tail - left, left), begin),
                    _ending(second, a, (begin, right), begin),
                ]
            )
        return found

    def _fitted(self, asked: Question, orders: Orders, origin: str, max_length: int) -> Orders:
        prompt, left, right = asked
        whole, shorter = sum(len(turn.content) for turn in prompt), orders
        gone = 0
        while (extra := _longest(shorter) - max_length) > 0:
            if gone >= whole - 1:
                self.too_long.append(origin)
                return replace(orders, fits=False)
            # The mean of characters in a token: then few rounds do, and not much more goes.
            size = len(question(shorter.prompt, left, right)) / _longest(shorter)
            gone = min(whole - 1, gone + max(1, round(extra * size)))
            shorter = self._encode([(without_start(prompt, gone), left, right)], [origin])[0]
        if gone:
            self.cut.append(origin)
        return shorter

    def _encode(self, questions: Sequence[Question], origins: Sequence[str]) -> list[Orders]:
        texts = [
            (Turn("user", question(*order)),)
            for prompt, left, right in questions
            for order in ((prompt, left, right), (prompt, right, left))
        ]
        letter = (Turn("assistant", LABELS[0]),)
        where = [origin for origin in origins for _ in range(2)] if any(origins) else ()
        rows = self.chat.encode_many(texts, [letter] * len(texts), origins=where)
        tokens = iter([self._before_letter(row) for row in rows])
        return [Orders(asked[0], next(tokens), next(tokens)) for asked in questions]

    def _before_letter(self, row: Encoded) -> tuple[int, ...]:
        at = row.n_prompt + len(self.lead)
        if row.tokens[row.n_prompt : at + 1] != (*self.lead, self.labels[0]):
            raise ValueError(
                f"{self.chat.name}: a pairwise model needs a chat template that writes the same"
                " before every answer; found one that depends on the conversation"
            )
        return row.tokens[:at]

    def _alone(self, answers: Sequence[Turns]) -> list[list[int]]:
        texts = [_answer(answer) for answer in answers]
        return self.chat.tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []


def _context(turns: Turns) -> str:
    """Return a conversation as plain text."""
    return "\n" + "".join(map(_turn, turns)) + "\n\n\n"


def _answer(turns: Turns) -> str:
    """Return an answer as plain text; what follows its first turn is written as a context's."""
    return "".join([*map(_said_safely, turns[:1]), *map(_turn, turns[1:])])


def _turn(turn: Turn) -> str:
    return f"\n\n<turn> {turn.role}\n {_said_safely(turn)}"


def _said_safely(turn: Turn) -> str:
    """Return what a turn says, with every tag in it broken up."""
    return _TAG.sub(r"\g<0> ", _said(turn))


def _said(turn: Turn) -> str:
    if not turn.extra:
        return turn.content
    return turn.content + "\n" + json.dumps(dict(turn.extra), sort_keys=True, default=str)


def _letters(chat: ChatFormat) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Return what stands before the letter, and the token that each letter is."""
    asked = (Turn("user", question((Turn("user", "melior asks"),), *_PROBE)),)
    rows = [chat.encode(asked, (Turn("assistant", label),)) for label in LABELS]
    a, b = (row.tokens[row.n_prompt :] for row in rows)
    same = _shared(a, b)
    if len(a) != len(b) or a[same + 1 :] != b[same + 1 :] or same == len(a):
        found = " and ".join(str(chat.tokenizer.convert_ids_to_tokens(list(own))) for own in (a, b))
        raise ValueError(
            f"a pairwise model needs {LABELS[0]!r} and {LABELS[1]!r} as one token each behind its"
            f" chat template; found {found}"
        )
    return a[:same], (a[same], b[same])


def _ending(
    tokens: tuple[int, ...], letter: int, marked: tuple[int, int], n_prompt: int
) -> Encoded:
    """Return a question with a letter behind it; of what is marked, start and length are given."""
    start, length = marked
    mask = tuple(start <= place < start + length for place in range(len(tokens)))
    return Encoded((*tokens, letter), (*mask, False), n_prompt)


def _frame(probe: Orders) -> tuple[int, int]:
    """Return how many tokens stand before slot A, and how many behind slot B."""
    ahead = _shared(probe.left_first, probe.right_first)
    return ahead, _shared(probe.left_first[::-1], probe.right_first[::-1])


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Count the tokens that two sequences begin with alike."""
    return sum(1 for _ in takewhile(lambda two: two[0] == two[1], zip(one, other, strict=False)))


def _longest(orders: Orders) -> int:
    return max(len(orders.left_first), len(orders.right_first))
