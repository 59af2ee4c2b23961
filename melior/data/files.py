"""Read and write preferences: pairs, groups and prompts; every error names file, row and field.

Reading takes sources, `path[:split[:rows]][*weight]`, one or several, in any layout that
`layouts` and `foreign` know; writing gives JSON lines.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from melior.checks import one_of
from melior.data import foreign, layouts
from melior.data.formats import Fields, need
from melior.data.layouts import Layout
from melior.data.rows import Row, number
from melior.data.sources import Source, content_hash, near, parse_source, read_records
from melior.records import CUT_OFF, Candidate, Facts, Group, Pair, Turns, is_cut_off

__all__ = [
    "as_group",
    "as_pair",
    "as_row",
    "content_hash",
    "cut_off",
    "duel",
    "parse_source",
    "read_any",
    "read_groups",
    "read_pairs",
    "read_prompts",
    "read_records",
    "turn_rows",
    "weight_of",
    "write_groups",
    "write_pairs",
    "write_records",
    "written_whole",
]

Sources = str | Path | Sequence[str | Path]

PAIRS = (*layouts.PAIRS, *foreign.PAIRS, layouts.IMPLICIT)
GROUPS = (*layouts.GROUPS, *foreign.GROUPS)
PROMPTS = (layouts.PROMPT, *foreign.PROMPTS)
KNOWN: Sequence[Layout] = (*PAIRS, *GROUPS, *foreign.CONVERSATIONS, *PROMPTS)
FAMILIES = sorted({layout.family for layout in KNOWN})


def read_pairs(sources: Sources, *, seed: int = 0) -> Iterator[Pair]:
    """Yield pairs; a group of two candidates with different scores is one, too."""
    known = (*PAIRS, *GROUPS, *foreign.CONVERSATIONS)
    return map(as_pair, _read(sources, known, "a pair", seed=seed))


def read_groups(sources: Sources, *, seed: int = 0) -> Iterator[Group]:
    """Yield groups; a pair is a group of two, whose scores differ by its margin or by 1."""
    known = (*GROUPS, *PAIRS, *foreign.CONVERSATIONS)
    return map(as_group, _read(sources, known, "a group", seed=seed))


def read_prompts(sources: Sources, *, seed: int = 0) -> Iterator[Group]:
    """Yield prompts with their facts, as groups without candidates."""
    of_answers = (*CUT_OFF, "chosen_share")
    return (
        Group(record.prompt, (), _without(record.facts, *of_answers), record.origin)
        for record in _read(sources, KNOWN, "a prompt", seed=seed)
    )


def read_any(sources: Sources, *, family: str = "auto", seed: int = 0) -> Iterator[Pair | Group]:
    """Yield what the rows are: pairs, groups, or prompts as groups without candidates.

    Args:
        sources: where to read.
        family: the tool whose layouts to expect; `auto` knows them all.
        seed: draws the rows of sources whose weight is no whole number.
    """
    one_of("--from", family, ("auto", *FAMILIES))
    strict = [replace(layout, fits=_only_asks) for layout in PROMPTS]
    known = [*KNOWN[: -len(PROMPTS)], *strict]
    known = [layout for layout in known if family in ("auto", layout.family)]
    wanted = "a row" if family == "auto" else f"a row of {family}"
    return _read(sources, known, wanted, seed=seed)


def write_pairs(path: str | Path, pairs: Iterable[Pair]) -> int:
    """Write pairs as JSON lines and return how many; `-` is standard output."""
    return write_records(path, pairs)


def write_groups(path: str | Path, groups: Iterable[Group]) -> int:
    """Write groups as JSON lines and return how many; `-` is standard output."""
    return write_records(path, groups)


def write_records(path: str | Path, records: Iterable[Pair | Group]) -> int:
    """Write records as JSON lines: to standard output at once, to a file all or nothing."""
    count = 0
    with _stdout() if str(path) == "-" else _replaced(Path(path).expanduser()) as put:
        for record in records:
            put(_line(as_row(record)))
            count += 1
    return count


def as_pair(record: Pair | Group) -> Pair:
    """Return a pair as it is, and a group of two candidates with different scores as one."""
    if isinstance(record, Pair):
        return record
    ranked = sorted(record.candidates, key=lambda one: -(one.score or 0.0))
    scores = [one.score for one in ranked]
    if len(ranked) != 2 or None in scores or scores[0] == scores[1]:
        raise ValueError(
            f"{record.origin}: a pair needs 'chosen' and 'rejected', or two candidates with "
            f"different scores; found {len(ranked)} candidates with the scores {scores[:8]}; "
            "choose pairs with `melior select`"
        )
    best, worst = ranked
    facts = _without(record.facts, "weight", *CUT_OFF)
    return Pair(
        record.prompt, best.response, worst.response, weight=weight_of(record),
        facts=facts | cut_off(best, worst), origin=record.origin,
    )  # fmt: skip


def as_group(record: Pair | Group) -> Group:
    """Return a group as it is, and a pair as a group of two candidates."""
    if isinstance(record, Group):
        return record
    above = record.margin if record.margin > 0 else 1.0
    both = (
        Candidate(record.chosen, above, facts=_mark(record, CUT_OFF[0])),
        Candidate(record.rejected, 0.0, facts=_mark(record, CUT_OFF[1])),
    )
    weight = {} if record.weight == 1 else {"weight": record.weight}
    facts = _without(record.facts, *CUT_OFF)
    return Group(record.prompt, both, {**facts, **weight}, record.origin)


def duel(group: Group, chosen: Candidate, rejected: Candidate, *, margin: float) -> Pair:
    """Return two of a group's candidates as a pair, with their scores, and which was cut off."""
    facts = _without(group.facts, *CUT_OFF, "chosen_share")  # they were of other answers
    facts |= {"score_chosen": chosen.score, "score_rejected": rejected.score}
    facts |= cut_off(chosen, rejected)
    return Pair(group.prompt, chosen.response, rejected.response, margin, facts=facts)


