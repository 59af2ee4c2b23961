"""Samples side by side: the prompt, the answer before, and the answer of each run after."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from melior.records import Facts
from melior.report.load import Run, mapping, number, spoken
from melior.report.markup import Html, tag
from melior.report.words import count, figure

MOST_SAMPLES = 400
MOST_CHARACTERS = 6000
"""Of one text; what is cut is counted."""


@dataclass
class Sample:
    """One prompt, and what each run has of it, by the run's place."""

    turns: list[tuple[str, str]]
    facts: dict[str, Any]
    by_run: dict[int, Facts] = field(default_factory=dict)

    @property
    def gains(self) -> list[float]:
        """Score after minus before, of each run that has both."""
        ends = [(number(r.get("score_before")), number(r.get("score_after")))
                for r in self.by_run.values()]  # fmt: skip
        return [
            after - before for before, after in ends if before is not None and after is not None
        ]


def section(runs: Sequence[Run]) -> Html | None:
    """Write the samples of all runs, those of one prompt together, with search and filters."""
    samples = _by_prompt(runs)
    if not samples:
        return None
    shown = samples[:MOST_SAMPLES]
    rest = len(samples) - len(shown)
    more = f"The first {len(shown)} of {figure(len(samples))}; the others are in samples.jsonl."
    return tag(
        "section",
        tag("h2", "Samples"),
        tag("p", more, class_="note") if rest else None,
        _tools(is_scored=any(sample.gains for sample in shown)),
        tag("div", [_article(sample, runs) for sample in shown], class_="samples"),
        tag("p", "No sample matches.", class_="empty", hidden=True),
        tag("button", "Show more", type="button", class_="more", hidden=True),
        id="samples",
    )


def _by_prompt(runs: Sequence[Run]) -> list[Sample]:
    found: dict[tuple[str, int], Sample] = {}
    for place, run in enumerate(runs):
        seen: dict[str, int] = {}
        for row in run.samples:
            if not ("before" in row or "after" in row):
                continue
            key = json.dumps(row.get("prompt"), sort_keys=True)
            seen[key] = seen.get(key, 0) + 1
            sample = found.setdefault(
                (key, seen[key]), Sample(spoken(row.get("prompt")), dict(mapping(row.get("facts"))))
            )
            sample.by_run[place] = row
    return list(found.values())


def _tools(*, is_scored: bool) -> Html:
    filters = [("all", "All"), ("up", "Improved"), ("down", "Worse"), ("same", "Unchanged")]
    orders = [("file", "In file order"), ("gain", "Largest gain first"),
              ("loss", "Largest loss first")]  # fmt: skip
    search = tag(
        "input",
        type="search",
        placeholder="Search prompts and answers",
        aria_label="Search prompts and answers",
    )
    buttons = [
        tag("button", name, type="button", data_filter=key,
            aria_pressed="true" if key == "all" else "false")
        for key, name in filters
    ]  # fmt: skip
    select = tag(
        "select", [tag("option", name, value=key) for key, name in orders], aria_label="Order"
    )
    return tag(
        "div",
        search,
        tag("div", buttons, class_="segments", role="group", aria_label="Filter")
        if is_scored
        else None,
        select if is_scored else None,
        tag("output", class_="found", aria_live="polite"),
        class_="tools",
    )


def _article(sample: Sample, runs: Sequence[Run]) -> Html:
    gains = sample.gains
    kinds = {"up" if gain > 0 else "down" if gain < 0 else "same" for gain in gains}
    first = next(iter(sample.by_run.values()))
    answers = []
    if "before" in first:
        answers.append(_answer("Before", first["before"], number(first.get("score_before"))))
    for place, row in sample.by_run.items():
        if "after" in row:
            name = "After" if len(runs) == 1 else runs[place].label
            ends = number(row.get("score_before")), number(row.get("score_after"))
            hue = place if len(runs) > 1 else None
            answers.append(_answer(name, row["after"], ends[1], since=ends[0], hue=hue))
    return tag(
        "article",
        tag("div", [_turn(role, said) for role, said in sample.turns], class_="prompt"),
        _facts(sample.facts),
        tag("div", answers, class_="answers"),
        class_="sample",
        data_kinds=" ".join(sorted(kinds)),
        data_gain=max(gains, key=abs) if gains else None,
    )


def _turn(role: str, said: str) -> Html:
    return tag("div", tag("span", role or "turn", class_="role"), _text(said), class_="turn")


def _answer(
    name: str,
    answer: object,
    score: float | None,
    *,
    since: float | None = None,
    hue: int | None = None,
) -> Html:
    said = "\n\n".join(text for _, text in spoken(answer))
    is_after = name != "Before"
    badge = None
    if score is not None:
        gain = score - since if since is not None else 0.0
        kind, arrow = ("better", " ▲") if gain > 0 else ("worse", " ▼") if gain < 0 else ("", "")
        title = f"score {figure(score)}" + (
            f", before {figure(since)}" if since is not None else ""
        )
        badge = tag("span", f"{figure(score)}{arrow}", class_=f"score {kind}", title=title)
    mark = tag("i", class_=f"chip hue{hue}", aria_hidden="true") if hue is not None else None
    size = tag("span", count(len(said.split()), "word"), class_="size")
    return tag(
        "div",
        tag("header", mark, tag("b", name), size, badge),
        _text(said) if said.strip() else tag("p", "(empty)", class_="text empty-text"),
        class_="answer after" if is_after else "answer",
    )


def _text(said: str) -> Html:
    cut = len(said) - MOST_CHARACTERS
    note = f"\n[{figure(cut)} more characters in samples.jsonl]" if cut > 0 else ""
    return tag("div", said[:MOST_CHARACTERS] + note, class_="text", dir="auto")


def _facts(facts: Mapping[str, Any]) -> Html | None:
    chips = [tag("span", tag("b", key), " ", _fact(value)) for key, value in facts.items()]
    return tag("div", chips[:12], class_="facts") if chips else None


def _fact(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return figure(number(value))
    written = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return written if len(written) <= 80 else f"{written[:79]}…"
