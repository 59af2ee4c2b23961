"""What judges' files say of a model against a baseline, as preferences from 0 to 1."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from melior.data import judgements
from melior.data.judgements import Annotation, ArenaJudgement, BenchPair
from melior.data.rows import Row
from melior.data.sources import near, read_records
from melior.evaluation.length_control import Gamed, Judged

STRONG: Final = 3
"""How often Arena-Hard counts a verdict with a double sign."""
LABELS: Final = {
    f"{left}{sign}{right}": (1.0 if is_left == (left == "A") else 0.0, weight)
    for left, right in ("AB", "BA")
    for sign, is_left, weight in ((">", True, 1), (">>", True, STRONG),
                                  ("<", False, 1), ("<<", False, STRONG))
} | {"A=B": (0.5, 1), "B=A": (0.5, 1)}  # fmt: skip
"""Of each of Arena-Hard's labels: the share that A wins, and how often it counts."""


@dataclass(frozen=True)
class Verdict:
    """A judge's word on one instruction."""

    preference: float | None
    """From 0, the baseline, to 1, the model; None where there was no verdict."""
    weight: float = 1.0
    lengths: tuple[int, int] | None = None
    """Characters of the baseline's and of the model's answer, where the file holds them."""


@dataclass(frozen=True)
class Contest:
    """All verdicts of one judge on a model against a baseline, in the file's order."""

    model: str
    baseline: str
    judge: str
    verdicts: tuple[Verdict, ...]

    @property
    def average_lengths(self) -> tuple[float, float] | None:
        """Mean characters of the baseline's and the model's answers, where they are known."""
        lengths = [one.lengths for one in self.verdicts if one.lengths]
        if len(lengths) < len(self.verdicts):
            return None
        baseline, model = np.mean(lengths, 0)
        return float(baseline), float(model)

    def judged(self, difficulty: Mapping[int, float]) -> Judged:
        """Return the judged instructions for length control.

        Args:
            difficulty: of the instructions by their place; empty where it is not known.

        Raises:
            ValueError: the answers, or some instruction's difficulty, are not known.
        """
        if difficulty and set(difficulty) != set(range(len(self.verdicts))):
            raise ValueError(
                f"{self.model}: needs a judgement, if a missing one, of each of the"
                f" {len(difficulty)} instructions whose difficulty is given, in their order;"
                f" found {len(self.verdicts)}"
            )
        rows = [
            (one.preference, one.lengths[0] - one.lengths[1], difficulty.get(place, 0.0))
            for place, one in enumerate(self.verdicts)
            if one.preference is not None and one.lengths is not None
        ]
        return Judged(*np.array(rows, dtype=np.float64).reshape(-1, 3).T)


def read_contests(source: str) -> list[Contest]:
    """Return the contests of AlpacaEval annotations, or Arena-Hard or MT-Bench pair judgments.

    Raises:
        ValueError: the file is none of these, or a row of it is wrong.
    """
    rows = read_records(source)
    first = next(rows, None)
    if first is None:
        raise ValueError(f"{source}: needs at least one judgement; found none")
    place = _reader(*first)
    found: dict[tuple[str, str, str], list[Verdict]] = {}
    for origin, fields in itertools.chain([first], rows):
        key, verdict = place(fields, origin)
        if key[0] == key[1]:
            raise ValueError(f"{origin}: needs a model and another one as baseline; found {key[0]}")
        found.setdefault(key, []).append(verdict)
    return [Contest(*key, tuple(verdicts)) for key, verdicts in found.items()]


