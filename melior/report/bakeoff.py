"""A bake-off as one page and in the terminal: which arm to use, what is real, what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from melior.evaluation.bakeoff import QUANTITIES, Outcome, Standing
from melior.report import charts, duels, judged, samples, sections, words
from melior.report.load import Run, read_run
from melior.report.markup import Child, Html, chip, hue, table, tag
from melior.report.page import document, write_page
from melior.report.terminal import STYLES


def present(outcome: Outcome, folder: Path) -> None:
    """Write the page, print the essentials, and name the page last."""
    place = folder / "report.html"
    write_page(place, page(outcome, read_run(folder)))
    console = Console(highlight=False)
    kind, sentence = duels.headline(outcome)
    console.print(Text(sentence, STYLES.get(kind, "bold")))
    console.print(Text(duels.lead(outcome)))
    console.print(_terminal_table(outcome))
    for duel in outcome.duels:
        said = duels.sentence(duel, len(outcome.duels))
        console.print(Text(f"• {said} ({duels.of_seeds(duel)})"))
    for line in _remarks(outcome):
        console.print(Text(f"• {line}"))


def page(outcome: Outcome, whole: Run) -> Html:
    """Return the page."""
    runs = [_pooled(outcome, arm) for arm in outcome.standings]
    kind, sentence = duels.headline(outcome)
    remarks = _remarks(outcome)
    header = tag(
        "header",
        tag("p", tag("b", whole.label), tag("span", _size(outcome)), class_="eyebrow"),
        tag("h1", sentence, class_=kind),
        tag("p", duels.lead(outcome), class_="lead"),
        tag("ul", [tag("li", line) for line in remarks], class_="remarks") if remarks else None,
        class_="hero",
    )
    parts = {
        "Standings": _standings(outcome),
        "Which differences are real": _duels(outcome),
        "Before and after": judged.section(runs),
        "Settings tried": _sweeps(outcome),
        "By factor": _marginals(outcome),
        "Training": sections.curves(runs),
        "Samples": samples.section(runs),
        "Data": sections.data(runs),
        "How it was made": sections.origins([whole]),
    }
    return document(f"{whole.label}: {sentence}", header, parts)


def _pooled(outcome: Outcome, arm: str) -> Run:
    """Return a run of an arm, to show, with the judgement of all its seeds together."""
    found = outcome.standings[arm]
    compared = [one.against_start for one in found.values() if one.against_start is not None]
    evaluation = {
        "title": "Means over all seeds, against the start model",
        "comparisons": [one.to_json() for one in compared],
    }
    return replace(read_run(outcome.folders[arm], arm), evaluation=evaluation)


def _size(outcome: Outcome) -> str:
    done = [row for row in outcome.rows if row["status"] == "finished"]
    hours = words.duration(sum(row["wall_s"] for row in done))
    seeds = {row["seed"] for row in done if row["stage"] == "run"}
    return (
        f"{words.count(len(outcome.standings), 'arm')} · {words.count(len(seeds), 'seed')} · "
        f"{words.count(len(done), 'cell')} · {hours} of work"
    )


def _remarks(outcome: Outcome) -> list[str]:
    """Say what failed, and what has moved too far."""
    failed = [row for row in outcome.rows if row["status"] != "finished"]
    far = sorted({str(row["arm"]) for row in outcome.rows if row["over_kl_budget"]})
    lines = [f"{row['cell_id']} failed: {row['reason']}" for row in failed]
    if far:
        lines.append(f"Beyond the KL budget in some run: {duels.listed(far)}.")
    return lines


RANKED = {"accuracy": "ranked right", "reward_accuracy": "by own reward"}
"""Quantities that stand beside the deciding one where they were measured, and their heads."""


def _columns(outcome: Outcome) -> list[str]:
    """Return the quantities of `RANKED` that there are to show."""
    found = {name for own in outcome.standings.values() for name in own}
    return [name for name in RANKED if name in found and name != outcome.metric]


def _heads(outcome: Outcome) -> list[str]:
    return [
        f"{QUANTITIES[outcome.metric].title} (by seed)", "against the start",
        "KL, nats", "tokens", *(RANKED[name] for name in _columns(outcome)),
        "training", "memory", "setting",
    ]  # fmt: skip


def _cells(outcome: Outcome, arm: str) -> list[str]:
    """Return an arm's line of the table: what decides, how far it moved, and what it took."""
    found = outcome.standings[arm]
    return [
        duels.levels(found[outcome.metric]),
        _change(found[outcome.metric]),
        _with_error(found, "kl"),
        *(_mean(found, name) for name in ("length", *_columns(outcome))),
        *duels.cost(outcome, arm),
        duels.setting(duels.of_arm(outcome, arm, "run")[0]),
    ]


