"""Charts as inline SVG that say what they show to those who cannot see them, too.

Line charts carry their points in `data-chart`, from which the page's script draws the read-out.
Strips (intervals, dumbbells, bars) are laid out in percent, so that they stretch without scaling.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from melior.report.markup import Html, join, tag
from melior.report.words import figure

Point = tuple[float, float]
WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 352, 10, 164
MOST_POINTS = 300
"""Points drawn of one line; of more, each stretch keeps its lowest and highest."""


@dataclass(frozen=True)
class Line:
    """One line of a chart."""

    name: str
    points: list[Point]
    hue: int
    """Which colour of the palette."""
    dash: int = 0
    """0 is drawn through; others dashed in their own way."""
    is_sparse: bool = False
    """Measured now and then: drawn with a mark at each point, and never smoothed."""


@dataclass(frozen=True)
class Cloud:
    """Several measures of one thing in the plane, and their mean."""

    name: str
    points: list[Point]
    hue: int
    mean: Point


@dataclass(frozen=True)
class Band:
    """Steps to look at, shaded behind the lines."""

    name: str
    first: float
    last: float


@dataclass(frozen=True)
class Scale:
    """From a value to a place on the page."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Return the place of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    as_percent: bool = False,
    bands: Sequence[Band] = (),
    over: str = "step",
) -> Html:
    """Draw lines over steps, with a legend where there are several, and what marks a stretch."""
    lines = [line for line in lines if line.points]
    values = [value for line in lines for _, value in line.points]
    steps = [step for line in lines for step, _ in line.points]
    y_low, y_high = (0.0, 1.0) if as_percent else padded(min(values), max(values))
    x = Scale(min(steps), max(max(steps), min(steps) + 1), LEFT, RIGHT)
    y = Scale(y_low, y_high, BOTTOM, TOP)
    write = _percent if as_percent else figure
    drawn = [_line(line, x, y, with_raw=len(lines) <= 3) for line in lines]
    data = {
        "x": [x.low, x.high, LEFT, RIGHT],
        "y": [y.low, y.high, BOTTOM, TOP],
        "percent": as_percent,
        "over": over,
        "lines": [[n.name, n.hue, [[s, _short(v)] for s, v in thin(n.points)]] for n in lines],
    }
    summary = "; ".join(
        f"{n.name} from {write(n.points[0][1])} to {write(n.points[-1][1])}" for n in lines
    ) + "".join(f"; {band.name} from {over} {figure(band.first)}" for band in bands)
    svg = tag(
        "svg",
        [_band(band, x) for band in bands],
        grid(x, y, write, steps_are_whole=True),
        drawn,
        tag("g", class_="cursor"),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        tabindex=0,
        aria_label=f"{title} over {over}s: {summary}. Arrow keys read out values.",
    )
    return tag(
        "figure",
        tag(
            "figcaption", tag("b", title), _legend(lines) if len(lines) > 1 else _ends(lines, write)
        ),
        svg,
        tag("div", class_="readout", aria_live="polite"),
        class_="chart",
        data_chart=json.dumps(data, ensure_ascii=False, separators=(",", ":")),
    )


def histogram(title: str, groups: Sequence[tuple[str, int, list[float]]], unit: str = "") -> Html:
    """Draw the shares of values in equal bins, one outline for each (name, hue, values)."""
    groups = [group for group in groups if group[2]]
    everything = sorted(value for _, _, values in groups for value in values)
    low, high = padded(everything[0], everything[-1], by=0.0)
    n_bins = min(24, max(6, math.isqrt(len(everything))))
    shares = [_shares(values, low, high, n_bins) for _, _, values in groups]
    x = Scale(low, high, LEFT, RIGHT)
    y = Scale(0, max(max(own) for own in shares) * 1.08, BOTTOM, TOP)
    shapes = []
    for (_, hue, values), own in zip(groups, shares, strict=True):
        edges = [x.start + (x.end - x.start) * i / n_bins for i in range(n_bins + 1)]
        path = f"M{edges[0]:.1f} {y(0):.1f}" + "".join(
            f"V{y(share):.1f}H{edge:.1f}" for share, edge in zip(own, edges[1:], strict=True)
        )
        middle = x(median(values))
        shapes += [
            tag("path", d=f"{path}V{y(0):.1f}Z", class_=f"area hue{hue}"),
            tag("line", x1=middle, x2=middle, y1=TOP, y2=BOTTOM, class_=f"median hue{hue}"),
        ]
    medians = "; ".join(f"{name}: median {figure(median(v))} of {len(v)}" for name, _, v in groups)
    svg = tag(
        "svg",
        grid(x, y, _percent),
        shapes,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"Distribution of {title}. {medians}.",
    )
    keys = [_key(f"{name}, median {figure(median(v))}", hue) for name, hue, v in groups]
    label = f"{title} ({unit})" if unit else title
    return tag("figure", tag("figcaption", tag("b", label), tag("span", keys, class_="legend")),
               svg, class_="chart still")  # fmt: skip


