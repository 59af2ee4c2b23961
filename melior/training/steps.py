"""A run that makes its data on the way: its folder, its steps, and how it goes on after a stop."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

from melior.config import config_to_dict
from melior.records import Metrics
from melior.training.checkpoint import Checkpoints, Stateful
from melior.training.hooks import Progress, every
from melior.training.loop import Hook, fit
from melior.training.options import StepOptions
from melior.training.run import Run

B = TypeVar("B")


def opened(recipe: str, paper: str, config: object, loop: StepOptions) -> Run:
    """Begin a run in its folder, or go on with the one that is there."""
    return Run.create(
        loop.out, recipe, config, sys.argv, paper=paper, resume=loop.resume,
        overwrite=loop.overwrite, allow_changes=loop.allow_changes, report_to=loop.report_to,
    )  # fmt: skip


def take_steps(
    run: Run,
    step: Callable[[Sequence[B]], Metrics],
    batches: Iterator[Sequence[B]],
    parts: Mapping[str, Stateful],
    *,
    config: object,
    loop: StepOptions,
    judge: Callable[[], Metrics],
    about: Mapping[str, Any] = {},
) -> None:
    """Take all steps, or those still to come, to the same bits.

    Args:
        run: whose folder gets metrics and checkpoints.
        step: from a batch to its metrics.
        batches: made when they are asked for; all that they depend on is among the parts.
        parts: what goes into a checkpoint.
        config: the recipe's, whose options a run must go on with.
        loop: how many steps, and what to leave behind.
        judge: says how good things are now; changes nothing that the steps depend on.
        about: what else a run must go on with.
    """
    kept = Checkpoints(
        run.folder / "checkpoints",
        parts,
        about={"options": config_to_dict(config), **about},
        keep=loop.save_total_limit,
    )
    start = _restored(run, kept, loop) if loop.resume else 0

    def judged(number: int) -> None:
        run.append(number, {f"eval_{name}": value for name, value in judge().items()})

    if start == 0:
        judged(0)
    with Progress(loop.steps, start=start) as progress:
        hooks: list[Hook] = [
            run.append,
            progress,
            every(loop.eval_steps, judged, last=loop.steps),
            every(loop.save_steps, kept.save, last=loop.steps),
        ]
        todo = islice(batches, loop.steps - start)
        fit(step, todo, hooks=hooks, start=start, save=kept.save)


def _restored(run: Run, kept: Checkpoints, loop: StepOptions) -> int:
    """Go back to the newest whole checkpoint and return its step."""
    start, remark = kept.restore(allow_changes=loop.allow_changes)
    if remark:
        run.note(remark)
    run.rewind(start or -1)  # without a checkpoint the start is judged again, too
    return start
