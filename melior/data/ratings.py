"""Rated pairs, and the two goal-conditioned pairs that each of them is.

Zhang et al. 2024, arXiv 2410.08067, sec. 3. Under a goal `g` an answer is worth `R = -(g - r)^2`,
`r` being its own score. So under the goal that its better answer meets a pair stays as it is, and
under that of its worse one it is swapped. Pure.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from melior.data.files import cut_off
from melior.data.goals import OVERALL, GoalFormat, Ratings
from melior.data.rows import number, ratings
from melior.records import CUT_OFF, Facts, Group, Pair

STEMS: Final = (
    "score", "overall_score", "rating", "ratings", "reward", "avg_fine_score", "fine_grain_score",
)  # fmt: skip
"""Of columns that hold a pair's two scores, in the order in which they are looked for, ..."""
AFFIXES: Final = (("{}_chosen", "{}_rejected"), ("chosen_{}", "rejected_{}"),
                  ("chosen-{}", "rejected-{}"))  # fmt: skip
"""... with what stands around them: `score_chosen`, `chosen_score`, `chosen-rating`."""

EMPTY: Final = "with an empty answer"
SAME: Final = "with two equal answers"
GAP: Final = "with a rating missing"
TIE: Final = "whose two goals are equal"
CLOSE: Final = "with goals closer than min_gap"
AGAINST: Final = "whose label contradicts the scores"
SWAPPED: Final = "swapped first, since the scores contradict the label"


@dataclass(frozen=True)
class Rated:
    """A pair, and what its two answers score."""

    pair: Pair
    chosen: Ratings
    rejected: Ratings


def columns_of(record: Pair | Group, named: str) -> tuple[str, str]:
    """Return the columns that hold a pair's scores; of a group of two, those of its candidates.

    Args:
        record: the first of its file.
        named: a stem such as `overall_score`, or `auto`.

    Raises:
        ValueError: there are none.
    """
    if isinstance(record, Group):
        return ("aspects", "aspects") if named == "aspects" else ("score", "score")
    stems = STEMS if named == "auto" else (named,)
    known = [(a.format(stem), b.format(stem)) for stem in stems for a, b in AFFIXES]
    for both in known:
        if all(name in record.facts for name in both):
            return both
    wanted = " and ".join(map(repr, known[0]))
    raise ValueError(
        f"{record.origin}: relabelling needs a score of both answers, such as {wanted}; found"
        f" {list(record.facts)}; score them with melior score or melior margins"
    )


def rated(record: Pair | Group, columns: tuple[str, str]) -> Rated:
    """Return a record with what its two answers score.

    Raises:
        ValueError: a score is missing or not finite, or it is no group of two.
    """
    if isinstance(record, Group):
        return _rated_group(record, columns[0])
    found = [_ratings(record.facts.get(name), f"{record.origin}: {name!r}") for name in columns]
    return Rated(record, *found)


def relabelled(
    rows: Iterable[Rated], goals: GoalFormat, *, min_gap: float, trust: str, left: Counter[str]
) -> Iterator[Pair]:
    """Yield two pairs for each that is good for it; `left` counts the others by their reasons.

    Args:
        rows: rated pairs.
        goals: how goals are written.
        min_gap: between the two mean goals.
        trust: `label` leaves out pairs whose scores contradict the label, `score` swaps them first.
        left: reasons and how many.
    """
    for row in rows:
        reason = _unfit(row, goals, min_gap)
        if not reason and _mean(goals.goal(row.chosen)) < _mean(goals.goal(row.rejected)):
            reason = AGAINST if trust == "label" else ""
            left[SWAPPED] += not reason
            row = swapped(row)
        if reason:
            left[reason] += 1
        else:
            yield from twins(row, goals)