def read_gamed(path: str | Path) -> tuple[Gamed, dict[int, float]]:
    """Read AlpacaEval's `df_gamed.csv`: the gamed judgements, and each instruction's difficulty.

    Raises:
        ValueError: a column is missing or holds no number.
    """
    columns: list[list[float]] = []
    difficulty: dict[int, float] = {}
    for origin, fields in read_records(str(path)):
        row = Row(origin, fields, "a gamed judgement")
        names = ("index", "preference", "std_delta_len", "instruction_difficulty")
        index, *numbers = (_needed(row, name) for name in names)
        columns.append(numbers)
        difficulty.setdefault(int(index), numbers[-1])
    if not columns:
        raise ValueError(f"{path}: needs at least one gamed judgement; found none")
    return Gamed(*np.array(columns, dtype=np.float64).T), difficulty


def of_annotation(one: Annotation) -> Verdict:
    """Take 1 off AlpacaEval's preference; 0 is an old file's draw."""
    lengths = len(one.output_1), len(one.output_2)
    if one.preference is None:
        return Verdict(None, lengths=lengths)
    return Verdict((one.preference or 1.5) - 1, lengths=lengths)


def of_games(one: ArenaJudgement) -> Verdict:
    """Average both games, a double sign counting three times; one game without verdict: none.

    In game 1 the baseline stands first, in game 2 the model.
    """
    if len(one.games) != 2:
        raise ValueError(f"'games' needs two, one of each order; found {len(one.games)}")
    labels = [None if game is None else game.score for game in one.games]
    if None in labels:
        return Verdict(None)
    wrong = [label for label in labels if label not in LABELS]
    if wrong:
        hint = near(str(wrong[0]), list(LABELS))
        raise ValueError(f"'score' must be a label such as A>>B or null; found {wrong[0]!r}{hint}")
    (first, first_weight), (second, second_weight) = (LABELS[str(label)] for label in labels)
    weight = first_weight + second_weight
    return Verdict(((1 - first) * first_weight + second * second_weight) / weight, weight)


def of_pair(one: BenchPair) -> Verdict:
    """Call a win what both orders agree on, and all else a draw; an error in one is no verdict."""
    shares = {"model_1": 1.0, "model_2": 0.0, "tie": 0.5}
    winners = one.g1_winner, one.g2_winner
    wrong = [winner for winner in winners if winner not in (*shares, "error")]
    if wrong:
        raise ValueError(f"a winner must be model_1, model_2, tie or error; found {wrong[0]!r}")
    if "error" in winners:
        return Verdict(None)
    return Verdict(shares[winners[0]] if winners[0] == winners[1] else 0.5)


Placed = tuple[tuple[str, str, str], Verdict]


def _reader(origin: str, fields: Mapping[str, Any]) -> Callable[[Mapping[str, Any], str], Placed]:
    """Return what reads a row, by the columns of the first one."""
    for column, read in (("preference", _annotation), ("games", _games), ("g1_winner", _pair)):
        if column in fields:
            return read
    hint = "; single scores make no win rate" if {"score", "turn"} <= set(fields) else ""
    raise ValueError(
        f"{origin}: needs 'preference' (AlpacaEval), 'games' (Arena-Hard) or 'g1_winner' (MT-Bench"
        f" pairs); found {list(fields)}{hint}"
    )


def _annotation(fields: Mapping[str, Any], origin: str) -> Placed:
    one = judgements.parsed(Annotation, fields, origin)
    return (one.generator_2, one.generator_1, one.annotator or "unknown"), of_annotation(one)


def _games(fields: Mapping[str, Any], origin: str) -> Placed:
    one = judgements.parsed(ArenaJudgement, fields, origin)
    return (one.model, one.baseline, one.judge), _located(of_games, one, origin)


def _pair(fields: Mapping[str, Any], origin: str) -> Placed:
    one = judgements.parsed(BenchPair, fields, origin)
    return (one.model_1, one.model_2, " ".join(one.judge[:1])), _located(of_pair, one, origin)


def _located(read: Callable[[Any], Verdict], one: object, origin: str) -> Verdict:
    try:
        return read(one)
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from error


def _needed(row: Row, name: str) -> float:
    row.get(name)
    found = row.number(name)
    if found is None:
        raise ValueError(f"{row.origin}: {name!r} needs a number; found none")
    return found
