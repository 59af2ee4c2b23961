"""`melior evaluate reward`: how well scorers know the better answer, on labelled preferences."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import tyro

from melior.checks import in_range
from melior.commands import score
from melior.options import ScoringOptions
from melior.records import Group, text
from melior.rewards.named import check_prompted, find_scorer

if TYPE_CHECKING:
    from melior.evaluation.compare import Array
    from melior.evaluation.reward_bench import Item
    from melior.evaluation.scorers import Between, Circles, Findings, Opinion

SCORED: Final = "scored:"
"""Before the name of a file that `melior score` wrote of the same rows."""
MODEL_TYPES: Final = {
    "rules": "Custom Classifier",
    "scored": "Custom Classifier",
    "ensemble": "Custom Classifier",
    "implicit": "DPO",
    "judge": "Generative RM",
    "aspects": "Custom Classifier",
    "general": "Custom Classifier",
    "pairwise": "Custom Classifier",
}
"""RewardBench's words for what is no sequence classifier, or no plain one."""
UNWRITTEN: Final = ("rules", "scored", "ensemble")
"""What has no chat template, or none that is known, or several."""


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
    resume: bool = False
    """Go on after the answers that the folder holds, scored by the same scorers."""
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
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
            if not name.startswith(SCORED):
                self.scored(name)
        place = Path(self.out)
        if place.exists() and not place.is_dir():
            raise ValueError(f"out: a folder is needed; found a file: {place}")
        if (place / "run.json").exists():
            raise ValueError(f"out: a folder without a run is needed; found one: {place}")

    def scored(self, name: str) -> score.Config:
        """Return how one scorer scores the data, into a file of the folder."""
        out = str(Path(self.out) / "scored" / f"{label(name)}.jsonl")
        return score.Config(self.data, name, out, resume=self.resume, scoring=self.scoring)


@dataclass(frozen=True)
class Judged:
    """A scorer and what it is called, what it said of each prompt, and what came of it."""

    scorer: str
    name: str
    opinions: list[Opinion]
    findings: Findings


def label(name: str) -> str:
    """Return what a scorer is called: the last two parts of each path, as in `org/model`."""
    places = name.partition(":")[2] or name
    paths = [Path(place).parts[-2:] for place in places.split(",")]
    return ",".join("/".join(part for part in path if part.strip("/.")) for path in paths)


def reward_bench_words(scorer: str) -> dict[str, str]:
    """Return `model_type` and `chat_template` as RewardBench's files name them."""
    from melior.models.names import kind_of

    family, colon, _ = scorer.partition(":")
    name = family if colon or scorer == "rules" else kind_of(scorer)
    template = "none" if name in UNWRITTEN else "tokenizer"
    return {"model_type": MODEL_TYPES.get(name, "Seq. Classifier"), "chat_template": template}


def run(config: Config) -> Path:
    """Score, judge, compare, write, and print what was found."""
    from melior.report.scorers import lines, write_scorers

    check_prompted([name for name in config.scorers if not name.startswith(SCORED)], config.scoring)
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

    for name in config.scorers:
        if name.startswith(SCORED):
            next(read_groups(name.removeprefix(SCORED)), None)
        else:
            find_scorer(name)


def _decided(source: str) -> list[Group]:
    """Return the groups of which some answers are better than others, and say how many are not."""
    from melior.data.examples import agreed
    from melior.data.files import read_groups

    groups = list(map(agreed, read_groups(source)))
    for group in groups:
        if any(one.score is None for one in group.candidates):
            raise ValueError(
                f"{group.origin}: needs labels: chosen and rejected answers, or a score for each;"
                " found an answer without"
            )
    decided = [
        g for g in groups
        if len({one.score for one in g.candidates}) > 1 and g.facts.get("chosen_share") != 0.5
    ]  # fmt: skip
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
    from melior.data.files import read_groups
    from melior.evaluation.scorers import findings

    file, rate = name.removeprefix(SCORED), None
    if not name.startswith(SCORED):
        scoring = config.scored(name)
        file, rate = scoring.out, _score(groups, scoring)
    opinions = [_opinion(group) for group in _matched(groups, read_groups(file), file)]
    found = findings(label(name), items, opinions, rate=rate)
    return Judged(name, label(name), opinions, found)


