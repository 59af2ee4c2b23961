"""A run of several rounds as one page and in the terminal: what each round gained, and at what."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

from rich.console import Console
from rich.table import Table
from rich.text import Text

from melior.records import Facts
from melior.report import charts, judged, samples, sections, words
from melior.report.load import Run, mapping, number, numbers, read_run
from melior.report.markup import Child, Html, chip, table, tag
from melior.report.page import document, write_page
from melior.report.terminal import STYLES

REWARD, JUDGE = "reward", "judge"
"""Of the judgement's numbers: the scorer's, and the held-out scorer's."""
CHARTS = {
    REWARD: "Reward of the scorer",
    JUDGE: "Held-out scorer",
    "kl": "KL to the start, nats an answer",
    "length": "Tokens of an answer",
}


@dataclass(frozen=True)
class Round:
    """What one round left; round 0 is the start model."""

    number: int
    manifest: Facts
    judged: Facts
    run: Run | None
    """Of its learning; none of the start model."""

    @property
    def means(self) -> Facts:
        """Mean of each quantity over the held-out prompts."""
        return mapping(self.judged.get("means"))

    @property
    def dropped(self) -> float | None:
        """Share of the prompts that taught nothing."""
        counts = mapping(self.manifest.get("counts"))
        asked, chosen = number(counts.get("prompts")), number(counts.get("chosen"))
        return 1 - chosen / asked if asked and chosen is not None else None

    def wins(self, side: str) -> Facts:
        """Return how often it wins against the start or the last round.

        The held-out scorer says so where there is one.
        """
        found = mapping(mapping(mapping(self.judged.get("against")).get(side)).get("wins"))
        return mapping(found.get(JUDGE) or found.get(REWARD))


def has_rounds(folder: Path) -> bool:
    """Say whether a run folder holds rounds."""
    return (folder / "round-0").is_dir()


def read_rounds(folder: Path) -> list[Round]:
    """Read the rounds that were judged, in their order."""
    found = []
    for place in folder.glob("round-*"):
        name = place.name.removeprefix("round-")
        judgement = _object(place / "judged.json")
        if not name.isdecimal() or not judgement:
            continue
        learned = place / "learn"
        run = read_run(learned, f"round {name}") if learned.is_dir() else None
        found.append(Round(int(name), _object(place / "manifest.json"), judgement, run))
    return sorted(found, key=lambda one: one.number)


def present(folder: Path, out: Path | None = None) -> None:
    """Write the page, print the essentials, and name the page last."""
    whole, rounds = read_run(folder), read_rounds(folder)
    place = out or folder / "report.html"
    place.parent.mkdir(parents=True, exist_ok=True)
    write_page(place, page(whole, rounds))
    console = Console(highlight=False)
    verdict = words.of_run(whole)
    console.print(Text(f"{whole.label} · {whole.status} · {words.took(whole)}", style="dim"))
    console.print(Text(verdict.sentence, STYLES.get(verdict.kind, "bold")))
    console.print(_terminal_table(rounds))
    for line in _remarks(whole):
        console.print(Text(f"• {line}"))
    console.print(f"\nReport: {place}", soft_wrap=True, markup=False)


def page(whole: Run, rounds: Sequence[Round]) -> Html:
    """Return the page."""
    runs = [one.run for one in rounds if one.run is not None]
    verdict = words.of_run(whole)
    remarks = _remarks(whole)
    header = tag(
        "header",
        tag("p", tag("b", whole.label), tag("span", _size(whole, rounds)), class_="eyebrow"),
        tag("h1", verdict.sentence, class_=verdict.kind),
        tag("p", verdict.detail, class_="lead"),
        tag("ul", [tag("li", line) for line in remarks], class_="remarks") if remarks else None,
        class_="hero",
    )
    parts = {
        "Rounds": _rounds(rounds),
        "Scorer and held-out scorer": _parting(rounds),
        "Before and after": judged.section(runs) if runs else None,
        "Training": sections.curves(runs) if runs else None,
        "Distributions": sections.distributions(runs) if runs else None,
        "Samples": samples.section(runs) if runs else None,
        "Data": sections.data(runs) if runs else None,
        "How it was made": sections.origins([whole]),
    }
    return document(f"{whole.label}: {verdict.sentence}", header, parts)


def _size(whole: Run, rounds: Sequence[Round]) -> str:
    asked = sum(number(mapping(r.manifest.get("counts")).get("prompts")) or 0 for r in rounds)
    facts = [
        str(whole.about.get("recipe") or ""), whole.status,
        words.count(max(0, len(rounds) - 1), "round"), words.count(asked, "prompt"),
        words.took(whole),
    ]  # fmt: skip
    return " · ".join(fact for fact in facts if fact)


def _remarks(whole: Run) -> list[str]:
    """Return what the run noted on its way."""
    return [words.name(str(note)) + "." for note in whole.about.get("notes") or ()]


HEADS = (
    "learned from", "reward", "held-out scorer", "against the start", "against the last", "KL",
    "tokens", "taught nothing", "took",
)  # fmt: skip


def _cells(one: Round) -> list[str]:
    """Return a round's line of the table."""
    counts, cost = mapping(one.manifest.get("counts")), mapping(one.manifest.get("cost"))
    chosen = number(counts.get("chosen"))
    return [
        words.count(chosen, "prompt") if chosen is not None else words.DASH,
        words.figure(number(one.means.get(REWARD))),
        words.figure(number(one.means.get(JUDGE))),
        _rate(one.wins("start")),
        _rate(one.wins("last")),
        words.figure(number(one.means.get("kl"))),
        words.figure(number(one.means.get("length"))),
        words.amount(one.dropped, "share"),
        words.duration(number(cost.get("seconds"))) or words.DASH,
    ]


