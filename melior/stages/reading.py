"""Rows -> checked groups of tokens, in one pass over their files, or from the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from torch import Tensor

from melior import __version__
from melior.data.batches import Lengths, TokenGroup
from melior.data.chat import ChatFormat
from melior.data.examples import (
    Data,
    as_examples,
    read_as,
    read_examples,
    with_strangers,
)
from melior.data.files import as_group, read_any
from melior.data.lint import Finding, Lint, lint_lengths, truncation_table
from melior.data.packed import json_of, json_tensor, packed, unpacked
from melior.data.sources import content_hash, parse_source
from melior.options import DataOptions
from melior.records import Group, Pair
from melior.stages.encoding import KNOWN, Encode, Work, made
from melior.training.cache import cached

FORMAT = 1
"""Of what is kept; another one when the same rows give other tokens, findings or records."""
LEAST = 4 << 20
"""Bytes of tokens from which they are kept: fewer are made in a second."""
QUANTILES = 1000
"""Of the lengths, kept for a large data set."""


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


@dataclass(frozen=True)
class Reading:
    """One pass over rows.

    Args:
        chat: how conversations become tokens; it counts what it meets.
        asked: what decides which tokens and findings come out.
        sha256: of the sources' content.
        on_progress: is told how many rows are done.
        processes: how many may make tokens.
    """

    chat: ChatFormat
    asked: Asked
    sha256: str
    on_progress: Callable[[int], None]
    processes: int

    def found(self) -> Found:
        """Return what rows give, from the cache where it is known; a moment's work is not kept."""
        if self.asked.encode not in KNOWN:
            return replace(self, processes=1).made()
        fresh: list[Found] = []

        def compute() -> dict[str, Tensor]:
            met = self.chat.n_boundary_merges, self.chat.n_control_texts
            fresh.append(self.made())
            groups, _, record = fresh[0]
            about = {
                "record": record,
                "merges": self.chat.n_boundary_merges - met[0],
                "controls": self.chat.n_control_texts - met[1],
            }
            return packed(groups) | {"about": json_tensor(about)}

        key = self.asked.key(self.chat, self.sha256)
        tensors, _ = cached("prepared", key, compute, least=LEAST)
        return fresh[0] if fresh else self._kept(tensors)

    def made(self) -> Found:
        """Read, check and tokenise, all in one pass."""
        sources, data, options, seed = (
            self.asked.sources, self.asked.data, self.asked.options, self.asked.seed
        )  # fmt: skip
        apart = read_any(self.asked.held_out, seed=seed) if self.asked.held_out else ()
        lint = Lint(apart, tolerated=self.asked.tolerated)
        records = _looked_at(lint, data, read_as(data, sources, seed=seed))
        examples = as_examples(data, records, seed=seed)
        examples = with_strangers(examples) if self.asked.has_strangers else examples
        work = Work.of(self.asked.encode, options, self.asked.opening)
        groups, lengths = made(
            self.chat, examples, work, self.on_progress, processes=self.processes
        )
        findings = [*_of_interest(lint, data), *_too_long(lengths, options)]
        _check(sources, groups, lengths, options)
        record = _record(self.chat, lengths, findings) | {
            "sources": [
                _source(source, data, lengths, self.sha256, len(sources)) for source in sources
            ],
            "rows_used": len(groups),
            "sha256": self.sha256,
        }
        return groups, findings, record

    def _kept(self, tensors: Mapping[str, Tensor]) -> Found:
        """Return what another pass left, and count what it met."""
        about = json_of(tensors["about"])
        self.chat.n_boundary_merges += about["merges"]
        self.chat.n_control_texts += about["controls"]
        record = about["record"]
        record["chat"]["notes"] = _notes(self.chat)
        findings = [
            Finding(**one | {"examples": tuple(one["examples"])}) for one in record["findings"]
        ]
        self.on_progress(record["rows"])
        return unpacked(tensors), findings, record


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
