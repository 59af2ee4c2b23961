"""What the judgement found: every comparison with its interval, wins, subsets and other facts."""

from __future__ import annotations

import json
from collections.abc import Sequence

from melior.records import Facts
from melior.report import charts, words
from melior.report.load import Run, mapping, mappings, number
from melior.report.markup import Child, Html, chip, table, tag

OUTCOMES = {"won": "wins", "tied": "ties", "lost": "losses"}


def section(runs: Sequence[Run]) -> Html | None:
    """Write every comparison with its interval, wins, subsets, tables and facts."""
    names = list(dict.fromkeys(str(row.get("name")) for run in runs for row in run.comparisons))
    if not names and not any(run.evaluation for run in runs):
        return None
    many = len(runs) > 1
    blocks: list[Child] = [_comparisons(name, runs) for name in names]
    blocks.append(_wins(runs))
    blocks += [_subsets(run, many) for run in runs]
    blocks += [
        _table(run, row, many) for run in runs for row in mappings(run.evaluation.get("tables"))
    ]
    blocks.append(_facts(runs))
    titles = dict.fromkeys(str(run.evaluation.get("title") or "") for run in runs)
    legend = "Ring: before. Dot: after. Dotted line: no change." if names else ""
    note = " · ".join(title for title in (*titles, legend) if title)
    return tag(
        "section",
        tag("h2", "Before and after"),
        tag("p", note, class_="note") if note else None,
        blocks,
        id="evaluation",
    )


def _comparisons(name: str, runs: Sequence[Run]) -> Html:
    found = [
        (i, run, row)
        for i, run in enumerate(runs)
        for row in run.comparisons
        if str(row.get("name")) == name
    ]
    unit = str(found[0][2].get("unit") or "")
    level = _level_scale(_values([row for *_, row in found], "before", "after"), unit)
    changes = _values([row for *_, row in found], "difference", "low", "high")
    change = charts.percent_scale([*changes, 0.0])
    rows = [_comparison(row, run, i, level, change, many=len(runs) > 1) for i, run, row in found]
    sizes = {number(row.get("n")) for _, _, row in found} - {None}
    size = f"n = {words.figure(sizes.pop())}" if len(sizes) == 1 else None
    return tag(
        "div",
        tag("h3", words.name(name), tag("small", size) if size else None),
        rows,
        class_="comparison",
    )


def _values(rows: Sequence[Facts], *keys: str) -> list[float]:
    found = [number(row.get(key)) for row in rows for key in keys]
    return [value for value in found if value is not None]


def _level_scale(levels: list[float], unit: str) -> charts.Scale:
    if unit == "share" and all(0 <= value <= 1 for value in levels):
        return charts.Scale(0, 1, 2, 98)
    return charts.percent_scale(levels or [0.0])


def _comparison(
    row: Facts, run: Run, place: int, level: charts.Scale, change: charts.Scale, *, many: bool
) -> Html:
    unit, kind = str(row.get("unit") or ""), words.of_comparison(row).kind
    before, after, low, high = (number(row.get(k)) for k in ("before", "after", "low", "high"))
    difference = number(row.get("difference")) or 0.0
    said = f"{words.change(difference, unit)} ({words.ends_of(row)})"
    levels = None
    if before is not None and after is not None:
        ends = f"{words.amount(before, unit)} → {words.amount(after, unit)}"
        levels = tag("div", charts.dumbbell_strip(level, before, after, kind=kind, label=ends),
                     tag("span", ends), class_="levels")  # fmt: skip
    return tag(
        "div",
        tag("span", chip(place), run.label, class_="who") if many else None,
        levels,
        tag(
            "div",
            charts.interval_strip(change, difference, low, high, kind=kind, label=said),
            tag(
                "span", tag("b", said), " ", tag("small", words.p_value(number(row.get("p_value"))))
            ),
            class_="change",
        ),
        class_=f"row {kind}",
    )


def _wins(runs: Sequence[Run]) -> Html | None:
    bars = [bar for i, run in enumerate(runs) if (bar := _win(run, i, len(runs) > 1)) is not None]
    title = tag("h3", "Against the start, prompt by prompt", tag("small", "a tie counts half"))
    return tag("div", title, bars, class_="comparison") if bars else None


