"""What happens between steps: progress on the terminal, and things done every so many steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from melior.records import Metrics
from melior.training import processes

if TYPE_CHECKING:
    from melior.training.loop import Hook  # which needs torch

SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "reward", "accuracy", "kl", "grad_norm")
"""Metrics that the progress shows, where a step has them."""


def every(steps: int, act: Callable[[int], object], *, last: int = 0) -> Hook:
    """Do something after each so many steps (0: never), and after the step `last`."""

    def hook(step: int, _: Metrics) -> None:
        if (steps and step % steps == 0) or step == last:
            act(step)

    return hook


@runtime_checkable
class Shown(Protocol):
    """Shows how many are done."""

    def __call__(self, done: int, note: str = "") -> None:
        """Show a number, and behind it what else there is to say."""


@contextmanager
def counted(
    title: str,
    total: int | None = None,
    *,
    start: int = 0,
    console: Console | None = None,
    pause: float = 10.0,
) -> Iterator[Shown]:
    """Show how many are done of what takes a while: a live line, or plain lines to a file."""
    place = console or _console()
    if not place.is_terminal:
        yield _plain_lines(title, total, place, pause)
        return
    note = TextColumn("{task.fields[note]}", markup=False)
    columns = (SpinnerColumn(), TextColumn(title), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, note, console=place, transient=True) as bar:
        task = bar.add_task("", total=total, completed=start, note="")

        def show(done: int, note: str = "") -> None:
            bar.update(task, completed=done, note=note)

        yield show


def _console() -> Console:
    """Return where progress is shown; of processes that share the work only the first shows any."""
    return Console(stderr=True, quiet=not processes.is_first())


def _plain_lines(title: str, total: int | None, console: Console, pause: float) -> Shown:
    """Say how many are done, but not more often than every so many seconds."""
    said = [time.monotonic()]

    def say(done: int, note: str = "") -> None:
        if time.monotonic() - said[0] >= pause:
            said[0] = time.monotonic()
            of = f" of {total}" if total else ""
            line = f"{title}: {done}{of}" + (f"; {note}" if note else "")
            console.print(line, soft_wrap=True, highlight=False, markup=False)

    return say


class Progress:
    """Rate, time left and the numbers that matter: a live line, or plain lines to a file."""

    def __init__(
        self,
        total: int,
        *,
        start: int = 0,
        what: str = "step",
        console: Console | None = None,
        pause: float = 10.0,
    ) -> None:
        self._console = console or _console()
        self._total, self._what = total, what
        self._pause = pause
        self._times = deque([(start, time.monotonic())], maxlen=21)
        self._said = -float("inf")
        self._task = TaskID(0)
        self._bar = Bar(
            TextColumn(what, markup=False),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            disable=not self._console.is_terminal,
        )

    def __enter__(self) -> Progress:
        """Begin to show."""
        self._task = self._bar.add_task(
            "", total=self._total, completed=self._times[0][0], numbers=""
        )
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the last state standing."""
        self._bar.stop()

    def __call__(self, step: int, metrics: Metrics) -> None:
        """Show a step."""
        now = time.monotonic()
        self._times.append((step, now))
        numbers = self._numbers(step, metrics)
        self._bar.update(self._task, completed=step, numbers=numbers)
        is_due = now - self._said >= self._pause or step >= self._total
        if not self._console.is_terminal and is_due:
            self._said = now
            line = f"{self._what} {step}/{self._total}  {numbers}"
            self._console.print(line, soft_wrap=True, highlight=False, markup=False)

    def _numbers(self, step: int, metrics: Metrics) -> str:
        (first, began), (_, now) = self._times[0], self._times[-1]
        seconds = (now - began) / max(1, step - first)
        shown = [f"{name} {metrics[name]:.4g}" for name in SHOWN if name in metrics]
        rate = (
            f"{seconds:.2g} s/step" if seconds >= 0.1 else f"{1 / max(seconds, 1e-9):.0f} steps/s"
        )
        return "  ".join([*shown, rate, f"{_clock((self._total - step) * seconds)} left"])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