def _name(one: Round) -> str:
    return f"round\N{NO-BREAK SPACE}{one.number}" if one.number else "start"


def _rate(wins: Facts) -> str:
    """Write a win rate with its interval, and the one at equal lengths where it is known."""
    rate = number(wins.get("win_rate"))
    if rate is None:
        return words.DASH
    ends = words.interval(number(wins.get("low")), number(wins.get("high")), "share")
    said = f"{words.amount(rate, 'share')} ({ends})"
    equal = mapping(wins.get("length_controlled"))
    if not equal:
        return said
    return f"{said}; at equal lengths {words.amount(number(equal.get('win_rate')), 'share')}"


def _rounds(rounds: Sequence[Round]) -> Html | None:
    if not rounds:
        return None
    rows: list[Sequence[Child]] = [
        [[chip(one.number - 1), _name(one)] if one.number else "start", *_cells(one)]
        for one in rounds
    ]
    note = (
        "Held-out prompts, answered by every round with the same noise at temperature 1. Win rates"
        " prompt by prompt, a tie counting half, with 95% intervals over prompts; by the held-out"
        " scorer where there is one."
    )
    drawn = [_mean_chart(title, key, rounds) for key, title in CHARTS.items()]
    drawn += [_win_chart(rounds), _dropped_chart(rounds)]
    return tag(
        "section",
        tag("h2", "Rounds"),
        tag("p", note, class_="note"),
        tag("div", table(["", *HEADS], rows), class_="comparison"),
        tag("div", [chart for chart in drawn if chart is not None], class_="charts"),
        id="rounds",
    )


def _mean_chart(title: str, key: str, rounds: Sequence[Round]) -> Html | None:
    return _chart(title, {"": [(one.number, number(one.means.get(key))) for one in rounds]})


def _win_chart(rounds: Sequence[Round]) -> Html | None:
    lines = {
        f"against the {side}": [
            (one.number, number(one.wins(side).get("win_rate"))) for one in rounds
        ]
        for side in ("start", "last")
    }
    return _chart("Win rate", lines, as_percent=True)


def _dropped_chart(rounds: Sequence[Round]) -> Html | None:
    points = [(one.number, one.dropped) for one in rounds]
    return _chart("Prompts that taught nothing", {"": points}, as_percent=True)


def _chart(
    title: str,
    lines: Mapping[str, Sequence[tuple[int, float | None]]],
    *,
    as_percent: bool = False,
) -> Html | None:
    """Draw lines over rounds; nothing where there is no second round to compare."""
    drawn = [
        charts.Line(
            name or title, [(float(n), v) for n, v in points if v is not None], place,
            is_sparse=True,
        )
        for place, (name, points) in enumerate(lines.items())
    ]  # fmt: skip
    if max(len(line.points) for line in drawn) < 2:
        return None
    return charts.line_chart(title, drawn, as_percent=as_percent, over="round")


def _parting(rounds: Sequence[Round]) -> Html | None:
    """Draw what both scorers say was gained, each in its own standard deviations at the start."""
    lines = [
        charts.Line(name, points, place, is_sparse=True)
        for place, (name, key) in enumerate((("scorer", REWARD), ("held-out scorer", JUDGE)))
        if len(points := _gains(rounds, key)) > 1
    ]
    if len(lines) < 2:
        return None
    found = [str(one.judged.get("parts")) for one in rounds if one.judged.get("parts")]
    agreed = [
        f"round {one.number}: {words.amount(number(one.judged['agreement']), 'share')}"
        for one in rounds
        if number(one.judged.get("agreement")) is not None
    ]
    note = (
        "Gain since the start, in standard deviations of each scorer's numbers over the start"
        " model's answers. Where the scorer rises and the held-out one does not follow, the model"
        " learns the scorer's weakness."
    )
    return tag(
        "section",
        tag("h2", "Scorer and held-out scorer"),
        tag("p", note, class_="note"),
        tag("div", charts.line_chart("Gain since the start", lines, over="round"), class_="charts"),
        tag("p", "Prompts on which both prefer the same side: ", ", ".join(agreed), "."),
        tag("ul", [tag("li", words.name(line)) for line in found], class_="remarks")
        if found
        else tag("p", "✓ They do not part beyond the held-out scorer's interval.", class_="note"),
        id="parting",
    )


def _gains(rounds: Sequence[Round], key: str) -> list[charts.Point]:
    at_start = numbers(mapping(rounds[0].judged.get("numbers")).get(key)) if rounds else []
    spread = stdev(at_start) if len(at_start) > 1 else 0.0
    if not spread:  # of one that compares, all start answers are level: shares of wins as they are
        spread = 1.0
    level = fmean(at_start) if at_start else 0.0
    return [
        (float(one.number), (value - level) / spread)
        for one in rounds
        if (value := number(one.means.get(key))) is not None
    ]


def _terminal_table(rounds: Sequence[Round]) -> Table:
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ("", "reward", "held-out", "wins against start", "KL", "tokens", "taught nothing"):
        found.add_column(head)
    for one in rounds:
        _, reward, held_out, _, _, kl, tokens, nothing, _ = _cells(one)
        wins = _rate(one.wins("start")).partition(";")[0]
        found.add_row(*map(Text, (_name(one), reward, held_out, wins, kl, tokens, nothing)))
    return found


def _object(path: Path) -> Facts:
    """Read a JSON object, empty where it is damaged or not there."""
    try:
        return mapping(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}
