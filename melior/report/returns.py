"""Policies in the real task as one page: each method's scores over seeds, each run's episodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from melior.evaluation.compare import Interval, t_interval
from melior.report import pictures, sections, words
from melior.report.load import read_runs
from melior.report.markup import Child, Html, table, tag
from melior.report.page import document, write_page
from melior.stages.control.scored import Judged, Method


def lines(found: Sequence[Method]) -> Iterator[str]:
    """Yield what each run reached, and each method that has several."""
    for method in found:
        for run in method.runs:
            yield f"{run.run} ({method.name}, {run.task}): {_run(run)}"
        if len(method.runs) > 1:
            yield f"{method.name} in {method.runs[0].task}: {_method(method)}"
        if method.left_out:
            yield (
                f"{method.name}: left out of its mean, as a run of the same seed is counted: "
                f"{', '.join(method.left_out)}"
            )


def write_returns(place: Path, found: Sequence[Method]) -> Path:
    """Write the page and return where it lies."""
    runs = [run for method in found for run in method.runs]
    remarks = _remarks(found)
    tasks = list(dict.fromkeys(run.task for run in runs))
    header = tag(
        "header",
        tag("p", tag("b", ", ".join(tasks)), class_="eyebrow"),
        tag("h1", _headline(found)),
        tag("p", LEAD, class_="lead"),
        tag("ul", [tag("li", line) for line in remarks], class_="remarks") if remarks else None,
        class_="hero",
    )
    told = read_runs([Path(run.run) for run in runs])
    parts = {
        "Scores": _scores(found),
        "Returns": _returns(found, tasks),
        "What differs": sections.config_differences(told),
        "How it was made": sections.origins(told),
    }
    write_page(place, document(", ".join(method.name for method in found), header, parts))
    return place


LEAD = (
    "A score of 0 is that of random actions, 100 that of the data set's expert. Over seeds an "
    "interval says how well a method does, over episodes how well one policy does; both are "
    "Student's, of 95 %."
)


def _headline(found: Sequence[Method]) -> str:
    """Say which method has the highest mean, where all have scores."""
    scores = {method.name: method.score for method in found if method.score is not None}
    if len(scores) < len(found):
        return f"{words.count(len(found), 'method')} in the real task"
    first, score = max(scores.items(), key=lambda item: item[1].estimate)
    said = f"{first} scores {_said(score)}"
    return said if len(scores) == 1 else f"{said}, the highest mean of {len(scores)}"


def _remarks(found: Sequence[Method]) -> list[str]:
    """Say what must not be missed: who knew the true reward, what repeats nothing."""
    said = [
        f"{run.run} learned from the true reward, {run.true_reward}, and not one learned from the "
        "log."
        for method in found
        for run in method.runs
        if run.true_reward
    ]
    said += [
        f"{method.name}: {len(method.runs)} runs {method.worlds}, whose luck they share."
        for method in found
        if method.worlds
    ]
    alone = [method.name for method in found if len(method.runs) == 1]
    if alone:
        said.append(f"One seed alone says nothing of another: {', '.join(alone)}.")
    return said


def _scores(found: Sequence[Method]) -> Html | None:
    scored = {method: method.score for method in found if method.score is not None}
    if not scored:
        return None
    rows = [pictures.Row(method.name, _means(method), score) for method, score in scored.items()]
    expert = pictures.Row("expert", (), Interval(100.0, None, None, 0.95, 1))
    drawn = pictures.dots("Score of each method", "normalised score", rows, level=expert)
    cells: list[Sequence[Child]] = [
        [method.name, method.runs[0].task, _said(score), _said(method.mean),
         words.figure(len(method.runs))]
        for method, score in scored.items()
    ]  # fmt: skip
    heads = ["Method", "Task", "Score", "Return", "Seeds"]
    note = "Rings: the mean of each seed's policy. Dot: their mean, with its interval over seeds."
    return tag(
        "section", tag("h2", "Scores"), tag("p", note, class_="note"), pictures.embedded(drawn),
        table(heads, cells, "standings"), id="scores",
    )  # fmt: skip


def _returns(found: Sequence[Method], tasks: Sequence[str]) -> Html:
    drawn = [pictures.embedded(_episodes(task, found)) for task in tasks]
    cells: list[Sequence[Child]] = [
        [run.run, method.name, run.task, _said(t_interval(run.returns)),
         words.DASH if run.scores is None else _said(t_interval(run.scores)),
         words.figure(len(run.returns))]
        for method in found for run in method.runs
    ]  # fmt: skip
    heads = ["Run", "Method", "Task", "Return", "Score", "Episodes"]
    note = "Rings: episodes. Dot: their mean, with its interval over episodes."
    return tag(
        "section", tag("h2", "Returns"), tag("p", note, class_="note"), drawn,
        table(heads, cells, "standings"), id="returns",
    )  # fmt: skip


def _episodes(task: str, found: Sequence[Method]) -> Html:
    rows = [
        pictures.Row(
            f"{method.name}, seed {run.seed}", tuple(map(float, run.returns)),
            t_interval(run.returns),
        )
        for method in found for run in method.runs if run.task == task
    ]  # fmt: skip
    return pictures.dots(f"Returns in {task}", "return of an episode", rows)


def _means(method: Method) -> tuple[float, ...]:
    return tuple(float(run.scores.mean()) for run in method.runs if run.scores is not None)


def _run(run: Judged) -> str:
    scores = run.scores
    score = "no score, since no references are known; give --dataset"
    if scores is not None:
        score = f"score {_said(t_interval(scores))}"
    said = f"{score}; return {_said(t_interval(run.returns))}, over {len(run.returns)} episodes"
    return f"{said}; learned from the true reward, {run.true_reward}" if run.true_reward else said


def _method(method: Method) -> str:
    worlds = f", {method.worlds}" if method.worlds else ""
    score = f"score {_said(method.score)}; " if method.score else ""
    return f"{score}return {_said(method.mean)}, over {len(method.runs)} seeds{worlds}"


def _said(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.estimate:.4g}"
    return f"{interval.estimate:.4g} ({interval.low:.4g} to {interval.high:.4g})"
