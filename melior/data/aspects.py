"""Answers rated by several objectives, some of them not at all, as files hold them; no torch.

Similar objectives of different data sets stay apart, since their raters and rubrics differ: names
bear their source, as in `helpsteer-helpfulness`. Null, nan, `N/A` and a column that is not there
all mean that nobody rated; a rating that is not finite is refused, and so is text that spells no
number in an objective's column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from melior.data import foreign, layouts
from melior.data.formats import Fields
from melior.data.rows import GAPS, Row, ratings, turns
from melior.data.sources import parse_source, read_records
from melior.records import Candidate, Facts, Group

HELPSTEER: Final = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
OVERALL: Final = ("overall_score", "fine-grained_score")
"""Of an answer in UltraFeedback, beside the ratings of its annotations."""
VERBOSITY: Final = "verbosity"
"""How the name ends of the objective that others are to share nothing with."""


@dataclass(frozen=True)
class Range:
    """What an objective's ratings lie between."""

    low: float
    high: float
    is_whole: bool
    """A scale of whole numbers, each in the middle of its bin, although means may lie between."""


KNOWN: Final = {
    **{f"helpsteer-{name}": Range(0, 4, True) for name in HELPSTEER},
    **{
        f"ultrafeedback-{name}": Range(1, 5, True)
        for name in ("instruction_following", "truthfulness", "honesty", "helpfulness")
    },
    "ultrafeedback-overall_score": Range(1, 10, True),
    "ultrafeedback-fine-grained_score": Range(1, 5, True),
}
"""Scales of data sets that everybody uses; a sample of them need not hold every rating."""


def read_rated(sources: Sequence[str]) -> Iterator[Group]:
    """Yield prompts with rated answers: each candidate's `aspects` by the objective's whole name.

    Known are HelpSteer's columns, UltraFeedback's, groups whose candidates have `aspects`, and
    rows of `messages`, or of `prompt` and `response`, with a column of numbers for each objective.
    Rows that follow each other with the same prompt become one group.

    Args:
        sources: `path[:split[:rows]]`, or `NAME=...` whose objectives are then called `NAME-...`.
            Without a name HelpSteer's and UltraFeedback's have theirs, and other objectives the
            names that the rows give them.

    Raises:
        ValueError: a row cannot be read, or two sources have an objective of the same name.
        FileNotFoundError: a source does not exist.
    """
    owners: dict[str, str] = {}
    for source in sources:
        name, place = named(source)
        for group in _merged(_groups(source, name, place)):
            for objective in dict.fromkeys(o for c in group.candidates for o in c.aspects):
                owner = owners.setdefault(objective, name or place)
                if owner != (name or place):
                    raise ValueError(
                        f"{group.origin}: objectives of different sources need different names;"
                        f" found {objective!r} in {owner}, too; tell them apart: NAME={place}"
                    )
            yield group


def named(source: str) -> tuple[str, str]:
    """Split `NAME=path` into name and path; the name may be missing."""
    found = re.fullmatch(r"([A-Za-z][\w-]*)=(.+)", source)
    return (found[1], found[2]) if found else ("", source)


def objectives(groups: Iterable[Group]) -> tuple[str, ...]:
    """Return the names of all objectives that somebody rated, in the order of their appearance."""
    rated = (one.aspects for group in groups for one in group.candidates)
    return tuple(dict.fromkeys(name for aspects in rated for name in aspects))


def range_of(name: str, values: Iterable[float], given: Mapping[str, Range]) -> Range:
    """Return an objective's range: the one that is given or known, else that of its ratings.

    Of ratings that are all 0 or 1, or lie between them, it is the unit interval; ArmoRM's own data
    has such ones under names that are known otherwise.
    """
    found = list(values)
    low, high, is_whole = min(found), max(found), all(value == int(value) for value in found)
    if name in given:
        return given[name]
    if name in KNOWN and (is_whole or high > 1):
        return KNOWN[name]
    if low >= 0 and high <= 1:
        return Range(0.0, 1.0, False)
    return Range(low, high, is_whole)


def parse_ranges(texts: Sequence[str]) -> dict[str, Range]:
    """Read `NAME=LOW:HIGH`; whole ends make a scale of whole numbers, 0:1 of a yes and a no.

    Raises:
        ValueError: it is not so written.
    """
    found = {}
    for text in texts:
        name, _, ends = text.rpartition("=")
        low, _, high = ends.partition(":")
        try:
            both = float(low), float(high)
        except ValueError:
            both = math.nan, math.nan
        if not name or not both[0] < both[1] or not all(map(math.isfinite, both)):
            raise ValueError(f"scales must be NAME=LOW:HIGH, such as clarity=1:5; found {text!r}")
        is_whole = both != (0, 1) and all(end == int(end) for end in both)
        found[name] = Range(*both, is_whole)
    return found


def check_range(group: Group, ranges: Mapping[str, Range]) -> None:
    """Check that ratings lie on their scales.

    Raises:
        ValueError: one does not, with its row and its objective.
    """
    for candidate in group.candidates:
        for name, value in candidate.aspects.items():
            if not ranges[name].low <= value <= ranges[name].high:
                raise ValueError(
                    f"{group.origin}: {name!r} must lie from {ranges[name].low:g} to"
                    f" {ranges[name].high:g}; found {value:g}; give its scale:"
                    f" --scales {name}=LOW:HIGH"
                )


