"""The essentials of a report, for a terminal."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from melior.records import Facts
from melior.report import words
from melior.report.load import Run, mapping, mappings, number, read_runs
from melior.report.page import worth_a_look, write_report
from melior.training import processes

STYLES = {"better": "bold cyan", "worse": "bold yellow", "changed": "bold"}
BLOCKS = "▁▂▃▄▅▆▇█"
CURVES = (
    "loss", "rewards/accuracies", "rewards/margins", "accuracy", "margin",
    "eval_loss", "eval_rewards/accuracies", "eval_accuracy",
)  # fmt: skip


def present(folders: Sequence[Path], out: Path | None = None) -> None:
    """Write the page of some runs, print the essentials, and name the page last."""
    if not processes.is_first():
        return
    place = write_report(folders, out)
    console = Console(highlight=False)
    console.print(essentials(read_runs(folders)))
    console.print(f"\nReport: {place}", soft_wrap=True, markup=False)


def essentials(runs: Sequence[Run]) -> Group:
    """Return each run's verdict, comparisons, main curves and findings, to be printed by rich."""
    parts: list[RenderableType] = []
    for run in runs:
        verdict = words.of_run(run)
        head = " · ".join(part for part in (run.label, run.status, words.took(run)) if part)
        parts += [Text(head, style="dim"), Text(verdict.sentence, STYLES.get(verdict.kind, "bold"))]
        if not run.comparisons:
            parts.append(Text(verdict.detail))
        parts += [
            part for part in (_comparisons(run), _curves(run), _wins(run)) if part is not None
        ]
        parts += [Text(f"• {remark}") for remark in [*_findings(run), *worth_a_look(run)]]
        parts.append(Text())
    return Group(*parts[:-1])


def print_facts(title: str, facts: Facts) -> None:
    """Print numbers by their names."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for key, value in facts.items():
        table.add_row(Text(words.name(key)), words.figure(number(value)))
    console = Console(highlight=False)
    console.print(Text(title, style="bold"))
    console.print(table)


def sparkline(values: Sequence[float], width: int = 24) -> str:
    """Draw values as a row of blocks, each the mean of its stretch."""
    n = min(width, len(values))
    cuts = [len(values) * i // n for i in range(n + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in itertools.pairwise(cuts)]
    low, high = min(means), max(means)
    if high == low:
        return BLOCKS[3] * n
    return "".join(BLOCKS[round((value - low) / (high - low) * 7)] for value in means)


def _comparisons(run: Run) -> Table | None:
    if not run.comparisons:
        return None
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("", "before", "after", "change", ""):
        table.add_column(head, justify="right" if head in ("before", "after") else "left")
    for row in run.comparisons:
        unit = str(row.get("unit") or "")
        difference = number(row.get("difference")) or 0.0
        ends = words.ends_of(row)
        table.add_row(
            Text(words.name(str(row.get("name")))),
            words.amount(number(row.get("before")), unit),
            words.amount(number(row.get("after")), unit),
            Text(
                f"{words.change(difference, unit)} ({ends})",
                STYLES.get(words.of_comparison(row).kind, ""),
            ),
            words.p_value(number(row.get("p_value"))),
        )
    return table


def _curves(run: Run) -> Table | None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    for key in CURVES:
        values = [value for _, value in run.curve(key)]
        if len(values) > 1:
            ends = f"{words.figure(values[0])} → {words.figure(values[-1])}"
            table.add_row(key, sparkline(values), ends)
    return table if table.row_count else None


def _wins(run: Run) -> Text | None:
    row = mapping(run.evaluation.get("win_rate"))
    wins, ties, losses = (number(row.get(key)) for key in ("wins", "ties", "losses"))
    if wins is None:
        return None
    rate = words.amount(number(row.get("win_rate")), "share")
    ends = words.interval(number(row.get("low")), number(row.get("high")), "share")
    counts = f"{words.figure(wins)} won, {words.figure(ties)} tied, {words.figure(losses)} lost"
    return Text(f"Prompt by prompt: {counts}; win rate {rate} ({ends})")


def _findings(run: Run) -> list[str]:
    found = [
        words.finding(row)
        for part in ("train", "held_out")
        for row in mappings(mapping(run.data.get(part)).get("findings"))
        if row.get("level") == "warning"
    ]
    return [f"Warnings of the data check: {', '.join(dict.fromkeys(found))}."] if found else []