def _score(groups: Sequence[Group], scoring: score.Config) -> float | None:
    """Write the groups with a scorer's scores, the labels not shown to it; return its speed."""
    place = Path(scoring.out)
    place.parent.mkdir(parents=True, exist_ok=True)
    if not scoring.resume:
        place.unlink(missing_ok=True)
    bare = (
        replace(g, candidates=tuple(replace(one, score=None) for one in g.candidates))
        for g in groups
    )
    tally = score.score_groups(bare, scoring)
    return tally.rate if tally.candidates else None


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


def _opinion(group: Group) -> Opinion:
    """Return a group's scores, and what a scorer that compares, or an ensemble, stores besides."""
    from melior.evaluation.scorers import Opinion

    scores = tuple(one.score for one in group.candidates)
    given = group.facts.get("comparisons")
    logits = None if given is None else _logits(given, len(scores), group.origin)
    return Opinion(scores, logits, _members(group))


def _members(group: Group) -> tuple[tuple[float, ...], ...]:
    """Return the scores of each member of an ensemble, where all answers have them."""
    from melior.rewards.ensemble import FACT

    given = [one.facts.get(FACT) for one in group.candidates]
    if not all(isinstance(one, dict) and isinstance(one.get("scores"), dict) for one in given):
        return ()
    try:
        rows = [tuple(map(float, one["scores"].values())) for one in given if one]
        return tuple(zip(*rows, strict=True))
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{group.origin}: {FACT!r} needs a number of each member for every answer; found"
            f" {given!s:.80}"
        ) from error


def _logits(given: Any, k: int, origin: str) -> Array:
    import numpy as np

    try:
        logits = np.array(given, dtype=np.float64)  # None becomes nan
    except (TypeError, ValueError):
        logits = np.empty(0)
    if logits.shape != (k, k) or not np.allclose(logits, -logits.T, equal_nan=True):
        raise ValueError(
            f"{origin}: 'comparisons' needs {k} rows of {k} numbers or null, each the negative of"
            f" the one that is mirrored; found {given!s:.80}"
        )
    return logits


def _compared(
    judged: Sequence[Judged], items: Sequence[Item], seed: int
) -> tuple[list[Between], Circles | None]:
    from melior.evaluation.scorers import between, majority_circles
    from melior.ops import generator

    draw = generator(seed)
    pairs = [
        between((one.name, one.opinions), (two.name, two.opinions), items, generator=draw)
        for one, two in itertools.combinations(judged, 2)
    ]
    return [pair for pair in pairs if pair], majority_circles([one.opinions for one in judged])


def _write_reward_bench(
    out: Path, one: Judged, groups: Sequence[Group], items: Sequence[Item]
) -> None:
    """Write RewardBench's two files: accuracies by subset, and the scores of each row."""
    from melior.training.run import write_json

    about = {"model": one.name, **reward_bench_words(one.scorer)}
    subsets = {name: own.accuracy for name, own in one.findings.accuracies.subsets.items()}
    rows = [_row(*row) for row in zip(groups, items, one.opinions, strict=True)]
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    for folder, value in (("eval-set", subsets), ("eval-set-scores", columns)):
        place = out / folder / f"{one.name}.json"
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, about | value)


def _row(group: Group, item: Item, opinion: Opinion) -> dict[str, Any]:
    """Return one row of the scores' file; a list has several answers on a side."""
    from melior.evaluation.reward_bench import best_share

    scores = opinion.scores
    row: dict[str, Any] = {"id": group.facts.get("id", item.id), "subset": item.subset}
    row["results"] = best_share(opinion.known, item.is_best) if opinion.is_whole else None
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
