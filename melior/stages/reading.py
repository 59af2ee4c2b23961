"""Rows -> checked groups of tokens, in one pass over their files, or from the cache."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from itertools import islice
from typing import Any

from torch import Tensor

from melior import __version__
from melior.data.batches import Lengths, TokenGroup, tokenise
from melior.data.chat import ChatFormat, Encoded
from melior.data.examples import (
    Data,
    Example,
    as_examples,
    read_as,
    read_examples,
    with_strangers,
)
from melior.data.files import as_group, read_any
from melior.data.lint import Finding, Lint, lint_lengths, truncation_table
from melior.data.packed import json_of, json_tensor, packed, unpacked
from melior.data.sources import content_hash, parse_source
from melior.data.steps import token_steps
from melior.options import DataOptions
from melior.records import Group, Pair
from melior.training.cache import cached

CHUNK = 512
"""Rows tokenised at once."""
FORMAT = 1
"""Of what is kept; another one when the same rows give other tokens, findings or records."""
LEAST = 4 << 20
"""Bytes of tokens from which they are kept: fewer are made in a second."""
QUANTILES = 1000
"""Of the lengths, kept for a large data set."""
Encode = Callable[[ChatFormat, Sequence[Example]], list[list[Encoded]]]
"""How the answers of examples become tokens, a list of them for each example."""


def answer_by_answer(chat: ChatFormat, examples: Sequence[Example]) -> list[list[Encoded]]:
    """Encode each answer behind its prompt."""
    prompts = [example.prompt for example in examples for _ in example.answers]
    answers = [answer for example in examples for answer in example.answers]
    origins = [example.origin for example in examples for _ in example.answers]
    encoded = iter(chat.encode_many(prompts, answers, origins=origins))
    return [list(islice(encoded, len(example.answers))) for example in examples]


def as_it_was_said(chat: ChatFormat, examples: Sequence[Example]) -> list[list[Encoded]]:
    """Encode each answer behind its prompt, those that were cut off without an end token.

    Whoever gave them did not end there, and must not learn to, or that it would have been worse.
    """
    found = answer_by_answer(chat, examples)
    for example, sides in zip(examples, found, strict=True):
        for place, is_cut in enumerate(example.cut_off):
            whole = sides[place]
            if is_cut and sum(whole.mask) > 1:
                sides[place] = Encoded(whole.tokens[:-1], whole.mask[:-1], whole.n_prompt)
    return found


KNOWN = (answer_by_answer, as_it_was_said)
"""Ways that depend on nothing but the examples and the chat format."""


@dataclass(frozen=True)
class Asked:
    """What decides, with the tokenizer, which tokens and findings the rows give."""

    sources: tuple[str, ...]
    data: Data
    options: DataOptions
    encode: Encode
    has_strangers: bool
    opening: int
    seed: int
    held_out: tuple[str, ...]
    tolerated: tuple[str, ...]

    def key(self, chat: ChatFormat, sha256: str) -> str:
        """Return a key of all that decides, the content of the sources too."""
        options = self.options
        apart = content_hash(self.held_out) if self.held_out else ""
        parts = [
            FORMAT, __version__, *map(version, ("tokenizers", "transformers")),
            chat.hash, chat.name, chat.notes, sha256, apart, self.encode.__qualname__,
            options.max_length, options.truncation_mode, options.max_long_share, self.sources,
            self.data, self.has_strangers, self.opening, self.seed, self.held_out, self.tolerated,
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


Found = tuple[list[TokenGroup], list[Finding], dict[str, Any]]


def read(chat: ChatFormat, asked: Asked, sha256: str, on_progress: Callable[[int], None]) -> Found:
    """Return what rows give, from the cache where it is known; what takes a moment is not kept."""
    if asked.encode not in KNOWN:
        return _found(chat, asked, sha256, on_progress)
    fresh: list[Found] = []

    def compute() -> dict[str, Tensor]:
        met = chat.n_boundary_merges, chat.n_control_texts
        fresh.append(_found(chat, asked, sha256, on_progress))
        groups, _, record = fresh[0]
        about = {
            "record": record,
            "merges": chat.n_boundary_merges - met[0],
            "controls": chat.n_control_texts - met[1],
        }
        return packed(groups) | {"about": json_tensor(about)}

    tensors, _ = cached("prepared", asked.key(chat, sha256), compute, least=LEAST)
    if fresh:
        return fresh[0]
    about = json_of(tensors["about"])
    chat.n_boundary_merges += about["merges"]
    chat.n_control_texts += about["controls"]
    record = about["record"]
    record["chat"]["notes"] = _notes(chat)
    findings = [Finding(**one | {"examples": tuple(one["examples"])}) for one in record["findings"]]
    on_progress(record["rows"])
    return unpacked(tensors), findings, record


def _found(
    chat: ChatFormat, asked: Asked, sha256: str, on_progress: Callable[[int], None]
) -> Found:
    """Read, check and tokenise, all in one pass."""
    sources, data, options, seed = asked.sources, asked.data, asked.options, asked.seed
    apart = read_any(asked.held_out, seed=seed) if asked.held_out else ()
    lint = Lint(apart, tolerated=asked.tolerated)
    records = _looked_at(lint, data, read_as(data, sources, seed=seed))
    examples = as_examples(data, records, seed=seed)
    examples = with_strangers(examples) if asked.has_strangers else examples
    with _young_garbage_only():
        groups, lengths = tokenise(
            _encoded(chat, examples, asked.encode, on_progress),
            max_length=options.max_length,
            truncation_mode=options.truncation_mode,
            opening=asked.opening,
        )
    findings = [*_of_interest(lint, data), *_too_long(lengths, options)]
    _check(sources, groups, lengths, options)
    record = _record(chat, lengths, findings) | {
        "sources": [_source(source, data, lengths, sha256, len(sources)) for source in sources],
        "rows_used": len(groups),
        "sha256": sha256,
    }
    return groups, findings, record


def _record(chat: ChatFormat, lengths: Lengths, findings: Sequence[Finding]) -> dict[str, Any]:
    """Return what is to be said of a data set, as in a run's `data.json`."""
    return {
        "rows": len(lengths.longest),
        "chat": {"template": chat.name, "hash": chat.hash, "notes": _notes(chat)},
        "findings": [asdict(finding) for finding in findings],
        "lengths": {
            "prompt": _thinned(lengths.prompt),
            "chosen": _thinned(lengths.better),
            "rejected": _thinned(lengths.worse),
        },
        "truncation": [asdict(row) for row in truncation_table(lengths.longest)],
        "left_out": lengths.too_long,
        "cut": lengths.n_cut,
    }  # fmt: skip