def cut_off(chosen: Candidate, rejected: Candidate) -> dict[str, Any]:
    """Return the facts of a pair that say which of its answers was cut off; none if neither was."""
    found = {
        name: not is_cut_off(one.facts)
        for name, one in zip(CUT_OFF, (chosen, rejected), strict=True)
    }
    return {} if all(found.values()) else found


def _mark(pair: Pair, name: str) -> dict[str, Any]:
    return {"is_finished": False} if is_cut_off(pair.facts, name) else {}


def _without(facts: Facts, *names: str) -> dict[str, Any]:
    return {name: value for name, value in facts.items() if name not in names}


def weight_of(group: Group) -> float:
    """Return how much a group counts in the loss, which is one of its facts; 1 where it is not."""
    weight = number(group.facts.get("weight"), f"{group.origin}: 'weight'")
    if weight is not None and weight < 0:  # would train against the scores
        raise ValueError(f"{group.origin}: 'weight' must be at least 0; found {weight:g}")
    return 1.0 if weight is None else weight


def as_row(record: Pair | Group) -> dict[str, Any]:
    """Return a record as the columns that are written; its facts are columns of their own."""
    row = {**record.facts, "prompt": turn_rows(record.prompt)}
    if isinstance(record, Group):
        return row | {"candidates": [_candidate_row(one) for one in record.candidates]}
    row |= {"chosen": turn_rows(record.chosen), "rejected": turn_rows(record.rejected)}
    row |= {"margin": record.margin}
    return row if record.weight == 1 else row | {"weight": record.weight}


def turn_rows(turns: Turns) -> list[dict[str, Any]]:
    """Return turns as messages."""
    return [{"role": turn.role, "content": turn.content, **turn.extra} for turn in turns]


def _read(
    sources: Sources, known: Sequence[Layout], wanted: str, *, seed: int
) -> Iterator[Pair | Group]:
    several = [sources] if isinstance(sources, str | Path) else sources
    parsed = [parse_source(str(source)) for source in several]
    return _mix(parsed, known, wanted, seed)


