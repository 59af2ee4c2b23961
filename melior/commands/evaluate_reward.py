"""`melior evaluate reward`: how well scorers know the better answer, on labelled preferences."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import tyro

from melior.commands import score
from melior.options import in_range
from melior.records import Group, text

if TYPE_CHECKING:
    from melior.data.layouts import Row
    from melior.evaluation.compare import Array
    from melior.evaluation.reward_bench import Item
    from melior.evaluation.scorers import Between, Circles, Findings

SCORED: Final = "scored:"
"""Before the name of a file that `melior score` wrote of the same rows."""
MODEL_TYPES: Final = {
    "rules": "Custom Classifier",
    "scored": "Custom Classifier",
    "implicit": "DPO",
    "judge": "Generative RM",
}
"""RewardBench's words for what is no sequence classifier."""
Scores = list[tuple[float | None, ...]]


@dataclass(frozen=True)
class Config:
    """Judge scorers on labelled answers, such as RewardBench's, into its files and a page."""

    data: str
    """Labelled pairs or lists: `path[:split[:rows]]`. A column `subset` parts them."""
    scorers: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--with"])]
    """One or several of what `melior score` takes, such as `runs/rm/model` or `rules`, or
    `scored:FILE`: what it has written of the same rows."""
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])]
    """The folder for the numbers and the page."""
    constraints: str = ""
    """For `rules`: constraints for every prompt besides its own, as a JSON list."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`, ..."""
    max_tokens: int = 16384
    """Tokens that a reward model computes at once; a prompt counts once for all its answers."""
    max_length: int = 0
    """Tokens of prompt and answer that a reward model reads, the last ones; 0 is all it can."""
    seed: int = 0
    """Draws the resamples of the comparisons between scorers."""

    def __post_init__(self) -> None:
        """Check scorers, ranges and the folder."""
        in_range("seed", self.seed, 0)
        if not self.scorers:
            raise ValueError("--with: at least one scorer is needed; found none")
        labels = [label(name) for name in self.scorers]
        twice = [name for name in labels if labels.count(name) > 1]
        if twice:
            raise ValueError(f"--with: each scorer is needed once; found {twice[0]!r} again")
        for name in self.scorers:
            self.scoring(name)
        place = Path(self.out)
        if place.exists() and not place.is_dir():
            raise ValueError(f"out: a folder is needed; found a file: {place}")
        if (place / "run.json").exists():
            raise ValueError(f"out: a folder without a run is needed; found one: {place}")

    def scoring(self, name: str) -> score.Config | None:
        """Return the options of `melior score` for one scorer; None for what is scored already."""
        if name.startswith(SCORED):
            return None
        return score.Config(
            scorer=name, constraints=self.constraints, dtype=self.dtype, device=self.device,
            max_tokens=self.max_tokens, max_length=self.max_length,
        )  # fmt: skip


@dataclass(frozen=True)
class Judged:
    """A scorer and what it is called, what it said of each prompt, and what came of it."""

    scorer: str
    name: str
    scores: Scores
    findings: Findings


def label(name: str) -> str:
    """Return what a scorer is called: the last two parts of each path, as in `org/model`."""
    places = name.partition(":")[2] or name
    paths = [Path(place).parts[-2:] for place in places.split(",")]
    return ",".join("/".join(part for part in path if part.strip("/.")) for path in paths)


def run(config: Config) -> Path:
    """Score, judge, compare, write, and print what was found."""
    from melior.report.scorers import lines, write_scorers

    _check_places(config)
    groups = _decided(config.data)
    items = [_item(group, place) for place, group in enumerate(groups, 1)]
    judged = [_judged(name, groups, items, config) for name in config.scorers]
    pairs, around = _compared(judged, items, config.seed)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    for one in judged:
        _write_reward_bench(out, one, groups, items)
    found = [one.findings for one in judged]
    _write_evaluation(out / "evaluation.json", config, found, pairs, around)
    for line in lines(found, pairs, around):
        print(line)
    return write_scorers(out / "report.html", config.data, found, pairs, around)


def _check_places(config: Config) -> None:
    """Look for every model and file before the first scorer is asked."""
    from melior.data.files import read_groups
    from melior.models.names import find

    for name in config.scorers:
        if name.startswith(SCORED):
            next(read_groups(name.removeprefix(SCORED)), None)
        elif name not in score.SCORERS and ":" not in name:
            find(name)


def _decided(source: str) -> list[Group]:
    """Return the groups of which some answers are better than others, and say how many are not."""
    from melior.data.files import read_groups

    groups = list(read_groups(source))
    for group in groups:
        if any(one.score is None for one in group.candidates):
            raise ValueError(
                f"{group.origin}: needs labels: chosen and rejected answers, or a score for each;"
                " found an answer without"
            )
    decided = [g for g in groups if len({one.score for one in g.candidates}) > 1]
    if not decided:
        raise ValueError(
            f"{source}: needs prompts with better and worse answers; found none among"
            f" {len(groups)} rows"
        )
    if rest := len(groups) - len(decided):
        print(f"{rest} prompts whose answers are all labelled alike are left out", file=sys.stderr)
    return decided


def _item(group: Group, place: int) -> Item:
    from melior.evaluation.reward_bench import Item

    return Item(
        id=str(group.facts.get("id", place)),
        subset=str(group.facts.get("subset", "all")),
        labels=tuple(float(one.score or 0.0) for one in group.candidates),
        lengths=tuple(len(text(one.response)) for one in group.candidates),
    )


