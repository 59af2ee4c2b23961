"""What went wrong while runs were trained, with what helps, and the stretches where it shows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from melior.records import Facts
from melior.report import charts, words
from melior.report.load import Run, mappings, number
from melior.report.markup import Html, chip, tag

CALM = "✓ Nothing of what is watched went wrong."


def section(runs: Sequence[Run]) -> Html | None:
    """Write what each run's `health.json` holds; nothing for runs that were not watched."""
    watched = [(place, run) for place, run in enumerate(runs) if "findings" in run.health]
    if not watched:
        return None
    blocks = [_block(run, place, many=len(runs) > 1) for place, run in watched]
    return tag("section", tag("h2", "Health"), blocks, id="health")


def bands(run: Run, keys: Iterable[str]) -> list[charts.Band]:
    """Return the steps at which a finding shows in one of these metrics."""
    found = []
    for row in mappings(run.health.get("findings")):
        first, last, shown = number(row.get("first")), number(row.get("last")), row.get("curves")
        is_here = isinstance(shown, list) and not set(map(str, shown)).isdisjoint(keys)
        if is_here and first and last and first <= last:
            found.append(charts.Band(words.finding(row), first, last))
    return found


def warnings(run: Run) -> list[str]:
    """Return the sentences of the warnings, each with what helps."""
    return [
        f"{words.name(str(row.get('text') or ''))}. What helps: {row.get('remedy') or words.DASH}."
        for row in mappings(run.health.get("findings"))
        if row.get("level") == "warning"
    ]


def _block(run: Run, place: int, *, many: bool) -> Html:
    rows = mappings(run.health.get("findings"))
    return tag(
        "div",
        tag("h3", chip(place), run.label) if many else None,
        tag("ul", [_finding(row) for row in rows], class_="findings") if rows else None,
        None if rows else tag("p", CALM, class_="calm"),
        class_="comparison health",
    )


def _finding(row: Facts) -> Html:
    is_warning = row.get("level") == "warning"
    first, last = number(row.get("first")), number(row.get("last"))
    at = f"step {words.figure(first)}" if first == last else (
        f"steps {words.figure(first)} to {words.figure(last)}"
    )  # fmt: skip
    return tag(
        "li",
        tag("span", "!" if is_warning else "i", class_="mark", role="img",
            aria_label="warning" if is_warning else "note"),
        tag(
            "div",
            tag("b", words.finding(row)),
            f": {row.get('text') or ''} ",
            tag("small", at) if first and last else None,
            tag("p", tag("b", "What helps: "), str(row.get("remedy") or words.DASH)),
        ),
        class_="warning" if is_warning else "hint",
    )  # fmt: skip