def _start_cells(outcome: Outcome) -> list[str]:
    """Return the start model's line."""
    metric, start = outcome.metric, outcome.start
    level = words.amount(start.get(metric), QUANTITIES[metric].unit)
    others = [words.amount(start.get(name), QUANTITIES[name].unit) for name in _columns(outcome)]
    length = words.figure(start.get("length"))
    return [
        level, words.DASH, words.DASH, length, *others, words.DASH, words.DASH, words.DASH,
    ]  # fmt: skip


def _change(standing: Standing) -> str:
    found = standing.against_start
    if found is None:
        return words.DASH
    ends = words.interval(found.low, found.high, found.unit)
    return f"{words.change(found.difference, found.unit)} ({ends})"


def _mean(found: Mapping[str, Standing], name: str) -> str:
    if name not in found:
        return words.DASH
    unit = QUANTITIES[name].unit
    return words.amount(found[name].over_seeds.estimate, unit if unit == "share" else "")


def _with_error(found: Mapping[str, Standing], name: str) -> str:
    if name not in found:
        return words.DASH
    error = found[name].error
    said = words.figure(found[name].over_seeds.estimate)
    return said if error is None else f"{said} ± {words.figure(error)}"


def _standings(outcome: Outcome) -> Html:
    rows: list[Sequence[Child]] = [
        [[chip(place), arm], *_cells(outcome, arm)] for place, arm in enumerate(outcome.standings)
    ]
    start: list[Child] = ["start model", *_start_cells(outcome)]
    note = (
        f"What decides: {QUANTITIES[outcome.metric].title}, averaged over held-out examples and"
        " seeds. In brackets: each seed, or a 95% interval over examples; ±: standard error. Ranked"
        " right: held-out comparisons, by average log-probability and by the method's own reward."
    )
    return tag(
        "section",
        tag("h2", "Standings"),
        tag("p", note, class_="note"),
        tag(
            "div",
            table(["", *_heads(outcome)], [*rows, start], "standings"),
            class_="comparison",
        ),
        _planes(outcome),
        id="standings",
    )


def _planes(outcome: Outcome) -> Html | None:
    """Draw what was gained against how far the model moved, and how long its answers are."""
    drawn = [
        _plane(outcome, name, QUANTITIES[name].title)
        for name in ("kl", "length")
        if all(name in own for own in outcome.standings.values())
    ]
    return tag("div", drawn, class_="charts planes") if drawn else None


def _plane(outcome: Outcome, across: str, name: str) -> Html:
    """Draw each arm's seeds as rings and their mean as a dot; the start is a dotted line."""
    metric = outcome.metric
    arms = {
        arm: list(zip(own[across].by_seed, own[metric].by_seed, strict=True))
        for arm, own in outcome.standings.items()
    }
    points = [point for own in arms.values() for point in own]
    level = outcome.start.get(metric)
    heights = [y for _, y in points] + ([level] if level is not None else [])
    widths = [x for x, _ in points] + ([outcome.start[across]] if across in outcome.start else [])
    return charts.plane(
        f"{words.name(QUANTITIES[metric].title)} against {name}",
        [
            charts.Cloud(arm, own, hue(place), _means(own))
            for place, (arm, own) in enumerate(arms.items())
        ],
        x=charts.padded(min(widths), max(widths)), y=charts.padded(min(heights), max(heights)),
        as_percent=QUANTITIES[metric].unit == "share", level=level,
    )  # fmt: skip