def _mix(
    sources: Sequence[Source], known: Sequence[Layout], wanted: str, seed: int
) -> Iterator[Pair | Group]:
    for index, source in enumerate(sources):
        layout: Layout | None = None
        draw = random.Random(f"{seed} {index}")
        for origin, fields in read_records(source):
            layout = layout or _layout(known, origin, fields, wanted)
            copies = int(source.weight) + (draw.random() < source.weight % 1)
            if copies:
                yield from [layout.parse(Row(origin, fields, layout.name))] * copies


def _only_asks(fields: Fields) -> bool:
    """Say whether a row has no answer under a wrong name, so that it is a prompt and no more."""
    answers = ("chosen", "rejected", "completion", "completions", "candidates")
    return not any(near(name, list(fields)) for name in answers)


def _layout(known: Sequence[Layout], origin: str, fields: Fields, wanted: str) -> Layout:
    for layout in known:
        if all(name in fields for name in layout.needs) and layout.fits(fields):
            return layout
    raise ValueError(f"{origin}: {wanted} {_lack(known, fields)}")


def _lack(known: Sequence[Layout], fields: Fields) -> str:
    """Say what the nearest layout lacks."""
    others = list(fields)
    lacking = {
        layout: [name for name in layout.needs if name not in fields]
        for layout in known
        if not all(name in fields for name in layout.needs)
    }
    if not lacking:
        return f"needs text where there are lists, or lists where there is text; found {others}"

    def distance(layout: Layout) -> float:
        typos = sum(bool(near(name, others)) for name in lacking[layout])
        return (len(lacking[layout]) - 0.6 * typos) / len(layout.needs)

    nearest = min(lacking, key=distance)
    unused = [name for name in others if name not in nearest.needs]
    hints = "".join(near(name, unused) for name in lacking[nearest])
    return f"needs {' and '.join(map(repr, lacking[nearest]))}; found {others}{hints}"


def _candidate_row(candidate: Candidate) -> dict[str, Any]:
    row: dict[str, Any] = {"response": turn_rows(candidate.response), "score": candidate.score}
    if candidate.aspects:
        row["aspects"] = {**candidate.aspects}
    if candidate.steps:
        row["steps"] = [*candidate.steps]
    if candidate.facts:
        row["facts"] = {**candidate.facts}
    return row


def _line(row: Mapping[str, Any]) -> bytes:
    """Return one line of JSON; only text that UTF-8 cannot hold is escaped."""
    try:
        return (json.dumps(row, ensure_ascii=False, default=str) + "\n").encode()
    except UnicodeEncodeError:
        return (json.dumps(row, default=str) + "\n").encode()


@contextmanager
def _stdout() -> Iterator[Callable[[bytes], object]]:
    """Give each line on at once, so that the next command in a pipe can begin."""

    def put(line: bytes) -> None:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()

    sys.stdout.flush()
    yield put


@contextmanager
def _replaced(path: Path) -> Iterator[Callable[[bytes], object]]:
    """Write JSON lines to a path, compressed by its suffix, all or nothing."""
    inner = path.with_suffix("") if path.suffix in (".gz", ".zst") else path
    if inner.suffix not in (".jsonl", ".ndjson"):
        raise ValueError(f"{path}: needs a name in .jsonl, .jsonl.gz or .jsonl.zst to be written")
    with written_whole(path) as file, _packed(file, path) as packed:
        yield packed.write


@contextmanager
def written_whole(path: Path) -> Iterator[IO[bytes]]:
    """Write beside a path and move there when all is on the disk; leave nothing half written."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {str(path.parent)!r} does not exist; make it")
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        with suppress(FileNotFoundError):
            beside.unlink()


def _packed(file: IO[bytes], path: Path) -> AbstractContextManager[IO[bytes]]:
    """Compress by a path's suffix; the same rows give the same bytes."""
    if path.suffix == ".gz":
        return gzip.GzipFile("", "wb", fileobj=file, mtime=0)  # type: ignore[return-value]
    if path.suffix == ".zst":
        writer = need("zstandard", str(path)).ZstdCompressor().stream_writer(file, closefd=False)
        return writer
    return nullcontext(file)
