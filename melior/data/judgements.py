"""Files of judges: those of AlpacaEval, Arena-Hard and MT-Bench, field by field.

Each record's fields are its file's; others are kept in `rest` and written again. A verdict that a
judge did not give is None, whatever the tool writes for it, and never a number.
"""

from __future__ import annotations

import csv
import io
import json
import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar, Union, get_args, get_origin, get_type_hints

from melior.data.files import written_whole
from melior.data.rows import Row, number
from melior.data.sources import read_records
from melior.records import Facts

Json = object
"""Whatever a tool writes here: kept as it is."""


@dataclass(frozen=True)
class ModelOutput:
    """One answer of AlpacaEval's `model_outputs.json`."""

    WHAT: ClassVar[str] = "a model output of AlpacaEval"
    dataset: str
    instruction: str
    output: str
    generator: str
    rest: Facts = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Annotation:
    """One judgement of AlpacaEval's `annotations.json`; model 2 is judged, model 1 the baseline."""

    WHAT: ClassVar[str] = "an annotation of AlpacaEval"
    instruction: str
    output_1: str
    generator_1: str
    output_2: str
    generator_2: str
    preference: float | None
    """From 1 (the first wins) to 2; 1.5 is a draw, which old files write as 0."""
    dataset: str | None = None
    annotator: str | None = None
    raw_completion: Json = None
    time_per_example: float | None = None
    price_per_example: float | None = None
    rest: Facts = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        """Check the preference's range."""
        given = self.preference
        if given is not None and given != 0 and not 1 <= given <= 2:
            raise ValueError(
                f"'preference' must lie from 1 to 2, or be 0 for a draw; found {given:g}"
            )


@dataclass(frozen=True)
class LeaderboardRow:
    """One line of AlpacaEval's leaderboard; rates and errors are in percent."""

    WHAT: ClassVar[str] = "a row of AlpacaEval's leaderboard"
    name: str = field(metadata={"column": ""})
    win_rate: float
    standard_error: float | None
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    discrete_win_rate: float | None
    mode: str | None
    avg_length: int | None
    length_controlled_winrate: float | None
    lc_standard_error: float | None
    rest: Facts = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class ArenaAnswer:
    """One line of an Arena-Hard answer file."""

    WHAT: ClassVar[str] = "an answer of Arena-Hard"
    uid: str
    ans_id: str
    model: str
    messages: tuple[Facts, ...]
    tstamp: float
    metadata: Facts
    """`token_len`, `header_count`, `list_count`, `bold_count`."""
    rest: Facts = field(default_factory=dict, hash=False)

    @property
    def answer(self) -> str:
        """What the model said last."""
        content = self.messages[-1].get("content") if self.messages else None
        said = content.get("answer") if isinstance(content, Mapping) else content
        if not isinstance(said, str):
            raise ValueError(f"answer {self.uid!r}: needs an 'answer' in its last message")
        return said


@dataclass(frozen=True)
class Game:
    """A verdict on the two answers in one order."""

    score: str | None
    """`A>>B`, `A>B`, `A=B`, `B>A`, `B>>A`; None where no verdict was found."""
    judgment: Json = None
    prompt: Json = None
    rest: Facts = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class ArenaJudgement:
    """One line of an Arena-Hard judgment file: the baseline stands first in game 1, last in 2."""

    WHAT: ClassVar[str] = "a judgment of Arena-Hard"
    uid: str
    category: str
    judge: str
    model: str
    baseline: str
    games: tuple[Game | None, ...]
    rest: Facts = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Choice:
    """One sample of an MT-Bench answer: what was said in each turn."""

    index: int
    turns: tuple[str, ...]
    rest: Facts = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class BenchAnswer:
    """One line of an MT-Bench answer file."""

    WHAT: ClassVar[str] = "an answer of MT-Bench"
    question_id: int
    answer_id: str
    model_id: str
    choices: tuple[Choice, ...]
    tstamp: float
    rest: Facts = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class BenchScore:
    """One line of MT-Bench's single-answer judgments."""

    WHAT: ClassVar[str] = "a single judgment of MT-Bench"
    question_id: int
    model: str
    judge: tuple[str, ...]
    """The model and its prompt's name."""
    user_prompt: str
    judgment: str
    score: float
    """From 1 to 10; -1 where none was found, as the tool writes it."""
    turn: int
    tstamp: float
    rest: Facts = field(default_factory=dict, hash=False)

    @property
    def verdict(self) -> float | None:
        """The score, and None where none was found."""
        return None if self.score < 0 else self.score


@dataclass(frozen=True)
class BenchPair:
    """One line of MT-Bench's pairwise judgments, in both orders."""

    WHAT: ClassVar[str] = "a pairwise judgment of MT-Bench"
    question_id: int
    model_1: str
    model_2: str
    g1_winner: str
    g2_winner: str
    judge: tuple[str, ...]
    g1_user_prompt: str
    g1_judgment: str
    g2_user_prompt: str
    g2_judgment: str
    turn: int
    tstamp: float
    rest: Facts = field(default_factory=dict, hash=False)


