"""Pictures that a stage lays out in `evaluation.json`: maps, spreads, and points against the truth.

Each of `pictures` has a `kind` and a `title`: a `map` of `cells` (rows of numbers, the first axis
downwards), `images`, each such cells, a `spread` of `values`, `dots` of `values` by name with the
means, `lines` of points by name, or `against`: `points` of what was found over what is so, whose
`names` stand in that order.
"""

from __future__ import annotations

from collections.abc import Sequence

from melior.records import Facts
from melior.report import charts, maps, pictures
from melior.report.load import Run, mapping, mappings, numbers
from melior.report.markup import Html, hue, tag


def section(runs: Sequence[Run]) -> Html | None:
    """Draw the pictures of all runs; nothing where none has any that can be read."""
    drawn = [
        picture
        for run in runs
        for row in mappings(run.evaluation.get("pictures"))
        if (picture := _picture(row, run.label if len(runs) > 1 else "")) is not None
    ]
    if not drawn:
        return None
    return tag("section", tag("h2", "Pictures"), tag("div", drawn, class_="charts"), id="pictures")


def _picture(row: Facts, label: str) -> Html | None:
    title = " · ".join(part for part in (label, str(row.get("title") or "")) if part)
    kind = row.get("kind")
    if kind == "map":
        return _map(title, row)
    if kind == "images":
        return _images(title, row)
    if kind == "spread":
        values = numbers(row.get("values"))
        return charts.histogram(title, [("values", 0, values)]) if len(values) > 1 else None
    if kind == "dots":
        return _dots(title, row)
    if kind == "lines":
        return _lines(title, row)
    return _against(title, row) if kind == "against" else None


def _map(title: str, row: Facts) -> Html | None:
    cells, high = _cells(row.get("cells")), row.get("high")
    darkest = float(high) if isinstance(high, int | float) else None
    return maps.heat_map(title, cells, darkest=darkest) if cells else None


def _images(title: str, row: Facts) -> Html | None:
    rows = row.get("images")
    found = [_cells(own) for own in rows] if isinstance(rows, list) else []
    sizes = {(len(own), len(own[0])) if own else (0, 0) for own in found}
    if len(sizes) != 1 or (0, 0) in sizes:
        return None
    return maps.images(title, found)


def _cells(found: object) -> list[list[float]]:
    """Return rows of numbers, all as long; nothing of anything else."""
    cells = [numbers(own) for own in found] if isinstance(found, list) else []
    is_table = bool(cells) and bool(cells[0]) and len({len(own) for own in cells}) == 1
    return cells if is_table else []


def _dots(title: str, row: Facts) -> Html | None:
    from melior.evaluation.compare import t_interval  # loads torch, which other reports do without

    found = {name: numbers(own) for name, own in mapping(row.get("values")).items()}
    rows = [
        pictures.Row(name, tuple(own), t_interval(own, name=name))
        for name, own in found.items()
        if own
    ]
    unit = str(row.get("unit") or "")
    if not rows:
        return None
    drawn = pictures.embedded(pictures.dots(title, unit, rows))
    return tag("div", drawn, style="grid-column: 1 / -1")  # names need the page's width


def _lines(title: str, row: Facts) -> Html | None:
    lines = [
        charts.Line(name, _points(points), hue(place), place % 3)
        for place, (name, points) in enumerate(mapping(row.get("lines")).items())
    ]
    lines = [line for line in lines if line.points]
    return charts.line_chart(title, lines, over=str(row.get("over") or "step")) if lines else None


def _points(found: object) -> list[charts.Point]:
    pairs = [numbers(own) for own in found] if isinstance(found, list) else []
    return [(own[0], own[1]) for own in pairs if len(own) == 2]


def _against(title: str, row: Facts) -> Html | None:
    points, names = _points(row.get("points")), row.get("names")
    if not points or not isinstance(names, list) or len(names) != 2:
        return None
    return maps.against(title, points, (str(names[0]), str(names[1])))