def twins(row: Rated, goals: GoalFormat) -> tuple[Pair, Pair]:
    """Return a pair under the goal of its better answer, and swapped under that of its worse one.

    Zhang et al. 2024, sec. 3. Their margin is the difference of `R`, the same for both: the summed
    squares of how far the goals lie apart.
    """
    named = str(row.pair.facts.get("pair_id") or pair_id(row.pair))
    both = goals.goal(row.chosen), goals.goal(row.rejected)
    margin = sum((g - both[1][name]) ** 2 for name, g in both[0].items())

    def one(side: Rated, goal: Ratings, source: str) -> Pair:
        facts = {
            **side.pair.facts,
            "goal": goals.told(goal),
            "goal_source": source,
            "pair_id": named,
            "score_chosen": goals.told(side.chosen),
            "score_rejected": goals.told(side.rejected),
        }
        return replace(
            side.pair, prompt=goals.ask(side.pair.prompt, goal), margin=margin, facts=facts
        )

    return one(row, both[0], "chosen"), one(swapped(row), both[1], "rejected")


def is_good(row: Rated, goals: GoalFormat, level: float) -> bool:
    """Say whether the rejected answer meets a level in all attributes: it only lost to a better."""
    is_rated = set(goals.scales) <= set(row.rejected)
    return is_rated and min(goals.goal(row.rejected).values()) >= level


def swapped(row: Rated) -> Rated:
    """Return a pair the other way round, with all that its facts say of either answer."""
    pair = row.pair
    facts: Facts = {_other(key, pair.facts): value for key, value in pair.facts.items()}
    turned = replace(
        pair, chosen=pair.rejected, rejected=pair.chosen, margin=-pair.margin, facts=facts
    )
    return Rated(turned, row.rejected, row.chosen)


def pair_id(pair: Pair) -> str:
    """Return a name that twins share: of the prompt and both answers."""
    said = [
        [[turn.role, turn.content] for turn in turns]
        for turns in (pair.prompt, pair.chosen, pair.rejected)
    ]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _other(key: str, facts: Facts) -> str:
    """Return the name of a column's counterpart for the other answer, or its own."""
    for here, there in (("chosen", "rejected"), ("rejected", "chosen")):
        other = key.replace(here, there)
        if here in key and (other in facts or key in CUT_OFF):
            return other
    return key


def _rated_group(group: Group, column: str) -> Rated:
    if len(group.candidates) != 2:
        raise ValueError(
            f"{group.origin}: relabelling needs two answers to a prompt; found"
            f" {len(group.candidates)}; choose pairs with melior select best-and-random"
        )
    scores = [
        _ratings(one.aspects if column == "aspects" else one.score, f"{group.origin}: score")
        for one in group.candidates
    ]
    order = sorted((0, 1), key=lambda i: -_mean(scores[i]))
    better, worse = (group.candidates[i] for i in order)
    pair = Pair(
        group.prompt, better.response, worse.response,
        facts={**group.facts, **cut_off(better, worse)}, origin=group.origin,
    )  # fmt: skip
    return Rated(pair, *(scores[i] for i in order))


def _ratings(value: object, where: str) -> Ratings:
    if isinstance(value, Mapping):
        return ratings(value, where)
    found = number(value, where)
    if found is None:
        raise ValueError(
            f"{where} needs a score of each answer; found none; score them with melior score"
        )
    return {OVERALL: found}


def _unfit(row: Rated, goals: GoalFormat, min_gap: float) -> str:
    """Return why a pair makes no twins; nothing where it does."""
    sides = row.pair.chosen, row.pair.rejected
    if any(not any(turn.content.strip() or turn.extra for turn in turns) for turns in sides):
        return EMPTY
    if sides[0] == sides[1]:
        return SAME
    if any(name not in side for side in (row.chosen, row.rejected) for name in goals.scales):
        return GAP
    both = goals.goal(row.chosen), goals.goal(row.rejected)
    if both[0] == both[1]:  # each twin would contradict the other
        return TIE
    return CLOSE if abs(_mean(both[0]) - _mean(both[1])) < min_gap else ""


def _mean(values: Ratings) -> float:
    return sum(values.values()) / len(values) if values else 0.0
