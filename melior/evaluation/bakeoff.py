"""Where arms of an experiment stand, and which of their differences are real.

An arm is one way to train, repeated over seeds. Each seed left one number for each held-out
example, the same examples for all. Examples are the unit: numbers are averaged over an arm's seeds
first, so that an interval over examples is not narrower for having trained more often. How much
another seed would change is told apart, by Student's interval over the seeds' means.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from melior.data.tables import TableRow
from melior.evaluation.compare import (
    Array,
    Comparison,
    Interval,
    compare,
    holm,
    t_interval,
    vector,
)


@dataclass(frozen=True)
class Quantity:
    """What is measured of each held-out example."""

    title: str
    unit: str
    """As in `Comparison`."""
    higher_is_better: bool | None


QUANTITIES = {
    "score": Quantity("reward model's score", "", True),
    "rules": Quantity("constraints met", "share", True),
    "accuracy": Quantity("ranked right by log-probability", "share", True),
    "reward_accuracy": Quantity("ranked right by its own reward", "share", True),
    "length": Quantity("answer length", "tokens", None),
    "kl": Quantity("KL to the start", "nats", None),
}
DECIDING = ("score", "rules", "accuracy")
"""Quantities that mean the same for every method, so that they may decide between them."""

Numbers = Mapping[str, Sequence[float]]
"""By quantity, one number for each example."""
BySeed = Mapping[int, Numbers]
"""An arm's numbers by the seed that it was trained with."""


@dataclass(frozen=True)
class Standing:
    """One quantity of one arm."""

    quantity: str
    by_seed: tuple[float, ...]
    """The mean over examples of each seed."""
    over_seeds: Interval
    """Student's interval of their mean."""
    error: float | None
    """Standard error of that mean over examples."""
    against_start: Comparison | None
    """None where the start has no such number, as it has no KL to itself."""


@dataclass(frozen=True)
class Duel:
    """Two arms on the deciding quantity; the first is the one with the higher mean."""

    first: str
    second: str
    comparison: Comparison
    """Second before, first after; its p-value is corrected for all duels."""
    over_seeds: Interval
    """Of the difference between the two trained with the same seed."""
    n_agreeing: int
    """Seeds whose difference has the sign of the mean's."""

    @property
    def is_real(self) -> bool:
        """Say whether the difference is shown: over examples, after correction, in every seed."""
        found = self.comparison
        is_apart = found.low is not None and found.low > 0
        return (
            is_apart
            and found.p_value <= 1 - found.confidence
            and self.n_agreeing == self.over_seeds.n
        )


@dataclass(frozen=True)
class Outcome:
    """What came of a bake-off."""

    metric: str
    """The quantity that decides."""
    rows: list[TableRow]
    """One for each cell, tidy."""
    start: Mapping[str, float]
    """Means of the start model."""
    standings: Mapping[str, Mapping[str, Standing]]
    """By arm, then quantity; the arm with the highest mean of the deciding one comes first."""
    duels: list[Duel]
    marginals: Mapping[str, Mapping[str, Interval]]
    """Means of the deciding quantity by factor, then value; only of factors that vary."""
    folders: Mapping[str, Path]
    """A finished run of each arm, to show."""

    @property
    def leaders(self) -> list[str]:
        """The first arm, and those that it is not shown to be ahead of."""
        first = next(iter(self.standings))
        beaten = {duel.second for duel in self.duels if duel.first == first and duel.is_real}
        return [arm for arm in self.standings if arm not in beaten]


def outcome(
    metric: str,
    rows: list[TableRow],
    start: Numbers,
    arms: Mapping[str, BySeed],
    *,
    factors: Sequence[str],
    folders: Mapping[str, Path],
    generator: torch.Generator,
) -> Outcome:
    """Put all arms and all pairs of them beside each other.

    Args:
        metric: the quantity that decides.
        rows: one for each cell.
        start: the start model's numbers.
        arms: those of each arm, by seed.
        factors: those that vary besides objective and seed.
        folders: a run of each arm.
        generator: draws the resamples.
    """
    standings = {
        name: {
            quantity: found
            for quantity in QUANTITIES
            if (found := standing(arm, start, quantity, generator=generator)) is not None
        }
        for name, arm in arms.items()
    }
    order = sorted(standings, key=lambda name: -standings[name][metric].over_seeds.estimate)
    cells = [
        (row, float(row[metric]))
        for row in rows
        if row["stage"] == "run" and row[metric] is not None
    ]
    return Outcome(
        metric, rows, {name: float(np.mean(values)) for name, values in start.items()},
        {name: standings[name] for name in order},
        duels({name: arms[name] for name in order}, metric, generator=generator),
        {factor: marginal_means(cells, factor) for factor in factors},
        folders,
    )  # fmt: skip


