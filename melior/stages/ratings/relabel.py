"""From rated pairs to pairs under goals, and the file that tells inference how to ask for one."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from melior.data.files import read_any, write_pairs
from melior.data.goals import (
    TEMPLATE,
    GoalFormat,
    Placement,
    check_template,
    fit_scale,
    spelled,
    takes_system,
)
from melior.data.ratings import SWAPPED, Rated, columns_of, rated, relabelled
from melior.data.template import Writer
from melior.options import GoalOptions

GOAL_FILE = "melior_goal.json"
"""In the folder of a model that knows goals."""


@dataclass(frozen=True)
class Relabelled:
    """What became of rated pairs."""

    goals: GoalFormat
    read: int
    written: int
    """Two for each pair that was good for it."""
    left: Counter[str]
    """Pairs by what was done to them."""

    def sentence(self) -> str:
        """Say it."""
        kept = self.written // 2
        reasons = [f"{n} {why}" for why, n in sorted(self.left.items()) if n and why != SWAPPED]
        said = f"{self.written} pairs under goals, two for each of {kept} pairs"
        said += f"; left out {self.read - kept}" + (f" ({', '.join(reasons)})" if reasons else "")
        return said + (f"; {self.left[SWAPPED]} {SWAPPED}" if self.left[SWAPPED] else "")


def relabel(
    sources: Sequence[str],
    out: str | Path,
    options: GoalOptions,
    placement: Placement,
    *,
    seed: int = 0,
) -> Relabelled:
    """Write both goal-conditioned pairs of each rated pair.

    The sources are read twice, first for the scale of the scores.

    Raises:
        ValueError: scores are missing, off the scale or all equal, or no pair is left.
    """
    goals = fit_goals(read_rated(sources, options.scores, seed=seed), options, placement)
    left, read = Counter[str](), 0

    def counted() -> Iterator[Rated]:
        nonlocal read
        for row in read_rated(sources, options.scores, seed=seed):
            read += 1
            yield row

    made = relabelled(counted(), goals, min_gap=options.min_gap, trust=options.trust, left=left)
    first = next(made, None)
    if first is None:
        found = ", ".join(f"{count} {reason}" for reason, count in left.items() if count)
        raise ValueError(
            f"{', '.join(sources)}: relabelling needs pairs whose answers differ in their scores;"
            f" found {found}; score them by something finer, or try --scale quantile"
        )

    written = write_pairs(out, chain([first], made))
    return Relabelled(goals, read, written, left)


def read_rated(sources: Sequence[str], scores: str, *, seed: int = 0) -> Iterator[Rated]:
    """Yield pairs with what their answers score; the first row tells the columns.

    Raises:
        ValueError: naming the row that has no scores.
    """
    columns: tuple[str, str] | None = None
    for record in read_any(sources, seed=seed):
        columns = columns or columns_of(record, scores)
        yield rated(record, columns)


def fit_goals(rows: Iterable[Rated], options: GoalOptions, placement: Placement) -> GoalFormat:
    """Return how goals are written, with a scale for each attribute of these rows.

    Raises:
        ValueError: rows have other attributes than the first, or scores that make no scale.
        FileNotFoundError: the template's file is not there.
    """
    known: dict[str, list[float]] = {}
    for row in rows:
        for side in (row.chosen, row.rejected):
            known = known or {name: [] for name in side}
            others = set(side) - set(known)
            if others:
                raise ValueError(
                    f"{row.pair.origin}: every pair needs the attributes of the first,"
                    f" {', '.join(known)}; found {', '.join(sorted(others))}"
                )
            for name, score in side.items():
                known[name].append(score)
    if not known:
        raise ValueError("relabelling needs at least one rated pair; found none")
    low, high = options.goal_low, options.goal_high
    scales = {
        name: fit_scale(scores, options.scale, low=low, high=high, name=name)
        for name, scores in known.items()
    }
    highest = min(scales[name](max(scores)) for name, scores in known.items())
    template = _template(options.goal_template, several=len(scales) > 1)
    return GoalFormat(template, placement, low, high, scales, round(highest, 1))


def placement_of(options: GoalOptions, writer: Writer) -> Placement:
    """Return where goals stand under a chat template.

    Raises:
        ValueError: in a system turn that the template does not write.
    """
    is_able = takes_system(writer)
    if options.placement == "system" and not is_able:
        raise ValueError(
            f"placement system needs a chat template that writes system turns; {writer.name} does"
            " not; use user_prefix"
        )
    if options.placement == "auto":
        return "system" if is_able else "user_prefix"
    return options.placement


def save_goals(goals: GoalFormat, place: Path) -> None:
    """Write how goals are asked for."""
    place.write_text(json.dumps(goals.to_json(), indent=1) + "\n", encoding="utf-8")


def read_goals(folder: str | Path) -> GoalFormat:
    """Read how a model is asked for a goal.

    Raises:
        FileNotFoundError: the folder holds nothing of goals.
        ValueError: what it holds is not as it was written.
    """
    place = Path(folder).expanduser() / GOAL_FILE
    if not place.is_file():
        raise FileNotFoundError(
            f"{folder}: a goal needs a model that was trained on goals, with {GOAL_FILE} in its"
            " folder; found none; melior reward-augmented trains one, and melior relabel leaves"
            " the file beside its pairs"
        )
    return GoalFormat.from_json(json.loads(place.read_text(encoding="utf-8")), str(place))


def beyond(goals: GoalFormat, value: float) -> str:
    """Remark on a goal above all that was trained on; nothing for others."""
    if value <= goals.highest:
        return ""
    return (
        f"the goal {spelled(value)} lies beyond the highest in training,"
        f" {spelled(goals.highest)}: the model extrapolates"
    )


def _template(name: str, *, several: bool) -> str:
    if not name:
        return TEMPLATE
    if not Path(name).is_file():
        raise FileNotFoundError(f"goal_template: a text file is needed; found no file {name!r}")
    text = Path(name).read_text(encoding="utf-8")
    return check_template(text, several=several, where=name)
