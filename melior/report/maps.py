"""Charts without time: numbers as cells of the plane, and what was found against what is so."""

from __future__ import annotations

from collections.abc import Sequence

from melior.report.charts import (
    BOTTOM,
    HEIGHT,
    LEFT,
    RIGHT,
    TOP,
    WIDTH,
    Point,
    Scale,
    grid,
    padded,
)
from melior.report.markup import Html, join, tag
from melior.report.words import figure


def heat_map(title: str, cells: Sequence[Sequence[float]], *, darkest: float | None = None) -> Html:
    """Draw rows of numbers as cells, the darker the more; what is darkest stands by the title.

    By default the greatest: maps that are to be held side by side need one for all.
    """
    high = max(max(own) for own in cells)
    darkest = high if darkest is None else darkest
    width, height = (RIGHT - LEFT) / len(cells[0]), (BOTTOM - TOP) / len(cells)
    size = min(width, height)
    drawn = [
        tag(
            "rect",
            tag("title", f"{place}, {across}: {figure(value)}"),
            x=LEFT + across * size,
            y=TOP + place * size,
            width=size,
            height=size,
            fill_opacity=_shade(value, darkest),
        )
        for place, own in enumerate(cells)
        for across, value in enumerate(own)
    ]
    said = f"{len(cells)} by {len(cells[0])} cells, the greatest {figure(high)}"
    frame = tag("rect", x=LEFT, y=TOP, width=size * len(cells[0]), height=size * len(cells),
                class_="frame")  # fmt: skip
    svg = tag(
        "svg",
        tag("g", frame, drawn, class_="cells hue0"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}: {said}.",
    )
    ends = tag("span", join(["darkest ", tag("b", figure(darkest))]), class_="ends")
    return tag("figure", tag("figcaption", tag("b", title), ends), svg, class_="chart still")


def images(title: str, found: Sequence[Sequence[Sequence[float]]]) -> Html:
    """Draw images of one shape side by side, each framed; the darker the more."""
    lines, columns = len(found[0]), len(found[0][0])
    high = max(max(own) for image in found for own in image)
    # As many in a line as let a cell be largest, a cell's width between two images.
    across, size = max(
        ((n, _fitting(n, -(-len(found) // n), lines, columns)) for n in range(1, len(found) + 1)),
        key=lambda own: own[1],
    )
    drawn = []
    for place, image in enumerate(found):
        x = LEFT + place % across * (columns + 1) * size
        y = TOP + place // across * (lines + 1) * size
        drawn += [
            tag("rect", x=round(x + column * size, 2), y=round(y + line * size, 2),
                width=round(size, 2), height=round(size, 2), fill_opacity=_shade(value, high))
            for line, own in enumerate(image)
            for column, value in enumerate(own)
            if value > 0
        ]  # fmt: skip
        drawn.append(
            tag("rect", x=x, y=y, width=columns * size, height=lines * size, class_="frame")
        )
    svg = tag(
        "svg",
        tag("g", drawn, class_="cells hue0"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}: {len(found)} of {lines} by {columns} cells.",
    )
    return tag("figure", tag("figcaption", tag("b", title)), svg, class_="chart still")


def _fitting(across: int, down: int, lines: int, columns: int) -> float:
    return min((RIGHT - LEFT) / (across * (columns + 1)), (BOTTOM - TOP) / (down * (lines + 1)))


def _shade(value: float, high: float) -> float:
    return round(min(1.0, max(0.0, value) / high), 3) if high > 0 else 0.0


def against(title: str, points: Sequence[Point], names: tuple[str, str]) -> Html:
    """Draw what was found, upwards, over what is so; both agree on the dotted line."""
    values = [value for point in points for value in point]
    ends = padded(min(values), max(values))
    x, y = Scale(*ends, LEFT, RIGHT), Scale(*ends, BOTTOM, TOP)
    line = tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=TOP, class_="level")
    dots = [tag("circle", cx=x(a), cy=y(b), r=2.6) for a, b in points]
    apart = sum(abs(a - b) for a, b in points) / len(points)
    svg = tag(
        "svg",
        grid(x, y, figure),
        line,
        tag("g", dots, class_="cloud hue0"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}: {names[1]} over {names[0]}, on average {figure(apart)} apart.",
    )
    ways = tag("span", f"{names[1]} over {names[0]}", class_="ends")
    return tag("figure", tag("figcaption", tag("b", title), ways), svg, class_="chart still")