def pooled(arm: BySeed, quantity: str, seeds: Sequence[int]) -> Array:
    """Return the mean over seeds of each example's number."""
    rows = [vector(arm[seed][quantity], quantity) for seed in seeds]
    return np.mean(rows, axis=0)


def standing(
    arm: BySeed, start: Numbers, quantity: str, *, generator: torch.Generator
) -> Standing | None:
    """Say where an arm stands; None where it has no such numbers."""
    seeds = [seed for seed, numbers in arm.items() if numbers.get(quantity)]
    if not seeds:
        return None
    values = pooled(arm, quantity, seeds)
    means = [float(np.mean(arm[seed][quantity])) for seed in seeds]
    about, against = QUANTITIES[quantity], None
    if start.get(quantity):
        against = compare(
            start[quantity], values, name=about.title, unit=about.unit,
            higher_is_better=about.higher_is_better, generator=generator,
        )  # fmt: skip
    error = float(values.std(ddof=1)) / len(values) ** 0.5 if len(values) > 1 else None
    return Standing(quantity, tuple(means), t_interval(means), error, against)


def duels(arms: Mapping[str, BySeed], quantity: str, *, generator: torch.Generator) -> list[Duel]:
    """Compare all pairs of arms on one quantity; p-values are Holm-corrected over the pairs.

    Only seeds that both arms have count; a pair without one is left out.
    """
    found = []
    for names in combinations(arms, 2):
        seeds = _common([arms[name] for name in names], quantity)
        if seeds:
            means = {name: float(pooled(arms[name], quantity, seeds).mean()) for name in names}
            first, second = sorted(names, key=lambda name: -means[name])
            found.append(_duel(arms, first, second, quantity, seeds, generator))
    corrected = holm([duel.comparison.p_value for duel in found])
    return [
        replace(duel, comparison=replace(duel.comparison, p_value=p))
        for duel, p in zip(found, corrected, strict=True)
    ]


def marginal_means(
    values: Sequence[tuple[Mapping[str, Any], float]], factor: str
) -> dict[str, Interval]:
    """Return the mean of a quantity at each value of a factor, whatever the others are.

    The interval is Student's over seeds: cells of the same seed are averaged first.

    Args:
        values: each cell's setting, with `seed` among its factors, and its number.
        factor: whose values are told apart; cells that do not read it are left out.
    """
    found: dict[str, dict[str | int, list[float]]] = {}
    for setting, value in values:
        if setting[factor] != "":
            own = found.setdefault(str(setting[factor]), {})
            own.setdefault(setting["seed"], []).append(value)
    return {
        name: t_interval([float(np.mean(cells)) for cells in seeds.values()])
        for name, seeds in found.items()
    }


def _common(arms: Sequence[BySeed], quantity: str) -> list[int]:
    return [seed for seed in arms[0] if all(arm.get(seed, {}).get(quantity) for arm in arms)]


def _duel(
    arms: Mapping[str, BySeed],
    first: str,
    second: str,
    quantity: str,
    seeds: Sequence[int],
    generator: torch.Generator,
) -> Duel:
    about = QUANTITIES[quantity]
    higher, lower = (pooled(arms[name], quantity, seeds) for name in (first, second))
    comparison = compare(lower, higher, name=about.title, unit=about.unit, generator=generator)
    gaps = [
        float(np.mean(arms[first][seed][quantity]) - np.mean(arms[second][seed][quantity]))
        for seed in seeds
    ]
    return Duel(first, second, comparison, t_interval(gaps), sum(gap > 0 for gap in gaps))
