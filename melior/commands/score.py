"""`melior score`: say how good each candidate of a group is."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import tyro

from melior.models.names import kind_of
from melior.options import ScoringOptions, WorkerOptions
from melior.records import Group, Metrics
from melior.rewards.judging import JudgeScorer
from melior.rewards.named import (
    about_scorer,
    check_prompted,
    check_scorer,
    cooled,
    find_scorer,
    load_scorer,
    unjudged,
)

if TYPE_CHECKING:
    from melior.workers.deal import Deal
    from melior.workers.work import Chunk

R = TypeVar("R")
CHUNK = 256
"""Groups that a worker scores at a time: as many as scorers sort and compute together, or several
times as many, so that workers find each group in the company that it would have here."""


@dataclass(frozen=True)
class Config:
    """Score the candidates of groups, given as JSON lines."""

    file: tyro.conf.Positional[str] = "-"
    """Groups; `-` is standard input."""
    scorer: Annotated[str, tyro.conf.arg(aliases=["--with"])] = "rules"
    """What scores: `rules` (the constraints that a group's row holds); a reward model of any kind,
    as a folder such as `runs/rm/model` or a name such as `org/model`; `judge:` and a server's
    address or a language model, which compares or rates; `implicit:POLICY,REFERENCE`, the log-ratio
    of two language models (an adapter's reference is its base model); `ensemble:A,B`, several of
    these as one."""
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])] = "-"
    """Where the scored groups go, each as soon as it is scored: a .jsonl file, or `-` for standard
    output."""
    resume: bool = False
    """Go on after the groups that the file holds, scored by the same scorer."""
    explain: bool = False
    """Say of each candidate what each objective adds to its score, the largest first, in its fact
    `explanation`; needs a model made by `melior armorm`."""
    scoring: ScoringOptions = field(default_factory=ScoringOptions)
    workers: WorkerOptions = field(default_factory=WorkerOptions)

    def __post_init__(self) -> None:
        """Check the scorer's name, the constraints and the output."""
        check_scorer(self.scorer, self.scoring)
        if self.resume and self.out == "-":
            raise ValueError("--resume needs the file to go on with; found no --out")
        if self.out != "-" and Path(self.out).suffix != ".jsonl":
            raise ValueError(f"--out must end in .jsonl, or be -; found {self.out!r}")
        self.workers.check(self.scoring.device)
        judge = self.scoring.judge
        if self.workers.is_used and (judge.judge_calls or judge.judge_tokens):
            raise ValueError(
                "--judge-calls and --judge-tokens are counted in one process; found --processes or"
                " --cluster, which would each spend them anew; leave one of the two out"
            )
        if self.workers.cluster and judge.api_key_env:
            raise ValueError(
                "--api-key-env names a key of this machine; found --cluster, whose machines have"
                " none; ask a server by --concurrency questions at once from here"
            )


def run(config: Config) -> Metrics:
    """Score and write; say on standard error how many groups there were and how they fared."""
    from melior.data.files import read_groups

    check_prompted([config.scorer], config.scoring)
    find_scorer(config.scorer)
    is_mixed = Path(config.scorer).is_dir() and kind_of(config.scorer) == "aspects"
    if config.explain and not is_mixed:
        raise ValueError(
            f"--explain needs a model that melior armorm has made; found {config.scorer}"
        )
    tally = score_groups(read_groups(config.file), config)
    print(tally.sentence(), file=sys.stderr)
    return tally.metrics()


def score_groups(groups: Iterator[Group], config: Config) -> Tally:
    """Score groups and write each as soon as it is; go on where an earlier run stopped.

    What scored a group, and all that decides the scores, becomes its fact `scorer`; what an earlier
    scorer left besides scores goes.

    Args:
        groups: what to score; their file is read by whoever calls.
        config: the scorer and the output.

    Raises:
        ValueError: there are no groups, or the output holds others, or other scores.
    """
    from melior.data.growing import opened
    from melior.training.hooks import counted

    before = _before(groups, config)
    first, left = _peeked(groups)
    if first is None and not before.n:
        where = "stdin" if config.file == "-" else config.file
        raise ValueError(f"{where}: needs at least one group to score; found none")
    tally = Tally()
    with _scored(config, before, left) as (who, scored):
        _check_scorer(before, who.about, config.out)
        try:
            with counted("scoring groups") as show:
                if isinstance(who, Scoring):
                    who.watch(lambda: show(tally.groups, tally.cost(who.costs())))
                # Nothing is opened before there is something to write.
                _, scored = _peeked(scored)
                with opened(config.out, start=before.n) as put:
                    for group in scored:
                        put(group)
                        tally.add(group)
                        show(tally.groups, tally.cost(who.costs()))
        except (ValueError, ChildProcessError, KeyboardInterrupt) as error:
            raise _stopped(error, tally, config.out) from error
        finally:
            for remark in who.remarks():
                print(remark, file=sys.stderr)
    return tally


class Scoring:
    """Groups scored here: what a worker does, or this process where there are none."""

    def __init__(self, config: Config) -> None:
        self.scorer = load_scorer(config.scorer, config.scoring)
        self.about = about_scorer(config.scorer, self.scorer, config.scoring)
        self.temperature = config.scoring.temperature
        if config.explain:
            from melior.rewards.aspects import explaining

            self.scorer, self.about = explaining(self.scorer), self.about | {"explains": True}

    def groups(self, chunk: Chunk) -> Iterator[Group]:
        """Score the groups of a chunk."""
        return self.scored(chunk.groups)

    def scored(self, groups: Iterable[Group]) -> Iterator[Group]:
        """Yield groups with scores, and with what scored them."""
        for one in self.scorer.groups(map(unjudged, groups)):
            group = cooled(one, self.temperature)
            yield replace(group, facts={**group.facts, "scorer": self.about})

    def remarks(self) -> list[str]:
        """Say what was cut, left out or has failed."""
        return self.scorer.remarks()

    def costs(self) -> dict[str, int]:
        """Count what a judge was asked."""
        return self.scorer.costs() if isinstance(self.scorer, JudgeScorer) else {}

    def watch(self, act: Callable[[], object]) -> None:
        """Do something while a judge is asked, not only behind a group."""
        if isinstance(self.scorer, JudgeScorer):
            self.scorer.judge.watch = act


@contextmanager
def _scored(
    config: Config, before: _Before, left: Iterator[Group]
) -> Iterator[tuple[Scoring | Deal, Iterator[Group]]]:
    """Give who scores, and the groups that are left, scored."""
    first, left = _peeked(left)
    if first is None or not config.workers.is_used:
        here = Scoring(config)
        yield here, here.scored(left)
        return
    from melior.workers.deal import dealt
    from melior.workers.work import chunked

    again = len(before.begun)
    chunks = chunked(chain(before.begun, left), CHUNK, first=before.n - again)
    load = partial(Scoring, config)
    with dealt(config.workers, load, chunks, device=config.scoring.device) as deal:
        yield deal, islice(deal.groups(), again, None)


@dataclass
class Tally:
    """Counts of what went by."""

    groups: int = 0
    with_spread: int = 0
    candidates: int = 0
    """Those with a score."""
    total: float = 0.0
    started: float = field(default_factory=time.perf_counter)
    seconds: float = 0.0
    """Since all was loaded."""

    def add(self, group: Group) -> None:
        """Count a group that was scored."""
        scores = [one.score for one in group.candidates if one.score is not None]
        self.groups += 1
        self.candidates += len(scores)
        self.total += sum(scores)
        self.with_spread += len(set(scores)) > 1
        self.seconds = time.perf_counter() - self.started

    @property
    def rate(self) -> float:
        """Answers scored a second."""
        return self.candidates / max(self.seconds, 1e-9)

    def cost(self, spent: Mapping[str, int]) -> str:
        """Say how fast it is, and of a judge what it has cost so far."""
        seconds = time.perf_counter() - self.started
        told = "".join(f"{n} {what}, " for what, n in spent.items())
        return f"{told}{self.candidates / max(seconds, 1e-9):.3g} answers/s, {seconds:.0f} s"

    def metrics(self) -> Metrics:
        """Return the counts under their names."""
        return {
            "score/groups": self.groups,
            "score/candidates": self.candidates,
            "score/mean": self.total / max(self.candidates, 1),
            "score/share_with_spread": self.with_spread / max(self.groups, 1),
        }

    def sentence(self) -> str:
        """Say what there was."""
        return (
            f"scored {self.candidates} candidates of {self.groups} groups: "
            f"mean {self.metrics()['score/mean']:.3f}, "
            f"different scores in {self.with_spread} groups"
        )


@dataclass
class _Before:
    """What an earlier run has scored."""

    n: int = 0
    begun: list[Group] = field(default_factory=list)
    """The last groups of these, as many as lie in a chunk that was not ended."""
    scorers: dict[str, int] = field(default_factory=dict)
    """What scored them, as JSON, and the first row of each."""


def _before(groups: Iterator[Group], config: Config) -> _Before:
    """Take the groups that were scored, once they are known to be the same."""
    from melior.data.files import as_row
    from melior.data.growing import rows_so_far

    found = _Before()
    for number, row in enumerate(rows_so_far(config.out, resume=config.resume), 1):
        group = next(groups, None)
        if group is None or _asked(row) != _asked(as_row(group)):
            origin = group.origin if group else "nothing"
            raise ValueError(
                f"{config.out}:{number}: --resume needs the prompts and answers of {config.file},"
                f" with their constraints, in its order; found others than {origin}; give that"
                " file, or another --out"
            )
        found.n = number
        found.begun.append(group)
        if number % CHUNK == 0:
            found.begun.clear()
        found.scorers.setdefault(json.dumps(row.get("scorer")), number)
    return found


def _asked(row: dict[str, Any]) -> list[Any]:
    """Return what was scored: the prompt, the answers, and what rules read besides."""
    said = [one.get("response") for one in row.get("candidates") or ()]
    return [row.get("prompt"), said, row.get("constraints"), row.get("topic")]


def _check_scorer(before: _Before, about: Mapping[str, Any], out: str) -> None:
    for scorer, number in before.scorers.items():
        if json.loads(scorer) != about:
            raise ValueError(
                f"{out}:{number}: --resume needs rows of the same scorer, {about}; found"
                f" {json.loads(scorer)}; give that scorer, or another --out"
            )


def _peeked(items: Iterator[R]) -> tuple[R | None, Iterator[R]]:
    """Return the first one, and all."""
    first = next(items, None)
    return first, items if first is None else chain([first], items)


def _stopped(error: BaseException, tally: Tally, out: str) -> BaseException:
    """Return an error that says why it ended, and what is there to go on with."""
    from melior.data.growing import n_whole_rows

    n = tally.groups if out == "-" else n_whole_rows(Path(out))
    way = f"{n} groups are in {out}; --resume goes on" if out != "-" else f"{n} groups are done"
    told = f"{error}; {way}".lstrip("; ") if n else str(error)
    known = (ChildProcessError, KeyboardInterrupt)
    return type(error)(told) if isinstance(error, known) else ValueError(told)
