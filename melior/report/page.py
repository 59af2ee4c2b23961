"""One self-contained HTML page of one run, or of several side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from statistics import fmean, variance

from melior.report import control, drawn, health, judged, samples, sections, words
from melior.report.load import Run, mapping, mappings, read_runs
from melior.report.markup import Child, Html, chip, join, tag

THEME = (
    "try { const theme = localStorage.getItem('melior-theme');"
    " if (theme) document.documentElement.dataset.theme = theme } catch {}"
    " document.documentElement.classList.add('js')"
)
"""Runs before the first paint, so that the page never flashes."""
ICON = (
    "data:image/svg+xml,%3Csvg xmlns='http:%2F%2Fwww.w3.org/2000/svg' viewBox='0 0 16 16'%3E"
    "%3Cpath d='M2 12l4-5 3 3 5-7' fill='none' stroke='%230072b2' stroke-width='2.4'/%3E%3C/svg%3E"
)


def write_report(folders: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page of these run folders and return where it lies.

    Args:
        folders: one or more run folders; running and failed runs are welcome.
        out: the file to write; by default `report.html`, in the folder of a single run.

    Raises:
        FileNotFoundError: naming a folder that is missing or holds no run.
    """
    runs = read_runs(folders)
    if out is None:
        out = (folders[0] if len(folders) == 1 else Path()) / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_page(out, page(runs))
    return out


def write_page(out: Path, content: Html) -> None:
    """Write a page, whole or not at all."""
    half = out.with_name(f".{out.name}.part")
    half.write_text(content, encoding="utf-8")
    half.replace(out)


def page(runs: Sequence[Run]) -> Html:
    """Return the page."""
    title = ", ".join(run.label for run in runs)
    parts = {
        "Before and after": judged.section(runs),
        "World": control.section(runs),
        "Pictures": drawn.section(runs),
        "Health": health.section(runs),
        "What differs": sections.config_differences(runs),
        "Training": sections.curves(runs),
        "Distributions": sections.distributions(runs),
        "Samples": samples.section(runs),
        "Data": sections.data(runs),
        "How it was made": sections.origins(runs),
    }
    return document(title, _one(runs[0]) if len(runs) == 1 else _several(runs), parts)


def document(title: str, header: Html, parts: Mapping[str, Html | None]) -> Html:
    """Return a whole page: a bar of links, what is said first, and the sections that there are."""
    found = {name: part for name, part in parts.items() if part is not None}
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · melior report"),
        tag("link", rel="icon", href=ICON),
        tag("script", Html(THEME)),
        tag("style", _asset("page.css")),
    )
    body = tag(
        "body",
        _bar(found),
        tag("main", header, found.values()),
        tag("footer", "Written by melior. This page needs no network; it can be sent as it is."),
        tag("script", _asset("page.js")),
    )
    return join([Html("<!doctype html>\n"), tag("html", head, body, lang="en")])


def worth_a_look(run: Run) -> list[str]:
    """Return plain remarks on what a reader should not miss."""
    remarks = list(run.damage)
    for part, name in (("train", "training"), ("held_out", "held-out")):
        wrong = [r for r in mappings(mapping(run.data.get(part)).get("findings"))
                 if r.get("level") == "error"]  # fmt: skip
        if wrong:
            names = ", ".join(words.finding(row).lower() for row in wrong)
            remarks.append(f"The data check found errors in the {name} data: {names}.")
    remarks += health.warnings(run)
    lengths = sections.spread(run, "length")
    if _differ(lengths["before"], lengths["after"]):
        before, after = (sum(v) / len(v) for v in (lengths["before"], lengths["after"]))
        if before and abs(after / before - 1) > 0.25:
            grew = "grew" if after > before else "shrank"
            remarks.append(
                f"Answers {grew} from {words.figure(before)} to {words.figure(after)} on average; "
                "judges often favour the longer one."
            )
    return remarks


def _differ(left: Sequence[float], right: Sequence[float]) -> bool:
    """Say whether means of some values are more than three standard errors apart."""
    if min(len(left), len(right)) < 4:
        return False
    error = math.sqrt(sum(variance(side) / len(side) for side in (left, right)))
    return abs(fmean(left) - fmean(right)) > 3 * error


def _one(run: Run) -> Html:
    verdict = words.of_run(run)
    return tag(
        "header",
        tag("p", _status(run), tag("b", run.label), _facts(run), class_="eyebrow"),
        tag("h1", verdict.sentence, class_=verdict.kind),
        tag("p", verdict.detail, class_="lead"),
        _remarks(worth_a_look(run)),
        class_="hero",
    )


def _several(runs: Sequence[Run]) -> Html:
    cards = []
    for place, run in enumerate(runs):
        verdict = words.of_run(run)
        cards.append(
            tag(
                "li",
                tag(
                    "p",
                    chip(place),
                    tag("b", run.label),
                    _status(run),
                    _facts(run),
                    class_="eyebrow",
                ),
                tag("p", verdict.sentence, class_=f"verdict {verdict.kind}"),
                tag("p", verdict.detail, class_="lead"),
                _remarks(worth_a_look(run)),
            )
        )
    return tag(
        "header",
        tag("h1", f"{len(runs)} runs side by side"),
        tag("ul", cards, class_="cards"),
        class_="hero",
    )


def _status(run: Run) -> Html:
    return tag("span", run.status, class_=f"status {run.status}")


def _facts(run: Run) -> Html:
    started = words.moment(run.about.get("started"))
    facts = [
        str(run.about.get("recipe") or ""),
        words.count(run.last_step, "step") if run.last_step else "",
        words.took(run),
        f"{started:%d %b %Y}".lstrip("0") if started else "",
    ]
    return tag("span", " · ".join(fact for fact in facts if fact))


def _remarks(remarks: list[str]) -> Html | None:
    return (
        tag("ul", [tag("li", remark) for remark in remarks], class_="remarks") if remarks else None
    )


def _bar(parts: dict[str, Html]) -> Html:
    anchors = {
        "Before and after": "evaluation",
        "What differs": "differences",
        "How it was made": "origin",
        "Which differences are real": "duels",
        "Settings tried": "sweeps",
        "Scorer and held-out scorer": "parting",
    }
    links: list[Child] = [
        tag("a", name, href=f"#{anchors.get(name, name.lower())}") for name in parts
    ]
    toggle = tag("button", "◐", type="button", id="theme", aria_label="Switch light and dark",
                 title="Switch light and dark")  # fmt: skip
    return tag("nav", tag("b", "melior", class_="word"), tag("div", links, class_="links"), toggle,
               aria_label="Sections")  # fmt: skip


def _asset(name: str) -> Html:
    return Html((files("melior.report") / "assets" / name).read_text(encoding="utf-8"))
