"""Pictures that are SVG files of their own: arms in rows, one quantity against another, clouds."""

from __future__ import annotations

import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote

from melior.report.charts import Point, Scale, padded, ticks
from melior.report.markup import Html, join, tag

if TYPE_CHECKING:
    from melior.evaluation.compare import Interval

WIDTH, ROW, MARGIN, AXIS = 680, 28, 16, 44
LABELS = 230
"""Where the rows' names end and the numbers begin."""
SQUARE = 420
LIGHT = ("#0072b2", "#c24e00", "#00795a", "#a2447f", "#7a6000", "#3d4ea8")
DARK = ("#56b4e9", "#f28e4b", "#35c79a", "#e39ccb", "#e0c04a", "#a3aeff")


@dataclass(frozen=True)
class Row:
    """One arm: what each seed gave, and the mean with its interval."""

    name: str
    values: tuple[float, ...]
    interval: Interval


@dataclass(frozen=True)
class Mark:
    """One arm's place in the plane."""

    name: str
    label: str
    """What is written beside it where it ends a series."""
    x: float
    y: float


def dots(title: str, unit: str, rows: Sequence[Row], *, level: Row | None = None) -> Html:
    """Draw a row for each arm: seeds as rings, the mean as a dot on its interval.

    `level` is drawn as a line through all rows.
    """
    ends = [end for row in rows for end in _extent(row)]
    ends += [level.interval.estimate] if level else []
    x = Scale(*padded(min(ends), max(ends)), LABELS, WIDTH - MARGIN)
    top, bottom = 48, 48 + ROW * len(rows)
    line = None
    if level is not None:
        at = x(level.interval.estimate)
        line = [
            tag("line", x1=at, x2=at, y1=top, y2=bottom, class_="level"),
            tag("text", level.name, x=at, y=top - 6, class_="soft", text_anchor="middle"),
        ]
    drawn = [_row(row, x, top + ROW * (place + 0.5)) for place, row in enumerate(rows)]
    said = "; ".join(f"{row.name} {row.interval.estimate:.3g}" for row in rows)
    return _picture(
        bottom + AXIS,
        f"{title}: {said}.",
        tag("text", title, x=MARGIN, y=22, class_="head"),
        _axis(x, top, bottom, unit),
        line,
        drawn,
    )