def plane(
    title: str,
    clouds: Sequence[Cloud],
    *,
    x: tuple[float, float],
    y: tuple[float, float],
    as_percent: bool = False,
    level: float | None = None,
) -> Html:
    """Draw clouds in the plane: points as rings, means as dots, and a dotted line at a level."""
    across, up = Scale(*x, LEFT, RIGHT), Scale(*y, BOTTOM, TOP)
    write = _percent if as_percent else figure
    line = None
    if level is not None:
        line = tag("line", x1=LEFT, x2=RIGHT, y1=up(level), y2=up(level), class_="level")
    drawn = [
        tag(
            "g",
            [tag("circle", cx=across(a), cy=up(b), r=3.2, class_="ring") for a, b in own.points],
            tag("circle", cx=across(own.mean[0]), cy=up(own.mean[1]), r=5),
            class_=f"cloud hue{own.hue}",
        )
        for own in clouds
    ]
    said = "; ".join(f"{o.name} at {figure(o.mean[0])}, {write(o.mean[1])}" for o in clouds)
    svg = tag(
        "svg",
        grid(across, up, write),
        line,
        drawn,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=f"{title}: {said}.",
    )
    keys = [
        tag("span", tag("i", class_=f"chip hue{own.hue}", aria_hidden="true"), own.name)
        for own in clouds
    ]
    return tag("figure", tag("figcaption", tag("b", title), tag("span", keys, class_="legend")),
               svg, class_="chart still")  # fmt: skip


def interval_strip(
    scale: Scale, estimate: float, low: float | None, high: float | None, *, kind: str, label: str
) -> Html:
    """Draw an estimate and its interval against a line at 0; the scale is in percent."""
    zero = tag("line", x1=_at(scale(0)), x2=_at(scale(0)), y1=0, y2=24, class_="zero")
    bar = None
    if low is not None and high is not None:
        bar = tag("line", x1=_at(scale(low)), x2=_at(scale(high)), y1=12, y2=12, class_="bar")
    dot = tag("circle", cx=_at(scale(estimate)), cy=12, r=5)
    return tag("svg", zero, bar, dot, class_=f"strip {kind}", role="img", aria_label=label)


def dumbbell_strip(scale: Scale, before: float, after: float, *, kind: str, label: str) -> Html:
    """Draw a level before (ring) and after (dot) on one line; the scale is in percent."""
    start, end = scale(before), scale(after)
    return tag(
        "svg",
        tag("line", x1="0%", x2="100%", y1=12, y2=12, class_="rail"),
        tag("line", x1=_at(start), x2=_at(end), y1=12, y2=12, class_="bar"),
        tag("circle", cx=_at(start), cy=12, r=5, class_="ring"),
        tag("circle", cx=_at(end), cy=12, r=5.5),
        class_=f"strip {kind}",
        role="img",
        aria_label=label,
    )


def stacked_bar(parts: Sequence[tuple[str, float]], label: str) -> Html:
    """Draw (class, amount) parts of a whole in one bar."""
    total, start, drawn = sum(amount for _, amount in parts) or 1, 0.0, []
    for kind, amount in parts:
        width = 100 * amount / total
        drawn.append(tag("rect", x=_at(start), width=_at(width), y=0, height=22, class_=kind))
        start += width
    return tag("svg", drawn, class_="strip stack", role="img", aria_label=label)


def percent_scale(values: Sequence[float], *, by: float = 0.08) -> Scale:
    """Return a scale over a strip that holds all values, in percent of its width."""
    low, high = padded(min(values), max(values), by=by)
    return Scale(low, high, 2, 98)


def padded(low: float, high: float, *, by: float = 0.06) -> tuple[float, float]:
    """Widen a range by a share of itself; a range of no width gets one."""
    if low == high:
        return low - (abs(low) * 0.1 or 0.5), high + (abs(high) * 0.1 or 0.5)
    return low - by * (high - low), high + by * (high - low)


