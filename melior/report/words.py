"""Numbers and verdicts as people read them: units, signs, intervals, one plain sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime

from melior.records import Facts
from melior.report.load import Run, number

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Verdict:
    """What a run came to, in one sentence."""

    kind: str
    """`better`, `worse`, `none` (judged, nothing shown), `changed` or `open` (not judged)."""
    sentence: str
    detail: str


def figure(value: float | None) -> str:
    """Write a number with three figures: 12,345, 0.0123, 5×10⁻⁷."""
    if value is None:
        return DASH
    size = abs(value)
    if size and (size < 1e-3 or size >= 1e9):
        exponent = math.floor(math.log10(size))
        digits = f"{size / 10**exponent:.2f}".rstrip("0").rstrip(".")
        written = f"{digits}×10{str(exponent).translate(SUPERSCRIPTS)}"
    elif size >= 1000 or value == int(value):
        written = f"{size:,.0f}"
    else:
        written = f"{size:.{max(0, 2 - math.floor(math.log10(size)))}f}"
        written = written.rstrip("0").rstrip(".") if "." in written else written
    return MINUS + written if value < 0 else written


def amount(value: float | None, unit: str) -> str:
    """Write a level: 31% for a share, 3.1 nats else."""
    if value is None:
        return DASH
    return f"{_points(value)}%" if unit == "share" else f"{figure(value)} {unit}".rstrip()


def change(value: float, unit: str, *, signed: bool = True) -> str:
    """Write a difference: +21 points for shares, +3.1 nats else."""
    sign = "+" if signed and value > 0 else ""
    if unit == "share":
        points = _points(value)
        return f"{sign}{points} {'point' if points.lstrip(MINUS) == '1' else 'points'}"
    return f"{sign}{figure(value)} {unit}".rstrip()


def bare(value: float, unit: str) -> str:
    """Write an end of an interval, whose unit stands before it."""
    return _points(value) if unit == "share" else figure(value)


def interval(low: float | None, high: float | None, unit: str) -> str:
    """Write an interval: 15 to 27."""
    if low is None or high is None:
        return "no interval"
    return f"{bare(low, unit)} to {bare(high, unit)}"


def p_value(value: float | None) -> str:
    """Write a p-value; below 0.001 it is only said to be so."""
    if value is None:
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}".rstrip("0").rstrip(".")


def duration(seconds: float | None) -> str:
    """Write a time span: 11 min 4 s."""
    if seconds is None or seconds < 0:
        return ""
    if seconds < 60:
        return f"{figure(round(seconds, 1))} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def moment(stamp: object) -> datetime | None:
    """Read an ISO date, or None."""
    try:
        return datetime.fromisoformat(str(stamp))
    except ValueError:
        return None


def took(run: Run) -> str:
    """Write how long a run took, as far as is known."""
    started, finished = moment(run.about.get("started")), moment(run.about.get("finished"))
    if started and finished and (started.tzinfo is None) == (finished.tzinfo is None):
        return duration((finished - started).total_seconds())
    times = [time for _, time in run.curve("time")]
    return duration(max(times)) if times else ""


def name(key: str) -> str:
    """Write a name from a file with a capital first letter."""
    return "KL" + key[2:] if key[:3].lower() == "kl " else key[:1].upper() + key[1:]


def finding(row: Facts) -> str:
    """Write the name of what the data check found: Equal answers."""
    return name(str(row.get("code") or "finding").replace("-", " "))


def count(n: float, thing: str) -> str:
    """Write how many: 1 row, 2 rows."""
    return f"{figure(n)} {thing}" + ("" if n == 1 else "s")


def of_comparison(row: Facts) -> Verdict:
    """Say what one comparison shows.

    A gain is shown where the interval leaves out 0 and the test, if there is one, agrees; a number
    that `is_exact` has no interval, and shows whatever difference there is.
    """
    difference, unit = number(row.get("difference")) or 0.0, str(row.get("unit") or "")
    low, high, p = (number(row.get(key)) for key in ("low", "high", "p_value"))
    confidence = number(row.get("confidence")) or 0.95
    n, is_up_good = number(row.get("n")), row.get("higher_is_better", True)
    size, detail = f", n = {figure(n)}" if n is not None else "", _detail(row, confidence)
    is_shown = low is not None and high is not None and (low > 0 or high < 0)
    if row.get("is_exact") and difference:
        low = high = difference
        is_shown = True
    if not is_shown or (p is not None and p > 1 - confidence):
        found = f"{change(difference, unit)} ({ends_of(row)}){size}"
        word = "No change shown" if is_up_good is None else "No gain shown"
        return Verdict("none", f"{word}: {found}", detail)
    ends = ends_of(row)
    if difference < 0 and low is not None and high is not None and not row.get("is_exact"):
        ends = interval(-high, -low, unit)
    by = f"by {change(abs(difference), unit, signed=False)} ({ends}){size}"
    if is_up_good is None:
        return Verdict("changed", f"{'Up' if difference > 0 else 'Down'} {by}", detail)
    is_better = (difference > 0) == bool(is_up_good)
    kind = "better" if is_better else "worse"
    return Verdict(kind, f"{kind.capitalize()} {by}", detail)


def ends_of(row: Facts) -> str:
    """Write where the difference of a comparison lies."""
    if row.get("is_exact"):
        return "exact"
    low, high = number(row.get("low")), number(row.get("high"))
    return interval(low, high, str(row.get("unit") or ""))


def of_run(run: Run) -> Verdict:
    """Say what a run came to: its first comparison, or why there is none."""
    steps = f"after {count(run.last_step, 'step')}" if run.last_step else "before its first step"
    reason = str(run.about.get("reason") or "").strip()
    if run.status == "failed":
        return Verdict("worse", f"Failed {steps}", reason or "No reason was written down.")
    if run.comparisons:
        return of_comparison(run.comparisons[0])
    if run.status == "running":
        return Verdict("open", f"Not finished: {steps}", "Running still, or ended without a word.")
    if run.status == "stopped":
        return Verdict("open", f"Stopped {steps}", reason or "It can be resumed.")
    if run.status == "finished" and (title := run.evaluation.get("title")):
        return Verdict("none", f"Judged: {title}", "Nothing stands beside it to be better than.")
    word = "Trained, not judged" if run.status == "finished" else "Not judged"
    return Verdict("open", word, "There is no comparison on held-out data.")


def _detail(row: Facts, confidence: float) -> str:
    unit, n = str(row.get("unit") or ""), number(row.get("n"))
    before, after = (amount(number(row.get(key)), unit) for key in ("before", "after"))
    p = p_value(number(row.get("p_value")))
    return (
        f"{name(str(row.get('name') or 'Score'))}: {before} before, {after} after"
        + (f", on the same {figure(n)} held-out examples" if n is not None else "")
        + (f". {100 * confidence:.3g}% interval" if number(row.get("low")) is not None else "")
        + (f"; {p}." if p else ".")
    )


def _points(share: float) -> str:
    points = 100 * share
    written = f"{abs(points):.0f}" if abs(points) >= 9.95 else f"{abs(points):.1f}"
    written = written.removesuffix(".0")
    return MINUS + written if points < 0 and written != "0" else written
