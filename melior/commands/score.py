"""`melior score`: say how good each candidate of a group is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import tyro

from melior.options import in_range, one_of
from melior.records import Group, Metrics


@dataclass(frozen=True)
class Config:
    """Score the candidates of groups, given as JSON lines."""

    file: tyro.conf.Positional[str] = "-"
    """Groups; `-` is standard input."""
    scorer: Annotated[str, tyro.conf.arg(aliases=["--with"])] = "rules"
    """What scores: `rules` (the constraints that a group's row holds), or a reward model: a folder
    such as `runs/rm/model`, or a name such as `org/model`."""
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])] = "-"
    """Where the scored groups go; `-` is standard output."""
    constraints: str = ""
    """Constraints for every group besides its own, as a JSON list for `rules`, such as
    `[{"name": "words", "n": 50, "at": "at most"}]`."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    """How a reward model is held."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`, ..."""
    max_tokens: int = 16384
    """Tokens that a reward model computes at once; a prompt counts once for all its answers."""
    max_length: int = 0
    """Tokens of prompt and answer that a reward model reads, the last ones; 0 is all it can."""

    def __post_init__(self) -> None:
        """Check the scorer's name, the constraints and the ranges."""
        if self.scorer not in SCORERS and not _is_place(self.scorer):
            one_of("--with", self.scorer, SCORERS)
        _constraints(self.constraints)
        in_range("max_tokens", self.max_tokens, 16)
        in_range("max_length", self.max_length, 0)


def run(config: Config) -> Metrics:
    """Score and write; say on standard error how many groups there were and how they fared."""
    from melior.data.files import read_groups, write_groups

    tally = _Tally()
    groups = scored(read_groups(config.file), config)
    write_groups(config.out, tally.watch(groups, config.file))
    print(tally.sentence(), file=sys.stderr)
    return tally.metrics()


def scored(groups: Iterable[Group], config: Config) -> Iterator[Group]:
    """Yield groups with the scores of the scorer that the config names."""
    return SCORERS.get(config.scorer, _by_reward_model)(groups, config)


def _by_rules(groups: Iterable[Group], config: Config) -> Iterator[Group]:
    from melior.rewards.rules import score_groups

    return score_groups(groups, always=_constraints(config.constraints))


def _by_reward_model(groups: Iterable[Group], config: Config) -> Iterator[Group]:
    from melior.models.names import find

    find(config.scorer)  # a wrong name is said before anything heavy is imported
    from melior.options import ModelOptions
    from melior.rewards.scalar import load_scorer
    from melior.training.hooks import counted

    options = ModelOptions(model=config.scorer, dtype=config.dtype, device=config.device)
    scorer = load_scorer(options, max_tokens=config.max_tokens, max_length=config.max_length)
    with counted("scoring groups") as progress:
        for done, group in enumerate(scorer.groups(groups), 1):
            yield group
            progress(done)
    for remark in scorer.remarks():
        print(remark, file=sys.stderr)


def _is_place(name: str) -> bool:
    """Say whether a name is a model's rather than a scorer's."""
    return "/" in name or Path(name).is_dir()


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
        if not self.groups:
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
