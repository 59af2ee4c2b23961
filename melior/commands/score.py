"""`melior score`: say how good each candidate of a group is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import tyro

from melior.options import JudgeOptions, ModelOptions, in_range, one_of
from melior.records import Group, Metrics
from melior.rewards.judge import Budget, BudgetSpentError, Judge

JUDGE, IMPLICIT = "judge:", "implicit:"
"""How scorers begin that name models, or a server, behind it."""


@dataclass(frozen=True)
class Config:
    """Score the candidates of groups, given as JSON lines."""

    file: tyro.conf.Positional[str] = "-"
    """Groups; `-` is standard input."""
    scorer: Annotated[str, tyro.conf.arg(aliases=["--with"])] = "rules"
    """What scores: `rules` (the constraints that a group's row holds); a reward model, as a folder
    such as `runs/rm/model` or a name such as `org/model`; `judge:` and a server's address or a
    language model, which compares or rates; `implicit:POLICY,REFERENCE`, the log-ratio of two
    language models (an adapter's reference is its base model)."""
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])] = "-"
    """Where the scored groups go; `-` is standard output."""
    resume: bool = False
    """Go on after the groups that the file holds, scored by the same judge."""
    constraints: str = ""
    """Constraints for every group besides its own, as a JSON list for `rules`, such as
    `[{"name": "words", "n": 50, "at": "at most"}]`."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """How a model is held."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`, ..."""
    chat_template: str = "auto"
    """Of a judge or of implicit rewards: `auto`, `plain`, `chatml`, or a file."""
    max_tokens: int = 16384
    """Tokens that a model computes at once; a prompt counts once for all its answers."""
    max_length: int = 0
    """Tokens of prompt and answer that a reward model reads, the last ones; 0 is all it can.
    Longer answers have no implicit reward."""
    judge: JudgeOptions = field(default_factory=JudgeOptions)

    def __post_init__(self) -> None:
        """Check the scorer's name, the constraints and the ranges."""
        if self.scorer in (JUDGE, IMPLICIT):
            raise ValueError(f"--with: {self.scorer} needs a model behind it; found none")
        if self.scorer not in SCORERS and not _is_place(self.scorer):
            one_of("--with", self.scorer, (*SCORERS, JUDGE, IMPLICIT))
        if self.resume and (self.out == "-" or not self.is_judged):
            raise ValueError("--resume needs a judge and the file to go on with (--out)")
        if self.is_judged and self.out != "-" and Path(self.out).suffix != ".jsonl":
            raise ValueError(f"--out must end in .jsonl, or be -, for a judge; found {self.out!r}")
        _constraints(self.constraints)
        in_range("max_tokens", self.max_tokens, 16)
        in_range("max_length", self.max_length, 0)

    @property
    def is_judged(self) -> bool:
        """A judge scores; its rows are written one by one, as each has its cost."""
        return self.scorer.startswith(JUDGE)


def run(config: Config) -> Metrics:
    """Score and write; say on standard error how many groups there were and how they fared."""
    from melior.data.files import read_groups, write_groups

    if config.is_judged and config.out != "-":
        return _run_judge(config)
    tally = _Tally()
    groups = scored(read_groups(config.file), config)
    write_groups(config.out, tally.watch(groups, config.file))
    print(tally.sentence(), file=sys.stderr)
    return tally.metrics()


def scored(groups: Iterable[Group], config: Config) -> Iterator[Group]:
    """Yield groups with the scores of the scorer that the config names."""
    if config.is_judged:
        return _by_judge(groups, config, _judge(config))
    if config.scorer.startswith(IMPLICIT):
        return _by_implicit_reward(groups, config)
    return SCORERS.get(config.scorer, _by_reward_model)(groups, config)


def _by_rules(groups: Iterable[Group], config: Config) -> Iterator[Group]:
    from melior.rewards.rules import score_groups

    return score_groups(groups, always=_constraints(config.constraints))


def _by_reward_model(groups: Iterable[Group], config: Config) -> Iterator[Group]:
    from melior.rewards.named import load_reward_scorer

    options = ModelOptions(model=config.scorer, dtype=config.dtype, device=config.device)
    scorer = load_reward_scorer(options, max_tokens=config.max_tokens, max_length=config.max_length)
    yield from _counted("scoring groups", scorer.groups(groups))
    _say(scorer.remarks())


def _by_implicit_reward(groups: Iterable[Group], config: Config) -> Iterator[Group]:
    from melior.models.names import policy_and_reference

    names = config.scorer.removeprefix(IMPLICIT)
    policy_and_reference(names)  # wrong names are said before anything heavy is imported
    from melior.rewards.implicit import load_implicit

    scorer = load_implicit(
        names, _held(config), max_tokens=config.max_tokens, max_length=config.max_length
    )
    yield from _counted("scoring groups", scorer.groups(groups))
    _say(scorer.remarks())


def _judge(config: Config) -> Judge:
    from melior.data.kept import Kept
    from melior.rewards.judge_models import load_judge_model
    from melior.training.cache import cache_folder

    place = config.scorer.removeprefix(JUDGE)
    model = load_judge_model(place, _held(config), config.judge, max_tokens=config.max_tokens)
    budget = Budget(config.judge.judge_calls, config.judge.judge_tokens)
    return Judge(model, Kept(cache_folder() / "verdicts.sqlite"), budget=budget)


