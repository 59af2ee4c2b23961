"""What ends a round of SCIR before its last step: nothing to learn from, or a shortcut."""

from __future__ import annotations

from collections.abc import Sequence

from melior.records import Metrics
from melior.stages.internal.options import StopOptions
from melior.training.health import Health, Row
from melior.training.loop import Hook

FEWEST_KEPT = 0.01
"""Share of a step's pairs below which hardly anything is learned from."""


def stops_of(
    options: StopOptions, health: Health, past: Sequence[Row], *, n_warm_up: int
) -> list[Hook]:
    """Return what may end a run before its last step."""
    patience = Patience(options.patience, past, n_warm_up=n_warm_up)
    return [patience, stop_on("shortcut", health)] if options.stop_on_shortcut else [patience]


class Patience:
    """Stops a run in which next to nothing is learned from for many steps: a hook.

    Args:
        steps: how many of them in a row.
        past: rows of the steps before a resumption.
        n_warm_up: first steps, which do not count: they learn from labelled pairs, and from what
            the judge alone is sure of, which may well be nothing.
    """

    def __init__(self, steps: int, past: Sequence[Row], *, n_warm_up: int) -> None:
        self.steps = steps
        self.n_warm_up = n_warm_up
        self.waited = 0
        for row in past:
            self._count(int(row["step"]), row)

    def __call__(self, step: int, metrics: Metrics) -> None:
        """Take in a step.

        Raises:
            ValueError: the last steps kept less than 1 % of their pairs.
        """
        self._count(step, metrics)
        if self.waited >= self.steps:
            raise ValueError(
                f"step {step}: pairs on which judge and implicit reward agree are needed; found"
                f" less than {FEWEST_KEPT:.0%} in each of the last {self.waited} steps; lower"
                " --delta, or give more labelled pairs"
            )

    def _count(self, step: int, metrics: Row) -> None:
        if "consistency/kept" in metrics and step > self.n_warm_up:
            is_idle = metrics["consistency/kept"] < FEWEST_KEPT
            self.waited = self.waited + 1 if is_idle else 0


def stop_on(code: str, health: Health) -> Hook:
    """Return the hook that stops a run once its watch has found something.

    It raises a ValueError; the finding stands in the run folder with all others.
    """

    def hook(step: int, metrics: Metrics) -> None:
        if code in health.findings:
            found = health.findings[code]
            raise ValueError(
                f"step {step}: {found.text}; stopped there, as --stop-on-{code} asks; what helps:"
                f" {found.remedy}"
            )

    return hook