def _groups(source: str, name: str, place: str) -> Iterator[Group]:
    parsed = parse_source(place)
    if parsed.weight != 1:
        raise ValueError(f"{source}: ratings need no weight, as each counts once; leave it out")
    rated, words = set[str](), dict[str, tuple[str, str]]()
    before = f"{name}-" if name else ""
    for origin, fields in read_records(parsed):
        group = _parsed(Row(origin, fields, "a rated answer"), name)
        rated.update(key.removeprefix(before) for one in group.candidates for key in one.aspects)
        for column, value in fields.items():
            if isinstance(value, str) and value not in GAPS and not _is_number(value):
                words.setdefault(column, (origin, value))
        yield group
    _refuse_text(words, rated)
    if not rated:
        raise ValueError(f"{source}: needs a row with a rating; found none")


def _merged(groups: Iterable[Group]) -> Iterator[Group]:
    """Bring together what stands together: HelpSteer has a row for each of a prompt's answers."""
    last: Group | None = None
    for group in groups:
        if last and last.prompt == group.prompt:
            last = replace(last, candidates=(*last.candidates, *group.candidates))
            continue
        if last:
            yield last
        last = group
    if last:
        yield last


def _parsed(row: Row, name: str) -> Group:
    fields = row.fields
    if {"instruction", "completions"} <= fields.keys():
        return _prefixed(_ultrafeedback(row), name or "ultrafeedback")
    if {"prompt", "response", *HELPSTEER} <= fields.keys():
        return _prefixed(_layout(foreign.GROUPS, "helpsteer").parse(row), name or "helpsteer")
    if {"prompt", "candidates"} <= fields.keys():
        return _prefixed(_layout(layouts.GROUPS, "melior").parse(row), name)
    if "messages" in fields or {"prompt", "response"} <= fields.keys():
        return _prefixed(_columns(row), name)
    raise ValueError(
        f"{row.origin}: a rated answer needs 'messages', or 'prompt' and 'response', and a column"
        " of numbers for each objective; or HelpSteer's or UltraFeedback's columns, or 'candidates'"
        f" with 'aspects'; found {list(fields)}"
    )


def _layout(known: Sequence[layouts.Layout], family: str) -> layouts.Layout:
    return next(layout for layout in known if layout.family == family)


def _prefixed(found: Any, name: str) -> Group:
    group: Group = found
    before = f"{name}-" if name else ""
    return replace(group, candidates=tuple(
        Candidate(one.response, aspects={before + key: value for key, value in one.aspects.items()})
        for one in group.candidates
    ))  # fmt: skip


def _ultrafeedback(row: Row) -> Group:
    """Add the overall scores that there are to the ratings of the annotations."""
    group = _layout(foreign.GROUPS, "ultrafeedback").parse(row)
    assert isinstance(group, Group)
    candidates = []
    for i, (one, said) in enumerate(zip(group.candidates, row.list("completions"), strict=True), 1):
        whole = {name: said[name] for name in OVERALL if name in said}
        more = ratings(whole, f"{row.origin}: completion {i}")
        candidates.append(replace(one, aspects={**one.aspects, **more}))
    return replace(group, candidates=tuple(candidates))


def _columns(row: Row) -> Group:
    """Read an answer with a column for each objective; other columns of numbers are objectives."""
    if "messages" in row.fields:
        said = row.turns("messages", "user")
        if not said or said[-1].role != "assistant":
            raise ValueError(f"{row.origin}: 'messages' need an answer of the assistant at their"
                             f" end; found {said[-1].role if said else 'none'}")  # fmt: skip
        prompt, response = said[:-1], said[-1:]
    else:
        prompt = turns(row.get("prompt"), "user", f"{row.origin}: 'prompt'")
        response = row.turns("response", "assistant")
    candidate = Candidate(response, aspects=_numbers(row.rest(), row.origin))
    return Group(prompt, (candidate,), origin=row.origin)


def _numbers(columns: Fields, origin: str) -> Facts:
    """Return the ratings among columns, but not what only names a row.

    They are numbers, truth values, and text that spells a number.
    """
    found = {
        name: value
        for name, value in columns.items()
        if _is_number(value) and not re.search(r"(^|_)(id|idx|index)$", name)
    }
    return ratings(found, origin)


def _is_number(value: object) -> bool:
    if isinstance(value, str):
        try:
            return not math.isnan(float(value))
        except ValueError:
            return False
    return isinstance(value, int | float)


def _refuse_text(rows: Mapping[str, tuple[str, str]], rated: Collection[str]) -> None:
    """Refuse text in the column of an objective, which would be a gap without a word.

    Raises:
        ValueError: naming its row and its column.
    """
    for name, (origin, value) in rows.items():
        if name in rated:
            raise ValueError(
                f"{origin}: {name!r} needs a finite number, as in other rows; found {value!r}; of"
                " what nobody rated write null or 'N/A'"
            )