def _looked_at(lint: Lint, data: Data, records: Iterable[Pair | Group]) -> Iterator[Pair | Group]:
    """Pass records on that the lint has looked at, as what is learned of them."""
    for record in records:
        lint.look(as_group(record) if data in ("answers", "lists") else record)
        yield record


def _of_interest(lint: Lint, data: Data) -> list[Finding]:
    found = lint.findings()
    return [one for one in found if data != "comparisons" or one.code != "unread-shares"]


@contextmanager
def _young_garbage_only() -> Iterator[None]:
    """Look for garbage among the youngest objects only: what is kept of rows is none.

    Searching all that has been kept, again and again, took a fifth of the time.
    """
    before = gc.get_threshold()
    gc.set_threshold(50_000, 1 << 30, 1 << 30)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def _check(
    sources: Sequence[str], groups: list[TokenGroup], lengths: Lengths, options: DataOptions
) -> None:
    if not lengths.longest:
        raise ValueError(f"{', '.join(sources)}: needs at least one row; found no row")
    if not groups:
        raise ValueError(
            f"{', '.join(sources)}: all {len(lengths.longest)} rows are longer than max_length"
            f" {options.max_length} (the shortest has {min(lengths.longest)} tokens);"
            " raise --max-length"
        )


def _notes(chat: ChatFormat) -> list[str]:
    """Return what the chat format decided in the open, and what it met on the way."""
    met = [
        (chat.n_boundary_merges, "answers would have other tokens if read without their prompt"),
        (chat.n_control_texts, "conversations hold a control token's text, which stays text"),
    ]
    return [*chat.notes, *(f"{count} {what}" for count, what in met if count)]


def _thinned(lengths: Sequence[int]) -> list[int]:
    """Return the lengths, or evenly spaced quantiles where there are very many."""
    if len(lengths) <= 2 * QUANTILES:
        return list(lengths)
    ordered = sorted(lengths)
    return [ordered[i * (len(ordered) - 1) // (QUANTILES - 1)] for i in range(QUANTILES)]


def _encoded(
    chat: ChatFormat,
    examples: Iterable[Example],
    encode: Encode,
    on_progress: Callable[[int], None],
) -> Iterator[tuple[Example, list[Encoded], list[list[int]]]]:
    done = 0
    rows = iter(examples)
    while chunk := list(islice(rows, CHUNK)):
        for example, sides in zip(chunk, encode(chat, chunk), strict=True):
            yield example, sides, _steps(chat, example, sides)
        done += len(chunk)
        on_progress(done)


def _steps(chat: ChatFormat, example: Example, sides: Sequence[Encoded]) -> list[list[int]]:
    """Return the step of each scored token of each answer; nothing where none is cut."""
    if not example.steps:
        return [[] for _ in sides]
    found = []
    for side, steps in zip(sides, example.steps, strict=True):
        scored = [t for t, is_scored in zip(side.tokens, side.mask, strict=True) if is_scored]
        try:
            found.append(token_steps(chat.pieces(scored), steps))
        except ValueError as error:
            said = "as the chat template writes an answer,"
            raise ValueError(f"{example.origin}: {said} {error}") from error
    return found


def _too_long(lengths: Lengths, options: DataOptions) -> list[Finding]:
    """Return the findings about rows over the maximum, whatever was done with them."""
    found = lint_lengths(
        zip(lengths.origins, lengths.longest, strict=True),
        max_length=options.max_length,
        max_long_share=options.max_long_share,
    )
    done = f"{len(lengths.too_long)} left out, {lengths.n_cut} cut ({options.truncation_mode})"
    return [replace(one, text=f"{one.text}; {done}") for one in found]


def _source(text: str, data: Data, lengths: Lengths, sha256: str, n_sources: int) -> dict[str, Any]:
    path = parse_source(text).path
    if n_sources == 1:
        return {"path": path, "rows": len(lengths.longest), "sha256": sha256}
    rows = sum(1 for _ in read_examples(data, [text]))
    return {"path": path, "rows": rows, "sha256": content_hash(text)}
