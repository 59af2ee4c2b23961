"""`melior select`: choose among the scored candidates of groups, as pairs or as smaller groups."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, TypeVar

import tyro

from melior.checks import in_range
from melior.records import Group, Metrics, Pair

File = tyro.conf.Positional[str]
Out = Annotated[str, tyro.conf.arg(aliases=["--output"])]
R = TypeVar("R", Pair, Group)
Choice = Callable[[Any], list[int]]
"""From the scores of one group, `[1 k]`, to indices of its candidates; -1 where there is none."""

UNSCORED: Final = "with too few scores"
EQUAL: Final = "with equal scores"
CLOSE: Final = "with a margin below --min-margin"


@dataclass(frozen=True)
class BestAndWorstConfig:
    """Pair the best candidate of each group with the worst."""

    file: File = "-"
    """Scored groups; `-` is standard input."""
    out: Out = "-"
    """Where the pairs go; `-` is standard output."""
    min_margin: float = 0.0
    """Leave out groups in which the two scores are closer than this."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("min_margin", self.min_margin, 0)


@dataclass(frozen=True)
class BestAndRandomConfig:
    """Pair the best candidate of each group with one drawn among those that score less."""

    file: File = "-"
    """Scored groups; `-` is standard input."""
    out: Out = "-"
    """Where the pairs go; `-` is standard output."""
    min_margin: float = 0.0
    """Leave out groups in which the two scores are closer than this."""
    seed: int = 42

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("min_margin", self.min_margin, 0)
        in_range("seed", self.seed, 0, 2**63 - 1)


@dataclass(frozen=True)
class TopConfig:
    """Keep the best candidates of each group, best first."""

    file: File = "-"
    """Scored groups; `-` is standard input."""
    out: Out = "-"
    """Where the smaller groups go; `-` is standard output."""
    m: int = 1
    """Candidates kept."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("m", self.m, 1)


@dataclass(frozen=True)
class BoltzmannConfig:
    """Keep candidates of each group drawn in proportion to exp(score / temperature)."""

    file: File = "-"
    """Scored groups; `-` is standard input."""
    out: Out = "-"
    """Where the smaller groups go; `-` is standard output."""
    m: int = 1
    """Candidates kept; drawn without replacement."""
    temperature: float = 1.0
    """Small ones take the best, large ones draw evenly; scores from 0 to 1 want about 0.1."""
    seed: int = 42

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("m", self.m, 1)
        in_range("temperature", self.temperature, 0, above=True)
        in_range("seed", self.seed, 0, 2**63 - 1)


def best_and_worst(config: BestAndWorstConfig) -> Metrics:
    """Write the pairs; say on standard error how many groups were left out, and why."""
    from melior import selection

    return _write_pairs(config, lambda scores: _row(*selection.best_and_worst(scores)))


def best_and_random(config: BestAndRandomConfig) -> Metrics:
    """Write the pairs; say on standard error how many groups were left out, and why."""
    from melior import ops, selection

    dice = ops.generator(config.seed)
    return _write_pairs(
        config, lambda scores: _row(*selection.best_and_random(scores, generator=dice))
    )


def top(config: TopConfig) -> Metrics:
    """Write the smaller groups; say on standard error how many were left out."""
    from melior import selection

    return _write_groups(config, lambda scores: _row(*selection.top(scores, config.m).T))


def boltzmann(config: BoltzmannConfig) -> Metrics:
    """Write the smaller groups; say on standard error how many were left out."""
    from melior import ops, selection

    dice = ops.generator(config.seed)
    return _write_groups(
        config,
        lambda scores: _row(
            *selection.boltzmann(scores, config.m, temperature=config.temperature, generator=dice).T
        ),
    )


def _write_pairs(config: BestAndWorstConfig | BestAndRandomConfig, choose: Choice) -> Metrics:
    from melior import selection
    from melior.data.files import duel, read_groups, write_pairs

    left_out: Counter[str] = Counter()

    def pairs() -> Iterator[Pair]:
        for group in read_groups(config.file):
            scores = _scores(group)
            if not selection.has_spread(scores):
                left_out[EQUAL if scores.isfinite().sum() > 1 else UNSCORED] += 1
                continue
            best, worst = choose(scores)
            margin = float(scores[0, best] - scores[0, worst])
            if margin < config.min_margin:
                left_out[CLOSE] += 1
                continue
            chosen, rejected = (group.candidates[i] for i in (best, worst))
            yield duel(group, chosen, rejected, margin=margin)

    return _said("pairs", write_pairs(config.out, _some(pairs(), config.file, left_out)), left_out)


def _write_groups(config: TopConfig | BoltzmannConfig, choose: Choice) -> Metrics:
    from melior.data.files import read_groups, write_groups

    left_out: Counter[str] = Counter()

    def groups() -> Iterator[Group]:
        for group in read_groups(config.file):
            kept = [i for i in choose(_scores(group)) if i >= 0]
            if kept:
                yield replace(group, candidates=tuple(group.candidates[i] for i in kept))
            else:
                left_out[UNSCORED] += 1

    written = write_groups(config.out, _some(groups(), config.file, left_out))
    return _said("groups", written, left_out)


def _scores(group: Group) -> Any:
    import torch

    scores = [math.nan if one.score is None else one.score for one in group.candidates]
    return torch.tensor([scores or [math.nan]], dtype=torch.float64)


def _row(*columns: Any) -> list[int]:
    return [int(column) for column in columns]


def _some(records: Iterator[R], file: str, left_out: Counter[str]) -> Iterator[R]:
    """Pass records on, and refuse to pass on none."""
    first = next(records, None)
    if first is None:
        raise ValueError(
            f"{file}: choosing needs groups with different scores; found {_reasons(left_out)}; "
            "score them first (melior score), or sample more candidates to each prompt"
        )
    yield first
    yield from records


def _said(what: str, written: int, left_out: Counter[str]) -> Metrics:
    total = left_out.total()
    reasons = f" ({_reasons(left_out)})" if total else ""
    print(f"wrote {written} {what}; left out {total} groups{reasons}", file=sys.stderr)
    return {f"select/{what}": float(written), "select/left_out": float(total)}


def _reasons(left_out: Counter[str]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in left_out.items()) or "no group at all"
