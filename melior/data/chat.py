"""Conversations <-> tokens, on one path for training and inference, with the mask of what was said.

Text is written by `template`; here it becomes tokens. A prompt's tokens are those that inference
feeds; an answer's are those that generation has to produce after them, its end token included once.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from melior.data.template import (
    MARK,
    PlainText,
    Template,
    Writer,
    pattern,
)
from melior.data.tokenizer import chosen_template, known_tokens, notes, start_tokens
from melior.data.words import words
from melior.records import Turns


@dataclass(frozen=True)
class Encoded:
    """A prompt and its response as tokens."""

    tokens: tuple[int, ...]
    mask: tuple[bool, ...]
    """True on what the model said, the end token of each of its turns included."""
    n_prompt: int
    """The first so many tokens are the prompt's."""


class ChatFormat:
    """A tokenizer with a chat template.

    Args:
        tokenizer: of transformers; kept as a copy whose chat template is the one in use, so that
            a model saved with it is prompted the way it was trained.
        template: `auto` (the tokenizer's own, or plain text where it has none), `plain`, `chatml`,
            or a Jinja file.
        stop_token_ids: further tokens that end an answer, such as the generation config's.

    Raises:
        ValueError: the template fails, or no end token is known.
        FileNotFoundError: there is no such template file.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: str = "auto",
        *,
        stop_token_ids: Iterable[int] = (),
    ) -> None:
        self.tokenizer = copy.copy(tokenizer)
        given = frozenset(int(token) for token in stop_token_ids)
        tokens = known_tokens(self.tokenizer, given)
        name, source, note = chosen_template(self.tokenizer, template, tokens.end)
        if template != "auto":
            self.tokenizer.chat_template = source
        self.writer: Writer = (
            PlainText(tokens)
            if source is None
            else Template(name, source, render=self._render, tokens=tokens)
        )
        self._special = pattern(tokens.special | self.writer.stops)
        self._ends = frozenset(self.tokenizer.convert_tokens_to_ids(sorted(self.writer.stops)))
        self.stop_token_ids: frozenset[int] = given | self._ends
        """Tokens at which generation stops."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        self._words = words(backend) if backend is not None else None
        start = start_tokens(self.tokenizer)
        self._start = start if source is None else []
        newline, shifted, alone = self._call(["\n", "\na", "a"])
        self._newline = newline if shifted[len(newline) :] != alone else []
        self.n_boundary_merges = 0
        """Answers so far that alone have other tokens than in one piece with their prompt."""
        self.n_control_texts = 0
        """Conversations so far that held the text of a control token, which stayed text."""
        own = notes(self.tokenizer, start, has_template=source is not None, probe=self.writer.probe)
        self.notes: tuple[str, ...] = (*filter(None, [note]), *self.writer.notes, *own)
        """What was decided where tokenizer and template leave something open."""

    @property
    def name(self) -> str:
        """`tokenizer` (its own template), `plain`, `chatml` or the template's file."""
        return self.writer.name

    @cached_property
    def hash(self) -> str:
        """A key of everything that decides which tokens a conversation becomes."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        rules = self.tokenizer.get_vocab() if backend is None else json.loads(backend.to_str())
        rules = {key: rules[key] for key in rules if key not in ("padding", "truncation")}
        ends, special = sorted(self.stop_token_ids), str(self.tokenizer.special_tokens_map)
        kind = f"{self.name == 'plain'} {type(self.tokenizer).__name__}"
        parts = [kind, self.writer.probe, rules, ends, special, self._start]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    @property
    def pad_token_id(self) -> int:
        """What fills up rows; masked by length, never by id, so it may well be an end token."""
        pad = self.tokenizer.pad_token_id
        return min(self._ends) if pad is None else pad

    def prompt_tokens(self, prompt: Turns) -> list[int]:
        """Return exactly what inference feeds.

        Raises:
            ValueError: the template refuses the prompt, or there is nothing to feed.
        """
        _, opened = self._opened(prompt)
        return self._begin(self._tokens([opened])[0])

    def encode(self, prompt: Turns, response: Turns) -> Encoded:
        """Return the tokens of a prompt and its response; see `encode_many`."""
        return self.encode_many([prompt], [response])[0]

    def encode_many(
        self, prompts: Sequence[Turns], responses: Sequence[Turns], *, origins: Sequence[str] = ()
    ) -> list[Encoded]:
        """Encode rows together; a prompt that stands in several rows is read once.

        A response may hold turns of others (a tool's results, a user's next question) between the
        assistant's; what comes after the assistant's last turn is left out, as it changes nothing.

        Args:
            prompts: one for each row.
            responses: one for each row; each begins with a turn of the assistant.
            origins: where each row was read, for messages.

        Raises:
            ValueError: a row cannot be written as inference would.
        """
        opened: dict[Turns, tuple[Turns, str]] = {}
        rows: list[list[str]] = []
        origins = origins or [""] * len(prompts)
        for prompt, response, origin in zip(prompts, responses, origins, strict=True):
            with _errors_at(origin):
                if prompt not in opened:
                    opened[prompt] = self._opened(prompt)
                rows.append(self._written(*opened[prompt], response))
        texts = list(dict.fromkeys(row[0] for row in rows))
        begins = dict(zip(texts, self._tokens(texts), strict=True))
        spans = [("".join(row[:i]), row[i]) for row in rows for i in range(1, len(row))]
        after = iter(self._after(spans, begins))
        encoded = []
        for row, origin in zip(rows, origins, strict=True):
            with _errors_at(origin):
                begin = self._begin(begins[row[0]])
                encoded.append(self._row(begin, [next(after) for _ in row[1:]]))
        return encoded

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without special tokens and without an end."""
        kept = [int(token) for token in tokens]
        while kept and kept[-1] in self.stop_token_ids:
            kept.pop()
        return self.tokenizer.decode(
            kept, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def pieces(self, tokens: Sequence[int]) -> list[str]:
        """Return the text of each token, control tokens too; a part of a character is U+FFFD."""
        texts = []
        for i, token in enumerate(tokens):
            before = [int(t) for t in tokens[max(i - 8, 0) : i]]  # more than a character's bytes
            old, new = self._verbatim(before), self._verbatim([*before, int(token)])
            texts.append(new[len(old.rstrip("\ufffd")) :])
        return texts

    def _verbatim(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(
            tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )

    def _render(self, turns: Turns, opens: bool) -> str:
        messages = [{**turn.extra, "role": turn.role, "content": turn.content} for turn in turns]
        return self.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=opens
        )

    def _opened(self, prompt: Turns) -> tuple[Turns, str]:
        """Return the prompt with its control tokens broken up, and as text."""
        _check_text(prompt)
        prompt = self.writer.guard(prompt)
        return prompt, self.writer.opened(prompt)

    def _written(self, prompt: Turns, opened: str, response: Turns) -> list[str]:
        """Return the prompt's text, then by turns what the model says and what others do."""
        roles = [turn.role for turn in response]
        if roles[:1] != ["assistant"]:
            raise ValueError(
                "a response needs to begin with a turn of the assistant; found"
                f" {', '.join(roles) or 'no turn'}"
            )
        _check_text(response)
        response = self.writer.guard(response)
        row = [opened]
        for index, turn in enumerate(response):
            if turn.role != "assistant":
                continue
            history = prompt + response[:index]
            if index:
                row.append(self._between(history, "".join(row)))
            row.append(self.writer.said(history, turn, "".join(row)))
        self.n_control_texts += any(MARK in text for text in row)
        return row

    def _between(self, history: Turns, written: str) -> str:
        """Return what stands between two turns of the assistant."""
        opened = self.writer.opened(history)
        if not opened.startswith(written):
            raise ValueError(
                f"{self.name}: a response of several turns needs a chat template that keeps earlier"
                " turns as they were said; this one writes them otherwise once the conversation"
                " goes on (thinking left out, or no end token); make each turn of the assistant a"
                " row of its own, or give --chat-template FILE"
            )
        return opened[len(written) :]

    def _begin(self, tokens: list[int]) -> list[int]:
        """Put the tokenizer's own start tokens before a plain prompt, once."""
        has_start = tokens[: len(self._start)] == self._start
        tokens = tokens if has_start else self._start + tokens
        if not tokens:
            raise ValueError(
                "a prompt needs at least one token; found none, and the tokenizer adds no start"
                " token; give the prompt a text"
            )
        return tokens

    def _after(
        self, spans: Sequence[tuple[str, str]], known: Mapping[str, list[int]]
    ) -> list[list[int]]:
        """Return the tokens of each second text in one piece with the first.

        Where the first text's tokens would change, those of the second alone. Added tokens cut a
        text before anything else does, so no more of the first is read than its last one.
        """
        contexts = [self._context(before) for before, _ in spans]
        new = list(dict.fromkeys(context for context in contexts if context not in known))
        heads = {**known, **dict(zip(new, self._tokens(new), strict=True))}
        joint = self._tokens([c + text for c, (_, text) in zip(contexts, spans, strict=True)])
        torn = []
        for index, context in enumerate(contexts):
            head = heads[context]
            if joint[index][: len(head)] != head:
                torn.append(index)
            joint[index] = joint[index][len(head) :]
        alone = self._tokens([spans[index][1] for index in torn], inside=True)
        for index, tokens in zip(torn, alone, strict=True):
            joint[index] = tokens
        self.n_boundary_merges += len(torn)
        return joint

    def _context(self, before: str) -> str:
        tail = before[-256:]
        cuts = [match.start() for match in self._special.finditer(tail)]
        return tail[cuts[-1] :] if cuts else before

    def _row(self, begin: list[int], spans: list[list[int]]) -> Encoded:
        tokens, mask = begin, [False] * len(begin)
        for index, span in enumerate(spans):
            is_said = index % 2 == 0
            if is_said and (span[-1] not in self._ends or not self._ends.isdisjoint(span[:-1])):
                raise ValueError(
                    f"{self.name}: what the model says must end with one end token; found"
                    f" {self.tokenizer.convert_ids_to_tokens(span)[-12:]}; the tokenizer does not"
                    " keep its end token whole, or makes it of ordinary text"
                )
            tokens = tokens + span
            mask += [is_said] * len(span)
        return Encoded(tuple(tokens), tuple(mask), len(begin))

    def _tokens(self, texts: Sequence[str], *, inside: bool = False) -> list[list[int]]:
        """Tokenise texts; what MARK separates is tokenised apart."""
        pieces = [text.split(MARK) for text in texts]
        rows = (self._inside if inside else self._call)([parts[0] for parts in pieces])
        rest = iter(self._inside([piece for parts in pieces for piece in parts[1:]]))
        for row, parts in zip(rows, pieces, strict=True):
            for _ in parts[1:]:
                row += next(rest)
        return rows

    def _inside(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise texts that do not stand at a beginning, where some tokenizers put a space."""
        n = len(self._newline)
        if not n:
            return self._call(texts)
        rows = self._call(["\n" + text for text in texts])
        return [
            row[n:] if row[:n] == self._newline else self._call([text])[0]
            for row, text in zip(rows, texts, strict=True)
        ]

    def _call(self, texts: Sequence[str]) -> list[list[int]]:
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return (
                self.tokenizer(list(texts), add_special_tokens=False)["input_ids"] if texts else []
            )
        # The backend may be shared: what others set for themselves must not change what is trained.
        backend.no_padding()
        backend.no_truncation()
        backend.encode_special_tokens = False
        if self._words is not None:
            return self._words(texts)
        rows = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [row.ids for row in rows]


@contextmanager
def _errors_at(origin: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{origin}: {error}" if origin else str(error)) from error


def _check_text(turns: Turns) -> None:
    for turn in turns:
        try:
            turn.content.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                "contents need to be text; found half of a character (a lone surrogate)"
                f" after {turn.content[max(0, error.start - 20) : error.start]!r}"
            ) from error
