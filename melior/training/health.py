"""What is learned too late of a run, found from its numbers while it goes on.

A detector is pure: from the rows of metrics so far to a `Finding`, or None. Training numbers are
noisy, since each step sees other pairs. So a detector compares means over windows, and takes a
change for one only where it exceeds three standard errors (`change`); each states its own rule.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from melior.records import Metrics
from melior.training.run import write_json

Row = Mapping[str, float]
"""The numbers of a step or of an evaluation, and the `step` itself."""
Curve = Sequence[tuple[int, float]]
"""Step and value, wherever a metric was written."""

FEWEST = 20
"""Steps before anything is said of a trend."""
SURE = 3.0
"""Standard errors that a change must exceed. Of 1000 curves that are nothing but noise, 8 go
beyond that in one direction (Student's t with 8 degrees of freedom, the smallest windows)."""
LOOKS = 20
"""How often a run is looked at; each look is another chance for a false alarm."""


@dataclass(frozen=True)
class Finding:
    """Something that is wrong with a run, or soon will be, and what helps."""

    code: str
    level: Literal["warning", "note"]
    text: str
    """One sentence, with the numbers."""
    remedy: str
    """Options that exist."""
    first: int = 0
    """The step from which it holds, ..."""
    last: int = 0
    """... and the last at which it was seen to; both 0 for what is of no step."""
    curves: tuple[str, ...] = ()
    """Metrics that show it."""


Detector = Callable[[Sequence[Row]], Finding | None]
"""From the rows so far to what is wrong, if anything is."""


@dataclass(frozen=True)
class Change:
    """A curve's means over its first and its last window, and how sure their difference is."""

    before: float
    after: float
    error: float
    window: int

    @property
    def rises(self) -> bool:
        """Say whether the curve went up beyond its noise."""
        return self.after - self.before > SURE * self.error

    @property
    def falls(self) -> bool:
        """Say whether the curve went down beyond its noise."""
        return self.before - self.after > SURE * self.error


class Health:
    """Looks at a run's numbers now and then, and says once what it finds: a hook.

    What it found lies in the run folder, as `health.json`.
    """

    def __init__(
        self,
        folder: Path,
        watch: Sequence[Detector],
        *,
        total_steps: int,
        note: Callable[[str], object],
        past: Iterable[Row] = (),
    ) -> None:
        """Begin; `past` are the rows before a resumption, gone through as if never stopped."""
        self.findings: dict[str, Finding] = {}
        self._file = folder / "health.json"
        self._watch = watch
        self._total = total_steps
        self._note = note
        self._rows: list[Row] = []
        for row in past:
            self(int(row["step"]), {key: v for key, v in row.items() if key != "step"})
        self.add()

    def __call__(self, step: int, metrics: Metrics) -> None:
        """Take in the numbers of a step or an evaluation, and look when it is time to."""
        self._rows.append({"step": step, **metrics})
        if step in (1, self._total) or step % max(1, self._total // LOOKS) == 0:
            self.add(*(watch(self._rows) for watch in self._watch))

    def add(self, *found: Finding | None) -> None:
        """Keep findings, and say those that are new."""
        for finding in found:
            if finding is None:
                continue
            known = self.findings.get(finding.code)
            first = min(known.first, finding.first) if known else finding.first
            self.findings[finding.code] = replace(finding, first=first)
            if known is None:
                self._note(f"{finding.text}; what helps: {finding.remedy}")
        ordered = sorted(self.findings.values(), key=lambda one: one.level != "warning")
        write_json(self._file, {"findings": [asdict(finding) for finding in ordered]})


def curve(rows: Iterable[Row], key: str, per: str = "") -> Curve:
    """Return a metric by step, divided by another one where that is named."""
    kept = [row for row in rows if key in row and (not per or row.get(per))]
    return [(int(row["step"]), row[key] / (row[per] if per else 1.0)) for row in kept]


def change(points: Curve) -> Change | None:
    """Compare the first and the last tenth of a curve, of at least five points; None below 20.

    The standard error is that of the difference of two means, from the scatter in each window. A
    trend inside a window widens it, so that a change is rather missed than imagined.
    """
    values = [value for _, value in points]
    if len(values) < FEWEST:
        return None
    window = max(5, len(values) // 10)
    first, last = values[:window], values[-window:]
    error = math.sqrt((statistics.variance(first) + statistics.variance(last)) / window)
    return Change(statistics.fmean(first), statistics.fmean(last), error, window)


def since(points: Curve, holds: Callable[[float], bool], window: int) -> int:
    """Return the step from which the mean over a trailing window has held to the end."""
    first = points[-1][0]
    for end in range(len(points), window - 1, -1):
        if not holds(mean(points[end - window : end])):
            break
        first = points[end - 1][0]
    return first


def mean(points: Curve) -> float:
    """Return the mean of a curve's values."""
    return statistics.fmean(value for _, value in points)
