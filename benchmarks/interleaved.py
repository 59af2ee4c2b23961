"""Two processes that take turns at the same work, and what their times say.

Whatever else the machine does meets both, and who goes first changes from round to round.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rival import rival_python
from turns import Message, Worker

TOLERANCE = 1e-4
"""Between two float32 computations of the same number; relative, where that is more than 1."""
Turns = dict[str, list[Message]]
"""What each side answered in its turns, with the CPU and wall seconds that these took."""


def start(side: str, request: Message, options: argparse.Namespace, *, kind: str = "") -> Worker:
    """Start a worker."""
    python = rival_python(options.rival_env) if side == "trl" else Path(sys.executable)
    return Worker(side, python, options.threads, request, kind=kind)


@contextmanager
def both(
    request: Message, options: argparse.Namespace, *, kind: str = ""
) -> Iterator[dict[str, Worker]]:
    """Start a worker of each side, and end both."""
    with ExitStack() as stack:
        yield {
            side: stack.enter_context(start(side, request, options, kind=kind))
            for side in ("melior", "trl")
        }


def check(name: str, found: Mapping[str, Message]) -> None:
    """Stop where the two do not compute the same thing."""
    for key, ours in found["melior"].items():
        theirs = found["trl"][key]
        if abs(ours - theirs) > TOLERANCE * max(1.0, abs(ours), abs(theirs)):
            raise SystemExit(
                f"{name}: both need the same {key} in float32 before anything is timed;"
                f" found {ours} (melior) and {theirs} (trl)"
            )


def take_turns(workers: Mapping[str, Worker], what: str, count: int) -> dict[str, Any]:
    """Let both do the same with `index` 0, which warms up and does not count, then 1 to `count`."""
    steps: Turns = {side: [] for side in workers}
    for worker in workers.values():
        worker.forget_peak()
    for index in range(count + 1):
        for side in list(workers) if index % 2 else list(reversed(workers)):
            steps[side].append(workers[side].timed(what, index=index))
    return {
        "warm": {side: own.pop(0) for side, own in steps.items()},
        "steps": steps,
        "peak_gib": {side: worker.peak_gib() for side, worker in workers.items()},
    }


def median(steps: Sequence[Message], key: str = "cpu") -> float:
    return statistics.median(step[key] for step in steps)


def ratio(steps: Turns, side: str = "melior", key: str = "cpu") -> tuple[float, float, float]:
    """Return how many times a side's the rival's time is: of medians, least and most of a round."""
    rounds = [b[key] / a[key] for a, b in zip(steps[side], steps["trl"], strict=True)]
    return (median(steps["trl"], key) / median(steps[side], key), min(rounds), max(rounds))


def times(steps: Sequence[Message]) -> str:
    return f"{median(steps):.1f} s ({median(steps, 'wall'):.1f})"


def faster(steps: Turns, side: str = "melior") -> str:
    middle, least, most = ratio(steps, side)
    return f"**{middle:.2f}x** ({least:.2f} to {most:.2f})"


def memory(peak: Mapping[str, float], *, digits: int = 1) -> list[str]:
    """Return three cells: the rival's peak, melior's, and the share that this is."""
    each = [f"{peak[side]:.{digits}f} GiB" for side in ("trl", "melior")]
    return [*each, f"{peak['melior'] / peak['trl']:.2f}"]


def gaps(found: Mapping[str, Message]) -> str:
    """Say by how much two sides differ."""
    one, other = found.values()
    return ", ".join(f"{key} differs by {abs(one[key] - other[key]):.2g}" for key in other)