def _by_judge(groups: Iterable[Group], config: Config, judge: Judge) -> Iterator[Group]:
    from melior.rewards.judging import WORDINGS, judged, remarks

    by = config.judge.judge_by
    try:
        yield from _counted("judging groups", judged(judge, groups, by=by))
    finally:
        _say(remarks(judge.tally, WORDINGS[by]))


def _run_judge(config: Config) -> Metrics:
    """Judge, and write each group as soon as it is; go on where an earlier run stopped."""
    from melior.data.files import read_groups
    from melior.data.growing import growing
    from melior.rewards.judging import WORDINGS

    rows = _rows_so_far(config)
    judge = _judge(config)
    about = judge.about(WORDINGS[config.judge.judge_by])
    groups = _by_judge(_unjudged(read_groups(config.file), rows, config, about), config, judge)
    tally = _Tally(len(rows))
    with growing(Path(config.out), start=len(rows)) as put:
        try:
            for group in tally.watch(groups, config.file):
                put(group)
        except (BudgetSpentError, KeyboardInterrupt) as error:
            n = len(rows) + tally.groups
            told = f"{error}; {n} groups are in {config.out}; --resume goes on".lstrip("; ")
            raise type(error)(told) from error
    print(tally.sentence(), file=sys.stderr)
    return tally.metrics()


def _rows_so_far(config: Config) -> list[dict[str, Any]]:
    from melior.data.growing import whole_rows

    path = Path(config.out)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out: the folder of {path} does not exist; make it")
    rows = whole_rows(path) if path.exists() else []
    if not config.resume and path.exists() and path.stat().st_size:
        raise FileExistsError(
            f"{path}: needs to be new; found {len(rows)} rows; --resume goes on with them"
        )
    return rows


def _unjudged(
    groups: Iterator[Group], rows: list[dict[str, Any]], config: Config, about: dict[str, Any]
) -> Iterator[Group]:
    """Yield the groups behind those that were judged, once they are known to be the same."""
    from melior.data.files import as_row

    for number, row in enumerate(rows, 1):
        where = f"{config.out}:{number}"
        group = next(groups, None)
        if group is None or _asked(row) != _asked(as_row(group)):
            origin = group.origin if group else "nothing"
            raise ValueError(
                f"{where}: --resume needs the prompts and answers of {config.file}, in its order;"
                f" found others than {origin}; give that file, or another --out"
            )
        judge = {key: value for key, value in row.get("judge", {}).items() if key != "verdicts"}
        if judge != about:
            raise ValueError(
                f"{where}: --resume needs rows of the same judge, {about}; found {judge};"
                " give that judge, or another --out"
            )
    yield from groups


def _asked(row: dict[str, Any]) -> list[Any]:
    """Return what was judged: the prompt and the answers."""
    return [row.get("prompt"), [one.get("response") for one in row.get("candidates") or ()]]


def _held(config: Config) -> ModelOptions:
    return ModelOptions(
        model="", dtype=config.dtype, device=config.device, chat_template=config.chat_template
    )


def _counted(title: str, groups: Iterable[Group]) -> Iterator[Group]:
    from melior.training.hooks import counted

    with counted(title) as progress:
        for done, group in enumerate(groups, 1):
            yield group
            progress(done)


def _say(remarks: Iterable[str]) -> None:
    for remark in remarks:
        print(remark, file=sys.stderr)


def _is_place(name: str) -> bool:
    """Say whether a name is a model's, maybe behind what it is to do, rather than a scorer's."""
    return name.startswith((JUDGE, IMPLICIT)) or "/" in name or Path(name).is_dir()


SCORERS: Final[dict[str, Callable[[Iterable[Group], Config], Iterator[Group]]]] = {
    "rules": _by_rules,
}
"""Every scorer by its name."""


def _constraints(text: str) -> list[dict[str, Any]]:
    from melior.rewards.constraints import checked

    try:
        given = json.loads(text or "[]")
    except ValueError as error:
        raise ValueError(f"--constraints must be a JSON list; found {text!r} ({error})") from error
    if not isinstance(given, list):
        raise ValueError(f"--constraints must be a JSON list; found {text!r}")
    return [checked(constraint, "--constraints") for constraint in given]


@dataclass
class _Tally:
    """Counts of what went by."""

    earlier: int = 0
    """Groups that an earlier run scored."""
    groups: int = 0
    with_spread: int = 0
    candidates: int = 0
    total: float = 0.0

    def watch(self, groups: Iterable[Group], file: str) -> Iterator[Group]:
        for group in groups:
            scores = [one.score for one in group.candidates if one.score is not None]
            self.groups += 1
            self.candidates += len(scores)
            self.total += sum(scores)
            self.with_spread += len(set(scores)) > 1
            yield group
        if not self.groups and not self.earlier:
            where = "stdin" if file == "-" else file
            raise ValueError(f"{where}: needs at least one group to score; found none")

    def metrics(self) -> Metrics:
        return {
            "score/groups": self.groups,
            "score/candidates": self.candidates,
            "score/mean": self.total / max(self.candidates, 1),
            "score/share_with_spread": self.with_spread / max(self.groups, 1),
        }

    def sentence(self) -> str:
        return (
            f"scored {self.candidates} candidates of {self.groups} groups: "
            f"mean {self.metrics()['score/mean']:.3f}, "
            f"different scores in {self.with_spread} groups"
        )