def _means(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    n = len(points)
    return sum(x for x, _ in points) / n, sum(y for _, y in points) / n


def _duels(outcome: Outcome) -> Html | None:
    if not outcome.duels:
        return None
    ends = [
        end for duel in outcome.duels
        for end in (duel.comparison.low, duel.comparison.high, duel.over_seeds.estimate)
        if end is not None
    ]  # fmt: skip
    scale = charts.percent_scale([*ends, 0.0])
    rows = []
    for duel in outcome.duels:
        found = duel.comparison
        said = duels.sentence(duel, len(outcome.duels))
        strip = charts.interval_strip(
            scale, found.difference, found.low, found.high,
            kind="better" if duel.is_real else "none", label=said,
        )  # fmt: skip
        text = tag("div", said, " ", tag("small", duels.of_seeds(duel)))
        rows.append(tag("div", strip, text, class_="row duel"))
    note = (
        "A difference is real where its 95% interval over held-out examples leaves out 0, the"
        f" paired test agrees after Holm's correction for {words.count(len(rows), 'pair')}, and"
        " every seed has its sign. Dotted line: no difference."
    )
    return tag(
        "section",
        tag("h2", "Which differences are real"),
        tag("p", note, class_="note"),
        tag("div", rows, class_="comparison"),
        id="duels",
    )


def _sweeps(outcome: Outcome) -> Html | None:
    """Write every setting that was tried on the prompts held apart, and which was taken."""
    rows: list[Sequence[Child]] = []
    unit = QUANTITIES[outcome.metric].unit
    for place, arm in enumerate(outcome.standings):
        taken = duels.setting(duels.of_arm(outcome, arm, "run")[0])
        for row in duels.of_arm(outcome, arm, "sweep"):
            is_taken = duels.setting(row) == taken
            value = row[outcome.metric]
            rows.append([
                [chip(place), arm], duels.setting(row), f"{row['steps']}",
                words.amount(value, unit), words.figure(row["kl"]),
                tag("b", "taken") if is_taken else row["reason"],
            ])  # fmt: skip
    if not rows:
        return None
    heads = ["", "setting", "steps", QUANTITIES[outcome.metric].title, "KL", ""]
    note = (
        "On prompts held apart from the training rows: learning rates first, then strengths at the"
        " best of them. The held-out rows were not looked at."
    )
    return tag(
        "section",
        tag("h2", "Settings tried"),
        tag("p", note, class_="note"),
        tag("div", table(heads, rows), class_="comparison"),
        id="sweeps",
    )


def _marginals(outcome: Outcome) -> Html | None:
    if not outcome.marginals:
        return None
    unit = QUANTITIES[outcome.metric].unit
    rows: list[Sequence[Child]] = [
        [f"{factor}: {value}", words.amount(mean.estimate, unit),
         words.interval(mean.low, mean.high, unit)]
        for factor, values in outcome.marginals.items()
        for value, mean in values.items()
    ]  # fmt: skip
    heads = ["factor", QUANTITIES[outcome.metric].title, "95% interval over seeds"]
    return tag(
        "section",
        tag("h2", "By factor"),
        tag("p", "Means over all cells with this value.", class_="note"),
        tag("div", table(heads, rows), class_="comparison"),
        id="by-factor",
    )


def _terminal_table(outcome: Outcome) -> Table:
    found = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head in ["", *_heads(outcome)]:
        found.add_column(head, overflow="fold")
    for arm in outcome.standings:
        found.add_row(Text(arm), *(Text(cell) for cell in _cells(outcome, arm)))
    found.add_row("start model", *_start_cells(outcome))
    return found
