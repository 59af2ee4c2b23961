"""What became of a claim, as lines for the terminal and as a page in Markdown with pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from melior.claims.claim import Cloud, Dots, Finding, Outcome, Picture, Table
from melior.evaluation.compare import Interval, t_interval
from melior.report import pictures
from melior.report.markup import Html


def lines(outcome: Outcome) -> Iterator[str]:
    """Yield what is claimed, each rule with its threshold and measure, and the verdict."""
    claim = outcome.claim
    yield f"{claim.title} ({claim.paper})"
    yield f"Claimed: {claim.claimed}"
    yield f"Seeds {_seeds(outcome)}:"
    for finding in outcome.findings:
        mark = "kept " if finding.holds else "BROKEN"
        yield f"  {mark}  {finding.rule.sentence}: {_asked(finding)}; measured {_measured(finding)}"
    yield outcome.verdict


def write_page(outcome: Outcome, folder: Path) -> Path:
    """Write the page and its pictures into a folder, and return where the page lies."""
    folder.mkdir(parents=True, exist_ok=True)
    for picture in outcome.claim.pictures:
        (folder / _file(outcome, picture)).write_text(drawn(outcome, picture), encoding="utf-8")
    place = folder / f"{outcome.claim.name}.md"
    place.write_text(page(outcome), encoding="utf-8")
    return place


def page(outcome: Outcome) -> str:
    """Return the page's text."""
    claim, n = outcome.claim, len(outcome.seeds)
    command = f"melior reproduce {claim.name} --seeds {n} --first-seed {outcome.seeds[0]}"
    parts = [
        f"# {claim.title}",
        f"{claim.paper}. Written by `{command} --out docs/claims`; seeds {_seeds(outcome)}.",
        f"**Claimed.** {claim.claimed}",
        f"**Verdict.** {outcome.verdict}",
        "## The rules",
        "\n".join(_rules(outcome)),
        "Means over seeds with Student's 95 % interval. " + THRESHOLDS,
        *_asides(outcome),
        *(f"![{p.title}]({_file(outcome, p)})" for p in claim.pictures),
        "## The world",
        claim.world,
        "## What was measured",
        *(part for table in claim.tables for part in _table(outcome, table)),
        "## Limits",
        claim.limits,
    ]
    return "\n\n".join(parts) + "\n"


THRESHOLDS = (
    "The thresholds were set on pilot seeds, from 0 up, before these seeds were drawn; they are "
    "never moved."
)


def drawn(outcome: Outcome, picture: Picture) -> Html:
    """Draw one of the claim's pictures."""
    if isinstance(picture, Dots):
        names, zero = picture.arms, picture.against
        rows = [_row(outcome, arm, picture.quantity, against=zero) for arm in names]
        line = zero or picture.level
        level = _row(outcome, line, picture.quantity, against=zero) if line else None
        unit = f"{picture.quantity} minus that of {zero}" if zero else picture.quantity
        return pictures.dots(picture.title, unit, rows, level=level)
    if isinstance(picture, Cloud):
        x, y = (outcome.measured[picture.arm][q].ravel().tolist() for q in (picture.x, picture.y))
        return pictures.cloud(picture.title, picture.x, picture.y, list(zip(x, y, strict=True)))
    marks = {
        name: [
            pictures.Mark(
                arm,
                _setting(arm),
                *(_interval(outcome, arm, q).estimate for q in (picture.x, picture.y)),
            )
            for arm in arms
        ]
        for name, arms in picture.series.items()
    }
    return pictures.plane(picture.title, picture.x, picture.y, marks)


def _rules(outcome: Outcome) -> Iterator[str]:
    yield "| Rule | Threshold | Measured | By seed | Verdict |"
    yield "|---|---|---|---|---|"
    for finding in outcome.findings:
        by_seed = ", ".join(f"{value:.3g}" for value in finding.values)
        verdict = "kept" if finding.holds else "**broken**"
        cells = (finding.rule.sentence, _asked(finding), _measured(finding), by_seed, verdict)
        yield f"| {' | '.join(cells)} |"


def _asides(outcome: Outcome) -> Iterator[str]:
    if not outcome.claim.asides:
        return
    yield "## Beside the rules"
    yield "Reported and not judged."
    rows = ["| Measure | Mean | By seed |", "|---|---|---|"]
    for aside in outcome.claim.asides:
        values = aside.measure(outcome.measured)
        by_seed = ", ".join(f"{value:.3g}" for value in values)
        rows.append(f"| {aside.sentence} | {_said(t_interval(values))} | {by_seed} |")
    yield "\n".join(rows)


def _table(outcome: Outcome, table: Table) -> Iterator[str]:
    yield f"### {table.title}"
    if table.note:
        yield table.note
    rows = [
        "| " + " | ".join([arm, *(_said(_interval(outcome, arm, q)) for q in table.quantities)])
        for arm in table.arms
    ]
    head = f"| Arm | {' | '.join(table.quantities)} |"
    rule = "|---" * (1 + len(table.quantities)) + "|"
    yield "\n".join([head, rule, *(f"{row} |" for row in rows)])


def _setting(arm: str) -> str:
    """Return what a sweep changed: `beta 0.3` of `goals, beta 0.3 at 10`."""
    found = re.search(r", (\S+ [\d.]+)", arm)
    return found[1] if found else ""


def _row(outcome: Outcome, arm: str, quantity: str, *, against: str) -> pictures.Row:
    found = outcome.measured[arm][quantity]
    if against:
        found = found - outcome.measured[against][quantity]
    return pictures.Row(arm, tuple(map(float, found)), t_interval(found))


def _interval(outcome: Outcome, arm: str, quantity: str) -> Interval:
    return t_interval(outcome.measured[arm][quantity], name=f"{arm}, {quantity}")


def _asked(finding: Finding) -> str:
    where = "in every seed" if finding.rule.in_every_seed else "on average"
    return f"{finding.rule.bound.words} {where}"


def _measured(finding: Finding) -> str:
    kept = f", kept in {finding.n_kept} of {len(finding.values)} seeds"
    return _said(finding.interval) + (kept if finding.rule.in_every_seed else "")


def _said(interval: Interval) -> str:
    said = _decimal(interval.estimate)
    if interval.low is None or interval.high is None:
        return said
    return f"{said} ({_decimal(interval.low)} to {_decimal(interval.high)})"


def _decimal(value: float) -> str:
    """Write three decimals; what rounds to nothing has no sign."""
    return f"{round(value, 3) + 0.0:.3f}"


def _seeds(outcome: Outcome) -> str:
    first, last = outcome.seeds[0], outcome.seeds[-1]
    return f"{first} to {last}" if last > first else f"{first}"


def _file(outcome: Outcome, picture: Picture) -> str:
    return f"{outcome.claim.name}-{picture.name}.svg"
