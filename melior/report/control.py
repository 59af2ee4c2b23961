"""A learned world: how far it can be followed, and where its reward says that it is real."""

from __future__ import annotations

from collections.abc import Sequence

from melior.records import Facts
from melior.report import charts, words
from melior.report.load import Run, mapping, numbers
from melior.report.markup import Child, Html, chip, hue, tag

SIDE, EDGE = 240, 34
"""Of the picture of the reward, and of the room for its scales."""


def section(runs: Sequence[Run]) -> Html | None:
    """Draw each run's world, where it has one."""
    blocks: list[Child] = []
    for place, run in enumerate(runs):
        world = mapping(run.evaluation.get("world"))
        drawn = [*_errors(world), _reward(mapping(world.get("reward")))]
        if any(part is not None for part in drawn):
            blocks.append(tag("h3", chip(place), run.label) if len(runs) > 1 else None)
            blocks.append(tag("div", drawn, class_="charts"))
    if not blocks:
        return None
    note = (
        "How far the learned world is off when it is followed with real actions, by how what "
        "follows is taken from the ensemble's candidates: the median over starts, in deviations of "
        "the log's observations. The log's own episodes are those that it was fitted to: there it "
        "errs less than in new ones. And the dynamics reward where what followed in the log is "
        "moved, the mean over logged steps: a reward that knows the world is highest in the middle."
    )
    return tag("section", tag("h2", "World"), tag("p", note, class_="note"), blocks, id="world")


def _errors(world: Facts) -> list[Html]:
    found = []
    for way, arms in mapping(world.get("errors")).items():
        lines = [
            charts.Line(str(name), list(enumerate(numbers(values), 1)), hue(place), place)
            for place, (name, values) in enumerate(mapping(arms).items())
            if numbers(values)
        ]
        if lines:
            title = f"Error of the world, by {way}"
            found.append(charts.line_chart(title, lines, over="step"))
    return found


def _reward(reward: Facts) -> Html | None:
    """Draw the reward over the plane as squares, the darker the more real."""
    places, rows = numbers(reward.get("places")), reward.get("rewards")
    table = [numbers(row) for row in rows] if isinstance(rows, list) else []
    if len(places) < 2 or [len(row) for row in table] != [len(places)] * len(places):
        return None
    low, high = min(map(min, table)), max(map(max, table))
    said = f"from {words.figure(low)} (blank) to {words.figure(high)} (full)"
    svg = tag(
        "svg",
        tag("g", _squares(table, low, high), class_="hue0"),
        tag("g", _marks(places), class_="grid", aria_hidden="true"),
        viewBox=f"0 0 {EDGE + SIDE + 4} {SIDE + EDGE}",
        role="img",
        aria_label=f"Dynamics reward around what followed, {said}.",
    )
    title = "Dynamics reward around what followed"
    axes = f"{said}; across: first number of the observation, up: second, in deviations of a change"
    caption = tag("figcaption", tag("b", title), tag("span", axes))
    return tag("figure", caption, svg, class_="chart still")


def _squares(table: Sequence[Sequence[float]], low: float, high: float) -> list[Html]:
    size = SIDE / len(table)
    return [
        tag(
            "rect",
            x=EDGE + size * across,
            y=SIDE - size * (up + 1),
            width=size + 0.3,  # no gap where edges are rounded
            height=size + 0.3,
            fill="currentColor",
            fill_opacity=round((value - low) / ((high - low) or 1.0), 3),
        )
        for up, row in enumerate(table)
        for across, value in enumerate(row)
    ]


def _marks(places: Sequence[float]) -> list[Html]:
    """Write both ends and the middle beside the sides."""
    found = []
    low, high = words.figure(places[0]), words.figure(places[-1])
    for said, share, anchor, down in ((low, 0, "start", 0), ("0", 0.5, "middle", 4),
                                      (high, 1, "end", 10)):  # fmt: skip
        found += [
            tag("text", said, x=EDGE + SIDE * share, y=SIDE + 16, text_anchor=anchor),
            tag("text", said, x=EDGE - 6, y=SIDE * (1 - share) + down, text_anchor="end"),
        ]
    return found
