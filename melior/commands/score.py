"""`melior score`: say how good each candidate of a group is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Final

import tyro

from melior.options import one_of
from melior.records import Group, Metrics


@dataclass(frozen=True)
class Config:
    """Score the candidates of groups, given as JSON lines."""

    file: tyro.conf.Positional[str] = "-"
    """Groups; `-` is standard input."""
    scorer: Annotated[str, tyro.conf.arg(aliases=["--with"])] = "rules"
    """What scores: `rules` (the constraints that a group's row holds)."""
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])] = "-"
    """Where the scored groups go; `-` is standard output."""
    constraints: str = ""
    """Constraints for every group besides its own, as a JSON list for `rules`, such as
    `[{"name": "words", "n": 50, "at": "at most"}]`."""

    def __post_init__(self) -> None:
        """Check the scorer's name and the constraints."""
        one_of("--with", self.scorer, SCORERS)
        _constraints(self.constraints)


def run(config: Config) -> Metrics:
    """Score and write; say on standard error how many groups there were and how they fared."""
    from melior.data.files import read_groups, write_groups

    tally = _Tally()
    scored = SCORERS[config.scorer](read_groups(config.file), config)
    write_groups(config.out, tally.watch(scored))
    print(tally.sentence(), file=sys.stderr)
    return tally.metrics()


def _by_rules(groups: Iterable[Group], config: Config) -> Iterator[Group]:
    from melior.rewards.rules import score_groups

    return score_groups(groups, always=_constraints(config.constraints))


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

    def watch(self, groups: Iterable[Group]) -> Iterator[Group]:
        for group in groups:
            scores = [one.score for one in group.candidates if one.score is not None]
            self.groups += 1
            self.candidates += len(scores)
            self.total += sum(scores)
            self.with_spread += len(set(scores)) > 1
            yield group

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