def ticks(low: float, high: float, n: int = 4, *, are_whole: bool = False) -> list[float]:
    """Return about n round numbers from low to high."""
    rough = max((high - low) / n, 1 if are_whole else 0)
    power = 10.0 ** math.floor(math.log10(rough))
    sizes = [power * factor for factor in (1, 2, 2.5, 5, 10)]
    step = next(
        size for size in sizes if size >= rough * 0.999 and (size % 1 == 0 or not are_whole)
    )
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def thin(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """Keep at most so many points, with the ends and every stretch's lowest and highest."""
    if len(points) <= most:
        return points
    inner, n_parts = points[1:-1], (most - 2) // 2
    kept = [points[0]]
    for part in range(n_parts):
        stretch = inner[part * len(inner) // n_parts : (part + 1) * len(inner) // n_parts]
        ends = {min(stretch, key=lambda p: p[1]), max(stretch, key=lambda p: p[1])}
        kept += sorted(ends)
    return [*kept, points[-1]]


def smooth(points: list[Point]) -> list[Point]:
    """Average over a window of a twentieth of the points, centred and cut at the ends."""
    half = max(2, len(points) // 40)
    sums = [0.0, *itertools.accumulate(value for _, value in points)]
    result = []
    for place, (step, _) in enumerate(points):
        first, last = max(0, place - half), min(len(points), place + half + 1)
        result.append((step, (sums[last] - sums[first]) / (last - first)))
    return result


def _line(line: Line, x: Scale, y: Scale, *, with_raw: bool) -> list[Html]:
    def path(points: list[Point], kind: str) -> Html:
        places = "L".join(f"{x(s):.1f} {y(v):.1f}" for s, v in thin(points))
        return tag("path", d=f"M{places}", class_=f"{kind} hue{line.hue} dash{line.dash}")

    is_noisy = len(line.points) >= 40 and not line.is_sparse
    drawn = [path(line.points, "raw")] if is_noisy and with_raw else []
    if len(line.points) > 1:
        drawn.append(path(smooth(line.points) if is_noisy else line.points, "line"))
    if line.is_sparse or len(line.points) == 1:
        drawn += [
            tag("circle", cx=x(s), cy=y(v), r=3.2, class_=f"mark hue{line.hue}")
            for s, v in thin(line.points, 60)
        ]
    return drawn


def _band(band: Band, x: Scale) -> Html:
    """Shade a stretch, at least as wide as a line."""
    first, last = (min(max(step, x.low), x.high) for step in (band.first, band.last))
    width = max(2.0, x(last) - x(first))
    place = min(x(first), RIGHT - width)
    shape = tag("rect", x=place, width=width, y=TOP, height=BOTTOM - TOP, class_="band")
    return tag("g", tag("title", band.name), shape)


def grid(
    x: Scale, y: Scale, write: Callable[[float], str], *, steps_are_whole: bool = False
) -> Html:
    """Draw lines and numbers at round values of both axes."""
    parts = []
    for value in ticks(y.low, y.high):
        place = y(value)
        parts.append(
            tag("line", x1=LEFT, x2=RIGHT, y1=place, y2=place, class_="zero" if not value else None)
        )
        parts.append(tag("text", write(value), x=LEFT - 7, y=place + 3.5, text_anchor="end"))
    for value in ticks(x.low, x.high, 5, are_whole=steps_are_whole):
        parts.append(tag("text", figure(value), x=x(value), y=BOTTOM + 17, text_anchor="middle"))
    return tag("g", parts, class_="grid", aria_hidden="true")


def _legend(lines: Sequence[Line]) -> Html:
    hues = {line.hue for line in lines if not line.is_sparse}
    named = [line for line in lines if not (line.is_sparse and line.hue in hues)]
    return tag("span", [_key(n.name, n.hue, n.dash, n.is_sparse) for n in named], class_="legend")


def _key(name: str, hue: int, dash: int = 0, is_sparse: bool = False) -> Html:
    mark = tag("circle", cx=11, cy=6, r=3.2, class_=f"mark hue{hue}") if is_sparse else None
    swatch = tag("line", x1=0, x2=22, y1=6, y2=6, class_=f"line hue{hue} dash{dash}")
    return tag("span", tag("svg", swatch, mark, class_="swatch", aria_hidden="true"), name)


def _ends(lines: Sequence[Line], write: Callable[[float], str]) -> Html:
    (first, last) = lines[0].points[0][1], lines[0].points[-1][1]
    return tag("span", join([write(first), " → ", tag("b", write(last))]), class_="ends")


def _shares(values: list[float], low: float, high: float, n_bins: int) -> list[float]:
    counts = [0] * n_bins
    for value in values:
        counts[min(n_bins - 1, int((value - low) / (high - low) * n_bins))] += 1
    return [count / len(values) for count in counts]


def _percent(share: float) -> str:
    return f"{figure(round(100 * share, 1))}%"


def _short(value: float) -> float:
    return float(f"{value:.5g}")


def _at(percent: float) -> str:
    return f"{percent:.2f}%"
