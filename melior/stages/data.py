"""From preference files to checked, tokenised groups, before any weights are loaded."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

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
from melior.data.sources import content_hash, parse_source
from melior.data.split import split_by_prompt
from melior.data.steps import token_steps
from melior.options import DataOptions, LoopOptions
from melior.records import Group, Pair, Turns
from melior.training.checkpoint import refuse_changes
from melior.training.run import write_json

CHUNK = 512
"""Rows tokenised at once."""
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


@dataclass(frozen=True)
class Prepared:
    """A data set ready for the model, and what is to be said of it."""

    data: Data
    groups: list[TokenGroup]
    findings: list[Finding]
    first_prompts: list[Turns]
    """Of the first rows that are used and leave room for an answer, for samples; each once."""
    sha256: str
    record: dict[str, Any]
    """As in a run's `data.json`."""

    def refuse_errors(self, *, allowed: bool) -> None:
        """Stop at findings that are errors.

        Raises:
            ValueError: naming each, unless they are allowed.
        """
        errors = [finding for finding in self.findings if finding.level == "error"]
        if allowed or not errors:
            return
        said = "; ".join(
            f"{error.count} rows ({error.share:.1%}): {error.text}"
            + (f" (first {error.examples[0]})" if error.examples else "")
            for error in errors
        )
        raise ValueError(f"data: {said}; mend the data, or add --allow-lint-errors")

    def refuse_beyond(self, positions: int) -> None:
        """Stop at rows that the model has no positions for.

        Raises:
            ValueError: naming the first.
        """
        for group in self.groups:
            if len(group) > positions:
                raise ValueError(
                    f"{group.origin}: max_length must be at most the {positions} positions that the"
                    f" model has; found a row of {len(group)} tokens"
                )


def write_data(folder: Path, parts: Mapping[str, Prepared], loop: LoopOptions) -> None:
    """Write what a run learns from into its `data.json`.

    Raises:
        ValueError: it goes on from a checkpoint with other data; the file is as it was.
    """
    path, is_begun = folder / "data.json", any((folder / "checkpoints").glob("step-*"))
    if loop.resume and not loop.allow_changes and is_begun and path.exists():
        known = json.loads(path.read_text(encoding="utf-8"))
        was = {f"{name} data": part["sha256"] for name, part in known.items()}
        now = {f"{name} data": part.sha256 for name, part in parts.items()}
        refuse_changes(was, now, where=folder)
    write_json(path, {name: part.record for name, part in parts.items()})


def hold_out(
    groups: Sequence[TokenGroup], share: float, *, seed: int
) -> tuple[list[TokenGroup], list[TokenGroup]]:
    """Hold out a share of the prompts with all their rows, where there are two prompts or more."""
    if not share or len({group.prompt for group in groups}) < 2:
        return list(groups), []
    return split_by_prompt(groups, share=share, seed=seed)


def prepare(
    sources: Sequence[str],
    chat: ChatFormat,
    options: DataOptions,
    *,
    data: Data = "pairs",
    has_strangers: bool = False,
    encode: Encode = answer_by_answer,
    tolerated: Collection[str] = (),
    seed: int,
    held_out: Sequence[str] = (),
    longest_prompt: int = 2**31,
    opening: int = 1,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Prepared:
    """Read, check and tokenise what is learned from, or judged on.

    Args:
        sources: where it lies.
        chat: how conversations become tokens.
        options: which lengths are right.
        data: what the rows hold.
        has_strangers: put another prompt's answer beside each.
        encode: how answers become tokens.
        tolerated: codes of findings that are no errors.
        seed: of mixtures.
        held_out: sources whose prompts must not be among these.
        longest_prompt: of those that are put to the model.
        opening: tokens of a prompt's end that are never cut.
        on_progress: is told how many rows are done.

    Raises:
        ValueError: a row cannot be read, or all are too long.
        FileNotFoundError: a source does not exist.
    """
    lint = Lint(read_any(held_out, seed=seed) if held_out else (), tolerated=tolerated)
    records = _looked_at(lint, data, read_as(data, sources, seed=seed))
    examples = as_examples(data, records, seed=seed)
    examples = with_strangers(examples) if has_strangers else examples
    with _young_garbage_only():
        groups, lengths = tokenise(
            _encoded(chat, examples, encode, on_progress),
            max_length=options.max_length,
            truncation_mode=options.truncation_mode,
            opening=opening,
        )
    findings = [*_of_interest(lint, data), *_too_long(lengths, options)]
    _check(sources, groups, lengths, options)
    sha256 = content_hash(list(sources))
    record = _record(chat, lengths, findings) | {
        "sources": [_source(source, data, lengths, sha256, len(sources)) for source in sources],
        "rows_used": len(groups),
        "sha256": sha256,
    }
    short = (group.origin for group in groups if group.answers[0].n_prompt <= longest_prompt)
    first = set(islice(short, 64))
    rows = (one for one in read_examples(data, sources, seed=seed) if one.origin in first)
    prompts = list(dict.fromkeys(row.prompt for row in islice(rows, len(first))))
    return Prepared(data, groups, findings, prompts, sha256, record)


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