def _judged(name: str, groups: Sequence[Group], items: Sequence[Item], config: Config) -> Judged:
    from melior.evaluation.scorers import findings

    started = time.perf_counter()
    scored = list(_scored(name, groups, config))
    seconds = None if name.startswith(SCORED) else time.perf_counter() - started
    scores = [tuple(one.score for one in group.candidates) for group in scored]
    compared = [logits for group in scored if (logits := _comparisons(group)) is not None]
    found = findings(label(name), items, scores, comparisons=compared, seconds=seconds)
    return Judged(name, label(name), scores, found)


def _scored(name: str, groups: Sequence[Group], config: Config) -> Iterator[Group]:
    """Yield the groups with a scorer's scores; the labels are not shown to it."""
    from melior.data.files import read_groups

    scoring = config.scoring(name)
    if scoring is None:
        file = name.removeprefix(SCORED)
        yield from _matched(groups, read_groups(file), file)
        return
    bare = (
        replace(g, candidates=tuple(replace(one, score=None) for one in g.candidates))
        for g in groups
    )
    yield from score.scored(bare, scoring)


def _matched(groups: Sequence[Group], scored: Iterable[Group], file: str) -> Iterator[Group]:
    """Find each group among scored ones in the same order; rows between them may be others."""
    rest = iter(scored)
    for group in groups:
        said = [one.response for one in group.candidates]
        for other in rest:
            if other.prompt == group.prompt and [c.response for c in other.candidates] == said:
                yield other
                break
        else:
            raise ValueError(
                f"{file}: needs the same prompts and answers as the data, in their order; found"
                f" none for {group.origin}; score the data again with melior score"
            )


def _comparisons(group: Group) -> Array | None:
    """Return what a judge that compares has stored with a group of its verdicts."""
    from melior.data.layouts import Row
    from melior.evaluation.agreement import preferred

    judge, k = group.facts.get("judge"), len(group.candidates)
    if not isinstance(judge, dict) or not judge.get("verdicts"):
        return None
    rows = Row(f"{group.origin}: 'judge'", judge).objects("verdicts", "verdict")
    wins = [(_place(row, "left", k), _place(row, "right", k), row.number("win")) for row in rows]
    return preferred(k, wins)


def _place(row: Row, name: str, k: int) -> int:
    found = row.number(name)
    if found is None or found not in range(k):
        raise ValueError(
            f"{row.origin}: {name!r} needs the place of an answer, from 0 to {k - 1}; found {found}"
        )
    return int(found)


def _compared(
    judged: Sequence[Judged], items: Sequence[Item], seed: int
) -> tuple[list[Between], Circles | None]:
    from melior.evaluation.scorers import between, majority_circles
    from melior.ops import generator

    draw = generator(seed)
    pairs = [
        between((one.name, one.scores), (two.name, two.scores), items, generator=draw)
        for one, two in itertools.combinations(judged, 2)
    ]
    return [pair for pair in pairs if pair], majority_circles([one.scores for one in judged])


def _write_reward_bench(
    out: Path, one: Judged, groups: Sequence[Group], items: Sequence[Item]
) -> None:
    """Write RewardBench's two files: accuracies by subset, and the scores of each row."""
    from melior.training.run import write_json

    kind = MODEL_TYPES.get(one.scorer.partition(":")[0], "Seq. Classifier")
    template = "none" if kind == "Custom Classifier" else "tokenizer"
    about = {"model": one.name, "model_type": kind, "chat_template": template}
    subsets = {name: own.accuracy for name, own in one.findings.accuracies.subsets.items()}
    rows = [_row(*row) for row in zip(groups, items, one.scores, strict=True)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for folder, value in (("eval-set", subsets), ("eval-set-scores", columns)):
        place = out / folder / f"{one.name}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, about | value)


def _row(group: Group, item: Item, scores: Sequence[float | None]) -> dict[str, Any]:
    """Return one row of the scores' file; a list has several answers on a side."""
    from melior.evaluation.reward_bench import best_share

    known = [value for value in scores if value is not None]
    is_whole = len(known) == len(scores)
    row: dict[str, Any] = {"id": group.facts.get("id", item.id), "subset": item.subset}
    row["results"] = best_share(known, item.is_best) if is_whole else None
    for side, is_chosen in (("chosen", True), ("rejected", False)):
        places = [i for i, best in enumerate(item.is_best) if best == is_chosen]
        answers = [text(group.prompt + group.candidates[i].response) for i in places]
        values = [scores[i] for i in places]
        is_pair = len(scores) == 2
        row[f"scores_{side}"] = values[0] if is_pair else values
        row[f"text_{side}"] = answers[0] if is_pair else answers
    return row


def _write_evaluation(
    place: Path,
    config: Config,
    found: Sequence[Findings],
    pairs: Sequence[Between],
    around: Circles | None,
) -> None:
    from melior.data.files import content_hash
    from melior.training.run import write_json

    write_json(
        place,
        {
            "data": config.data,
            "data_hash": content_hash(config.data),
            "scorers": [asdict(one) for one in found],
            "between": [asdict(pair) for pair in pairs],
            "majority_circles": asdict(around) if around else None,
        },
    )