def _win(run: Run, place: int, many: bool) -> Html | None:
    row = mapping(run.evaluation.get("win_rate"))
    parts = [(kind, number(row.get(key)) or 0.0) for kind, key in OUTCOMES.items()]
    rate, low, high = (number(row.get(key)) for key in ("win_rate", "low", "high"))
    if not sum(n for _, n in parts):
        return None
    total = f"win rate {words.amount(rate, 'share')} ({words.interval(low, high, 'share')})"
    said = ", ".join(f"{words.figure(n)} {kind}" for kind, n in parts)
    keys = [
        tag(
            "span", tag("i", class_=f"chip {kind}", aria_hidden="true"), f"{words.figure(n)} {kind}"
        )
        for kind, n in parts
    ]
    return tag(
        "div",
        tag("p", chip(place), run.label, class_="who") if many else None,
        charts.stacked_bar(parts, f"{said}; {total}"),
        tag("p", tag("span", keys, class_="legend"), tag("b", total), class_="under"),
        class_="win",
    )


def _subsets(run: Run, many: bool) -> Html | None:
    rows = [
        row
        for row in mappings(run.evaluation.get("subsets"))
        if len(_values([row], "before", "after")) == 2
    ]
    if not rows:
        return None
    main = run.comparisons[0] if run.comparisons else {}
    unit = str(main.get("unit") or "")
    scale = _level_scale(_values(rows, "before", "after"), unit)
    is_up_good = main.get("higher_is_better", True)
    cells = [_subset(r, unit, scale, is_up_good) for r in rows]
    return tag(
        "div",
        tag("h3", "By subset", tag("small", run.label) if many else None),
        table(["Subset", "n", "Before and after", "", "Change and interval"], cells, "subsets"),
        class_="comparison",
    )


def _subset(row: Facts, unit: str, scale: charts.Scale, is_up_good: object) -> list[Child]:
    before, after = number(row["before"]) or 0.0, number(row["after"]) or 0.0
    low, high = number(row.get("low")), number(row.get("high"))
    full = {"difference": after - before, "unit": unit, "higher_is_better": is_up_good, **row}
    kind = words.of_comparison(full).kind
    ends = f"{words.amount(before, unit)} → {words.amount(after, unit)}"
    said = f"{words.change(after - before, unit)} ({words.interval(low, high, unit)})"
    strip = charts.dumbbell_strip(scale, before, after, kind=kind, label=ends)
    size = words.figure(number(row.get("n")))
    return [str(row.get("name")), size, strip, ends, tag("span", said, class_=kind)]


def _table(run: Run, row: Facts, many: bool) -> Html | None:
    """Write what a stage lays out in a table of its own: `title`, `note`, `columns`, `rows`."""
    columns, rows = row.get("columns"), row.get("rows")
    if not isinstance(columns, list) or not isinstance(rows, list):
        return None
    cells = [[_fact(cell) for cell in own] for own in rows if isinstance(own, list) and own]
    return tag(
        "div",
        tag("h3", str(row.get("title") or ""), tag("small", run.label) if many else None),
        tag("p", str(row["note"]), class_="note") if row.get("note") else None,
        table([str(name) for name in columns], cells, "numbers"),
        class_="comparison",
    )


def _facts(runs: Sequence[Run]) -> Html | None:
    facts = [mapping(run.evaluation.get("facts")) for run in runs]
    names = list(dict.fromkeys(key for own in facts for key in own))
    if not names:
        return None
    if len(runs) == 1:
        tiles = [
            tag("div", tag("dt", words.name(key)), tag("dd", _fact(facts[0][key]))) for key in names
        ]
        return tag("dl", tiles, class_="comparison tiles")
    heads: list[Child] = ["", *(tag("span", chip(i), run.label) for i, run in enumerate(runs))]
    rows = [
        [words.name(key), *(_fact(own[key]) if key in own else words.DASH for own in facts)]
        for key in names
    ]
    return tag("div", table(heads, rows), class_="comparison")


def _fact(value: object) -> str:
    if isinstance(value, str):
        return value
    is_number = value is None or number(value) is not None
    return words.figure(number(value)) if is_number else json.dumps(value)
