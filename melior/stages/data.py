"""From preference files to checked, tokenised pairs, before any weights are loaded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from melior.data.batches import Lengths, TokenPair, tokenise
from melior.data.chat import ChatFormat, Encoded
from melior.data.files import read_pairs
from melior.data.lint import Finding, lint_lengths, lint_pairs, truncation_table
from melior.data.sources import content_hash, parse_source
from melior.options import DataOptions
from melior.records import Pair, Turns

CHUNK = 512
"""Pairs tokenised at once."""
QUANTILES = 1000
"""Of the lengths, kept for a large data set."""


@dataclass(frozen=True)
class Prepared:
    """A data set ready for the model, and what is to be said of it."""

    pairs: list[TokenPair]
    findings: list[Finding]
    first_prompts: list[Turns]
    """Of the first rows, for samples."""
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


def prepare(
    sources: Sequence[str],
    chat: ChatFormat,
    options: DataOptions,
    *,
    seed: int,
    held_out: Sequence[str] = (),
    on_progress: Callable[[int], None] = lambda done: None,
) -> Prepared:
    """Read, check and tokenise preferences.

    Raises:
        ValueError: a row cannot be read, or all are too long.
        FileNotFoundError: a source does not exist.
    """
    apart = read_pairs(held_out, seed=seed) if held_out else ()
    findings = lint_pairs(read_pairs(sources, seed=seed), apart)
    encoded = _encoded(chat, read_pairs(sources, seed=seed), on_progress)
    pairs, lengths = tokenise(
        encoded, max_length=options.max_length, truncation_mode=options.truncation_mode
    )
    longest = lengths.longest()
    findings = [*findings, *_too_long(lengths, options)]
    if not longest:
        raise ValueError(f"{', '.join(sources)}: needs at least one pair; found no row")
    if not pairs:
        raise ValueError(
            f"{', '.join(sources)}: all {len(longest)} rows are longer than max_length"
            f" {options.max_length} (the shortest has {min(longest)} tokens);"
            " raise --max-length"
        )
    sha256 = content_hash(list(sources))
    record = {
        "sources": [_source(source, len(longest), sha256, len(sources)) for source in sources],
        "rows": len(longest),
        "rows_used": len(pairs),
        "sha256": sha256,
        "chat": {"template": chat.name, "hash": chat.hash, "notes": _notes(chat)},
        "findings": [asdict(finding) for finding in findings],
        "lengths": {
            "prompt": _thinned(lengths.prompt),
            "chosen": _thinned(lengths.chosen),
            "rejected": _thinned(lengths.rejected),
        },
        "truncation": [asdict(row) for row in truncation_table(longest)],
        "left_out": lengths.too_long,
        "cut": lengths.n_cut,
    }  # fmt: skip
    prompts = [pair.prompt for pair in islice(read_pairs(sources, seed=seed), 64)]
    return Prepared(pairs, findings, prompts, sha256, record)


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
    chat: ChatFormat, pairs: Iterable[Pair], on_progress: Callable[[int], None]
) -> Iterator[tuple[Pair, Encoded, Encoded]]:
    done = 0
    rows = iter(pairs)
    while chunk := list(islice(rows, CHUNK)):
        prompts = [pair.prompt for pair in chunk for _ in range(2)]
        answers = [side for pair in chunk for side in (pair.chosen, pair.rejected)]
        origins = [pair.origin for pair in chunk for _ in range(2)]
        sides = chat.encode_many(prompts, answers, origins=origins)
        yield from zip(chunk, sides[::2], sides[1::2], strict=True)
        done += len(chunk)
        on_progress(done)


def _too_long(lengths: Lengths, options: DataOptions) -> list[Finding]:
    """Return the findings about rows over the maximum, whatever was done with them."""
    found = lint_lengths(
        zip(lengths.origins, lengths.longest(), strict=True),
        max_length=options.max_length,
        max_long_share=options.max_long_share,
    )
    done = f"{len(lengths.too_long)} left out, {lengths.n_cut} cut ({options.truncation_mode})"
    return [replace(one, text=f"{one.text}; {done}") for one in found]


def _source(text: str, rows: int, sha256: str, n_sources: int) -> dict[str, Any]:
    path = parse_source(text).path
    if n_sources == 1:
        return {"path": path, "rows": rows, "sha256": sha256}
    alone = content_hash(text)
    return {"path": path, "rows": sum(1 for _ in read_pairs(text)), "sha256": alone}
