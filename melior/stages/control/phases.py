"""A run in phases, each with checkpoints of its own: killed anywhere, it goes on to the same bits.

Steps count through all phases. On resuming each phase goes back to its newest checkpoint; one that
was finished has nothing left to do there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from melior.records import Metrics
from melior.stages.control.options import TrainOptions
from melior.training.checkpoint import Checkpoints, Stateful
from melior.training.hooks import Progress, every
from melior.training.loop import Hook, fit
from melior.training.run import Run

B = TypeVar("B")
PHASES = ("dynamics", "reward", "policy")


@dataclass
class Phases:
    """The phases of a run; `taken` are the steps of those that are done."""

    run: Run
    train: TrainOptions
    about: Mapping[str, Any]
    """What the run belongs to: options and data."""
    taken: int = 0

    def fit(
        self,
        name: str,
        step: Callable[[Sequence[B]], Metrics],
        batches: Callable[[], Iterable[Sequence[B]]],
        *,
        parts: Mapping[str, Stateful],
        total: int,
        hooks: Callable[[int], Iterable[Hook]] = lambda start: (),
    ) -> int:
        """Take the steps of a phase that are still to come; return how many it has in all.

        Args:
            name: one of `PHASES`.
            step: what learns.
            batches: gives those still to come, once `parts` are as they were.
            parts: all that what comes next depends on.
            total: the most steps that there can be.
            hooks: of where the phase goes on, called before a checkpoint is left.
        """
        folder = self.run.folder / "checkpoints"
        kept = Checkpoints(folder / name, parts, about=self.about, keep=self.train.save_total_limit)
        start = self._restored(kept) if self.train.resume else 0
        later = PHASES[PHASES.index(name) + 1 :]
        if self.train.resume and not any(any((folder / one).glob("step-*")) for one in later):
            self.run.rewind(self.taken + start)
        done = [start]
        with Progress(total, start=start, what=f"{name}: step") as progress:
            own: list[Hook] = [
                lambda number, metrics: self._write(name, number, metrics),
                progress,
                *hooks(start),
                lambda number, _: done.append(number),
                every(self.train.save_steps, kept.save),
            ]
            fit(step, batches(), hooks=own, start=start, save=kept.save)
        kept.save(done[-1])
        self.taken += done[-1]
        return done[-1]

    def _write(self, name: str, number: int, metrics: Metrics) -> None:
        named = {f"{name}/{key}": value for key, value in metrics.items()}
        self.run.append(self.taken + number, named)

    def _restored(self, kept: Checkpoints) -> int:
        start, note = kept.restore(allow_changes=self.train.allow_changes)
        if note:
            self.run.note(note)
        return start