Record = TypeVar(
    "Record",
    ModelOutput,
    Annotation,
    LeaderboardRow,
    ArenaAnswer,
    ArenaJudgement,
    BenchAnswer,
    BenchScore,
    BenchPair,
)


def read(kind: type[Record], source: str | Path) -> Iterator[Record]:
    """Yield the records of one kind of file.

    Raises:
        ValueError: naming file, row and field of what is missing or of another type.
    """
    for origin, given in read_records(str(source)):
        yield parsed(kind, given, origin)


def read_leaderboard(path: str | Path) -> Iterator[LeaderboardRow]:
    """Yield the rows of a leaderboard: CSV whose first column has no name.

    Raises:
        ValueError: naming row and field of what is missing or no number.
    """
    with Path(path).open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream)
        for row in rows:
            yield parsed(LeaderboardRow, row, f"{path}:{rows.line_num}")


def parsed(kind: type[Record], given: Mapping[str, Any], origin: str) -> Record:
    """Return one row as a record."""
    return _record(kind, given, origin, kind.WHAT)


def write_list(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as one JSON list, as AlpacaEval does."""
    rows = [as_row(record) for record in records]
    _put(Path(path), json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


def write_lines(path: str | Path, records: Iterable[Record]) -> None:
    """Write records as JSON lines, as Arena-Hard and MT-Bench do."""
    lines = [json.dumps(as_row(record), ensure_ascii=False) + "\n" for record in records]
    _put(Path(path), "".join(lines))


def write_leaderboard(path: str | Path, rows: Iterable[LeaderboardRow]) -> None:
    """Write a leaderboard as CSV, its first column without a name."""
    text = io.StringIO()
    written = csv.writer(text, lineterminator="\n")
    columns = [_column(one) for one in fields(LeaderboardRow) if one.name != "rest"]
    written.writerow(columns)
    for row in map(as_row, rows):
        written.writerow(["" if row[name] is None else row[name] for name in columns])
    _put(Path(path), text.getvalue())


def as_row(record: object) -> dict[str, Any]:
    """Return a record as the columns of its file."""
    assert is_dataclass(record)
    own = [one for one in fields(record) if one.name != "rest"]
    row = {_column(one): _plain(getattr(record, one.name)) for one in own}
    return row | dict(getattr(record, "rest", {}))


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    return as_row(value) if is_dataclass(value) else value


def _column(one: Field[Any]) -> str:
    return str(one.metadata.get("column", one.name))


def _record(kind: type[Any], given: Mapping[str, Any], where: str, what: str) -> Any:
    """Build a dataclass of what a row holds; fields with a default may be absent."""
    row, hints = Row(where, given, what), get_type_hints(kind)
    found = {}
    for one in fields(kind):
        if one.name == "rest":
            continue
        name = _column(one)
        value = row.get(name) if one.default is MISSING else row.optional(name)
        found[one.name] = _value(hints[one.name], value, f"{where}: {name!r}")
    try:
        return kind(**found, rest=row.rest())
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _value(hint: Any, value: object, where: str) -> Any:
    """Return a value as a field's type asks, or say what was found instead."""
    if hint is object:
        return value
    if get_origin(hint) in (Union, types.UnionType):
        (inner,) = [part for part in get_args(hint) if part is not type(None)]
        is_missing = value in (None, "") or (isinstance(value, float) and math.isnan(value))
        return None if is_missing else _value(inner, value, where)
    if is_dataclass(hint) and isinstance(value, dict):
        return _record(hint, value, where, "it")  # type: ignore[arg-type]  # a class, not a record
    if get_origin(hint) is tuple and isinstance(value, list):
        return tuple(_value(get_args(hint)[0], one, where) for one in value)
    if hint in _PLAIN:
        return _PLAIN[hint](value, where)
    if get_origin(hint) is not tuple and not is_dataclass(hint) and isinstance(value, dict):
        return value
    raise ValueError(f"{where} needs {_name(hint)}; found {value!r:.60}")


def _text(value: object, where: str) -> str:
    if isinstance(value, str):
        return value
    raise ValueError(f"{where} needs text; found {value!r:.60}")


def _float(value: object, where: str) -> float:
    found = None if isinstance(value, bool) else number(value, where)
    if found is None:
        raise ValueError(f"{where} needs a number; found {value!r:.60}")
    return found


def _whole(value: object, where: str) -> int:
    found = _float(value, where)
    if found != int(found):
        raise ValueError(f"{where} needs a whole number; found {value!r:.60}")
    return int(found)


_PLAIN: dict[Any, Callable[[object, str], Any]] = {str: _text, float: _float, int: _whole}


def _name(hint: Any) -> str:
    return "a list" if get_origin(hint) is tuple else "an object"


def _put(path: Path, text: str) -> None:
    with written_whole(path) as file:
        file.write(text.encode())