def plane(title: str, x_name: str, y_name: str, series: Mapping[str, Sequence[Mark]]) -> Html:
    """Draw series of arms in the plane, joined in their order, the ends of each labelled."""
    marks = [mark for own in series.values() for mark in own]
    top = 40 + 20 * ((len(series) + 2) // 3)
    x = Scale(*_span([mark.x for mark in marks]), 64, WIDTH - MARGIN)
    y = Scale(*_span([mark.y for mark in marks]), SQUARE - AXIS, top + 8)
    keys = [
        tag(
            "g",
            tag("circle", cx=MARGIN + 6 + 216 * (i % 3), cy=40 + 20 * (i // 3), r=5),
            tag("text", name, x=MARGIN + 18 + 216 * (i % 3), y=44 + 20 * (i // 3)),
            class_=f"hue{i % len(LIGHT)}",
        )
        for i, name in enumerate(series)
    ]
    drawn = [_series(own, x, y, hue=i % len(LIGHT)) for i, own in enumerate(series.values())]
    said = "; ".join(f"{m.name} at {m.x:.3g}, {m.y:.3g}" for m in marks)
    return _picture(
        SQUARE,
        f"{title}: {said}.",
        tag("text", f"{title} ({y_name} upwards)", x=MARGIN, y=22, class_="head"),
        keys,
        _axis(x, top, SQUARE - AXIS, x_name),
        _heights(y),
        drawn,
        list(_names(series.values(), x, y)),
    )


def embedded(drawn: Html) -> Html:
    """Put a picture in as a file of its own, whose style touches nothing else on the page."""
    said = html.unescape(drawn.partition("<title>")[2].partition("</title>")[0])
    source = f"data:image/svg+xml,{quote(drawn)}"
    image = tag("img", src=source, alt=said, style="min-width: 520px; max-width: 100%")
    return tag("div", image, class_="scroll", tabindex=0, role="region", aria_label="Picture")


def cloud(title: str, x_name: str, y_name: str, points: Sequence[Point]) -> Html:
    """Draw what was found, upwards, over what is so; both agree on the dotted line."""
    ends = _span([value for point in points for value in point])
    x, y = Scale(*ends, 64, WIDTH - MARGIN), Scale(*ends, SQUARE - AXIS, 40)
    apart = sum(abs(a - b) for a, b in points) / len(points)
    return _picture(
        SQUARE,
        f"{title}: {len(points)} points, on average {apart:.3g} apart.",
        tag("text", f"{title} ({y_name} upwards)", x=MARGIN, y=22, class_="head"),
        _axis(x, 40, SQUARE - AXIS, x_name),
        _heights(y),
        tag("line", x1=x.start, x2=x.end, y1=y.start, y2=y.end, class_="level"),
        tag("g", [tag("circle", cx=x(a), cy=y(b), r=2.2) for a, b in points], class_="hue0 many"),
    )


def _heights(y: Scale) -> list[Html]:
    return [
        tag("text", f"{value:g}", x=58, y=y(value) + 4, class_="soft", text_anchor="end")
        for value in ticks(y.low, y.high)
    ]


def _span(values: Sequence[float]) -> tuple[float, float]:
    return padded(min(values), max(values), by=0.08)


def _extent(row: Row) -> tuple[float, ...]:
    ends = (row.interval.low, row.interval.high)
    return (*row.values, *(end for end in ends if end is not None))


def _row(row: Row, x: Scale, y: float) -> Html:
    bar = None
    if row.interval.low is not None and row.interval.high is not None:
        bar = tag("line", x1=x(row.interval.low), x2=x(row.interval.high), y1=y, y2=y, class_="bar")
    return tag(
        "g",
        tag("text", row.name, x=LABELS - 12, y=y + 4, text_anchor="end"),
        bar,
        [tag("circle", cx=x(value), cy=y, r=3.5, class_="ring") for value in row.values],
        tag("circle", cx=x(row.interval.estimate), cy=y, r=5),
        class_="hue0",
    )


def _series(marks: Sequence[Mark], x: Scale, y: Scale, *, hue: int) -> Html:
    path = "M" + "L".join(f"{x(mark.x):.1f} {y(mark.y):.1f}" for mark in marks)
    return tag(
        "g",
        tag("path", d=path, class_="path"),
        [tag("circle", cx=x(mark.x), cy=y(mark.y), r=5) for mark in marks],
        class_=f"hue{hue}",
    )


def _names(series: Iterable[Sequence[Mark]], x: Scale, y: Scale) -> Iterator[Html]:
    """Yield the labels of the ends of each series, but none upon another."""
    taken: list[tuple[float, float]] = []
    for hue, marks in enumerate(series):
        for mark in {marks[0].name: marks[0], marks[-1].name: marks[-1]}.values():
            is_left = x(mark.x) < WIDTH - 130
            at, height = x(mark.x) + (9 if is_left else -9), y(mark.y) - 7
            near = any(abs(at - left) < 70 and abs(height - top) < 12 for left, top in taken)
            if near or not mark.label:
                continue
            taken.append((at, height))
            side = "start" if is_left else "end"
            kind = f"small hue{hue % len(LIGHT)}"
            yield tag("text", mark.label, x=at, y=height, class_=kind, text_anchor=side)


def _axis(x: Scale, top: float, bottom: float, name: str) -> list[Html]:
    places = ticks(x.low, x.high, 5)
    grid = [
        tag("line", x1=x(value), x2=x(value), y1=top, y2=bottom, class_="grid") for value in places
    ]
    words = [
        tag("text", f"{value:g}", x=x(value), y=bottom + 16, class_="soft", text_anchor="middle")
        for value in places
    ]
    middle = (x.start + x.end) / 2
    return [*grid, *words, tag("text", name, x=middle, y=bottom + 34, text_anchor="middle")]


def _picture(height: float, said: str, *parts: Html | Sequence[Html] | None) -> Html:
    return tag(
        "svg",
        tag("title", said),
        tag("style", Html(_style())),
        tag("rect", width=WIDTH, height=height, rx=8, class_="paper"),
        join(part for part in parts if part is not None),
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH} {height:g}",
        width=WIDTH,
        height=height,
        role="img",
    )


def _style() -> str:
    """Return the colours, light and dark; a file of its own sees no page's style."""

    def colours(paper: str, ink: str, soft: str, grid: str, hues: Sequence[str]) -> str:
        own = "".join(f".hue{i}{{color:{hue}}}" for i, hue in enumerate(hues))
        return (
            f".paper{{fill:{paper}}}text{{fill:{ink}}}.soft{{fill:{soft}}}"
            f".grid{{stroke:{grid}}}.level{{stroke:{soft}}}.ring{{fill:{paper}}}{own}"
        )

    light = colours("#ffffff", "#1b1d21", "#5a616b", "#e3e4e1", LIGHT)
    dark = colours("#1a1d21", "#e8e9eb", "#a0a8b3", "#2c3036", DARK)
    shapes = (
        "text{font:12.5px system-ui,sans-serif}.head{font-weight:600;font-size:14px}"
        ".small{font-size:11px;fill:currentColor}circle{fill:currentColor}"
        ".ring{stroke:currentColor;stroke-width:1.2;opacity:.75}"
        ".bar{stroke:currentColor;stroke-width:3;stroke-linecap:round;opacity:.6}"
        ".path{fill:none;stroke:currentColor;stroke-width:1.6;opacity:.7}"
        ".level{stroke-width:1.2;stroke-dasharray:4 3}.many{opacity:.45}"
    )
    return f"{light}@media(prefers-color-scheme:dark){{{dark}}}{shapes}"
