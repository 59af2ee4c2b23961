"""`melior plan`: what memory and time a run will take, and what would make it fit."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from melior.checks import in_range
from melior.stages.planning.machines import here, told

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

    from melior.stages.planning.estimate import Estimate

GIB = 2**30


@dataclass(frozen=True)
class PlanOptions:
    """For which machine, and in which form; all other options are those of the run."""

    on: str = ""
    """Devices that are not here: `8 x H100`, or `8 x 989e12 FLOP/s, 80 GB`; else this machine."""
    share_of_peak: float = 0.4
    """Of their declared FLOP/s, what such devices are assumed to give."""
    json: bool = False
    """Print JSON in place of tables."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("share_of_peak", self.share_of_peak, 0, 1, above=True)
        if self.on:
            told(self.on)


@dataclass(frozen=True)
class PlanConfig:
    """Say what memory and time a run will take, before it."""

    plan: PlanOptions = field(default=PlanOptions(), kw_only=True)


@cache
def config_of(kind: type) -> type[PlanConfig]:
    """Return the options of a run together with those of its plan."""
    space = {"__doc__": PlanConfig.__doc__, "__module__": __name__}
    return make_dataclass(
        f"Planned{kind.__name__}", [("run", kind)], bases=(PlanConfig,), frozen=True,
        namespace=space,
    )  # fmt: skip


def run(config: Any) -> None:
    """Print what the run would take."""
    from melior.stages.inputs import check_sources

    run, objective = config.run, config.run.objective
    check_sources(run.model, run.data, run.loop, holds=objective.data)
    from melior.models.loading import device_of
    from melior.stages.learn import Plan
    from melior.stages.planning.estimate import estimate

    parts = (run.model, run.data, run.optim, run.loop)
    plan = Plan(run.name, objective.paper, objective.method(), *parts, run)
    machine = told(config.plan.on) if config.plan.on else here(device_of(run.model.device))
    found = estimate(plan, machine, share=config.plan.share_of_peak)
    if config.plan.json:
        print(json.dumps(found.to_json(), indent=1))
        return
    from rich.console import Console

    Console(highlight=False).print(*_shown(found), sep="\n")


def _shown(found: Estimate) -> Iterator[RenderableType]:
    """Yield what is printed: the run, its memory, its time, and what would make it fit."""
    from rich.text import Text

    counts = found.counts
    yield Text(
        f"melior {found.command}, {found.model}: {found.n_weights / 1e6:,.1f} million weights,"
        f" {'all' if found.n_trained == found.n_weights else f'{found.n_trained / 1e6:,.1f}'}"
        " trained"
    )
    yield Text(
        f"{counts['rows']:,} rows, {counts['steps']:,} steps of {counts['FLOPs of a step']:.3g}"
        f" FLOPs and {counts['tokens of a step']:,.0f} tokens (padded, they would be"
        f" {counts['the same, padded']:,.0f}), {counts['scored tokens of a step']:,.0f} of them"
        f" scored, in {counts['portions of a step']:.1f} portions; the largest has"
        f" {counts['tokens of the largest portion']:,} tokens\n"
    )
    yield _memory(found)
    yield _verdict(found)
    if found.time:
        yield _time(found)
    for note in found.notes:
        yield Text(f"• {note}")


def _memory(found: Estimate) -> Table:
    """Show the parts of a training step's memory."""
    machine, count = found.machine, found.machine.count
    each = f" of each of {count}" if count > 1 else ""
    table = _table(f"memory{each}, {machine.name}", "GiB")
    for part in found.memory.training:
        table.add_row(part.name, f"{part.amount / GIB:.2f}", part.how)
    training = sum(part.amount for part in found.memory.training)
    table.add_row("a training step", f"{training / GIB:.2f}", "", style="bold")
    for name, amount in (
        ("reading the weights", found.memory.reading), ("answering", found.memory.answering)
    ):  # fmt: skip
        if amount:
            table.add_row(name, f"{amount / GIB:.2f}", "another moment")
    return table


def _verdict(found: Estimate) -> Text:
    """Say whether the memory is there, and else what would make it fit."""
    from rich.text import Text

    most, free = (amount / GIB for amount in (found.memory.most, found.machine.memory))
    said = (
        f"{most:.2f} GiB at the fullest moment ({found.memory.fullest}), {free:.2f} GiB are there:"
    )
    if found.fits:
        return Text(f"{said} it fits\n", style="bold")
    lines = [f"{said} it does not fit"]
    for way in found.ways:
        cost = f", {way.slower:.2f} times the FLOPs" if abs(way.slower - 1) > 0.005 else ""
        kind = "the same run up to rounding" if way.is_same else "another run"
        lines.append(f"  {way.options}: {way.memory / GIB:.2f} GiB{cost}; {kind}")
    if not found.ways:
        lines.append(
            "  no option makes it fit; a smaller model, shorter rows (--max-length) or a larger"
            " machine may"
        )
    lines.append(
        "  --batch-size does not help: a step is computed in portions of --max-tokens, however"
        " large it is\n"
    )
    return Text("\n".join(lines), style="bold")


def _time(found: Estimate) -> Table:
    """Show the parts of the time."""
    table = _table("time", "")
    for part in found.time:
        table.add_row(part.name, _clock(part.amount), part.how)
    table.add_row("in all", _clock(found.seconds), "", style="bold")
    return table


def _table(name: str, unit: str) -> Table:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(name)
    table.add_column(unit, justify="right")
    table.add_column("")
    return table


def _clock(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.3g} s"
    if seconds < 6000:
        return f"{seconds / 60:.3g} min"
    return f"{seconds / 3600:,.1f} h"
