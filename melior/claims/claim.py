"""What a claim is, and what became of it: arms, rules with thresholds, and verdicts over seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped

from melior.evaluation.compare import Interval, t_interval

Array = Shaped[np.ndarray, " n"]
Measured = Mapping[str, Mapping[str, Shaped[np.ndarray, "n ..."]]]
"""Arm, then quantity, then one number per seed; of a `Cloud`'s arms a row of numbers."""


@dataclass(frozen=True)
class Bound:
    """A threshold that was set before the seeds were drawn."""

    words: str
    low: float = -math.inf
    high: float = math.inf
    is_open: bool = False
    """The bound itself does not count."""

    def holds(self, values: Array) -> Shaped[np.ndarray, " n"]:
        """Say of each value whether it keeps to the bound."""
        if self.is_open:
            return (values > self.low) & (values < self.high)
        return (values >= self.low) & (values <= self.high)


def at_least(value: float) -> Bound:
    """Return the bound that a value must reach."""
    return Bound(f"at least {value:g}", low=value)


def at_most(value: float) -> Bound:
    """Return the bound that a value must not pass."""
    return Bound(f"at most {value:g}", high=value)


def within(value: float) -> Bound:
    """Return the bound on how far from 0 a value may lie, to either side."""
    return Bound(f"within {value:g} of 0", low=-value, high=value)


def above(value: float) -> Bound:
    """Return the bound that a value must exceed."""
    return Bound(f"above {value:g}", low=value, is_open=True)


@dataclass(frozen=True)
class Rule:
    """One sentence that can be wrong, the number it speaks of, and the threshold."""

    sentence: str
    measure: Callable[[Measured], Array]
    """From everything that was measured to one number per seed."""
    bound: Bound
    in_every_seed: bool = False
    """Else the mean over seeds must keep to the bound."""


@dataclass(frozen=True)
class Aside:
    """A number that is reported beside the rules and has no threshold."""

    sentence: str
    measure: Callable[[Measured], Array]


@dataclass(frozen=True)
class Finding:
    """What became of a rule."""

    rule: Rule
    values: tuple[float, ...]
    """One per seed."""
    interval: Interval
    """Of the mean over seeds (Student)."""
    n_kept: int
    """In how many seeds the bound holds."""
    holds: bool


@dataclass(frozen=True)
class Table:
    """Arms as rows and quantities as columns of the page."""

    title: str
    arms: tuple[str, ...]
    quantities: tuple[str, ...]
    note: str = ""


@dataclass(frozen=True)
class Dots:
    """A picture of one quantity: a row for each arm, its seeds as points, its mean as a bar."""

    name: str
    title: str
    arms: tuple[str, ...]
    quantity: str
    level: str = ""
    """The arm whose mean is drawn as a line through all rows, if any."""
    against: str = ""
    """The arm that is subtracted seed by seed, if any: worlds differ more than arms."""


@dataclass(frozen=True)
class Scatter:
    """A picture of one quantity against another: means over seeds, joined along each series."""

    name: str
    title: str
    series: Mapping[str, tuple[str, ...]]
    """Name, then arms in the order in which they are joined."""
    x: str
    y: str


@dataclass(frozen=True)
class Cloud:
    """A picture of what was found over what is so; both agree on the dotted line."""

    name: str
    title: str
    arm: str
    """Whose quantities hold a row of numbers for each seed: a point each."""
    x: str
    """What is so."""
    y: str


Picture = Dots | Scatter | Cloud


@dataclass(frozen=True)
class Claim:
    """A paper's central claim, and the small world in which it can fail."""

    name: str
    title: str
    paper: str
    claimed: str
    """What the paper says, as a direction."""
    world: str
    """The world, the arms and what is measured, in Markdown."""
    limits: str
    """How the thresholds came about and what the world cannot say, in Markdown."""
    measure: Callable[[Sequence[int], int], Measured]
    """From seeds and training steps to what all arms reach."""
    steps: int
    rules: tuple[Rule, ...]
    asides: tuple[Aside, ...]
    tables: tuple[Table, ...]
    pictures: tuple[Picture, ...]


@dataclass(frozen=True)
class Outcome:
    """A claim, tried on seeds."""

    claim: Claim
    seeds: tuple[int, ...]
    measured: Measured
    findings: tuple[Finding, ...]

    @property
    def holds(self) -> bool:
        """Say whether every rule held."""
        return all(finding.holds for finding in self.findings)

    @property
    def verdict(self) -> str:
        """Return the verdict in a sentence."""
        kept = sum(finding.holds for finding in self.findings)
        said = "holds in this small world" if self.holds else "does not hold in this small world"
        return f"The claim {said}: {kept} of {len(self.findings)} rules are kept."


def reproduce(claim: Claim, seeds: Sequence[int], *, steps: int | None = None) -> Outcome:
    """Measure all arms on the seeds and judge every rule."""
    measured = claim.measure(seeds, claim.steps if steps is None else steps)
    findings = tuple(judge(rule, measured) for rule in claim.rules)
    return Outcome(claim, tuple(seeds), measured, findings)


def judge(rule: Rule, measured: Measured) -> Finding:
    """Hold what was measured against one rule."""
    values = np.asarray(rule.measure(measured), dtype=np.float64)
    interval = t_interval(values, name=rule.sentence)
    kept = rule.bound.holds(values)
    mean_keeps = bool(rule.bound.holds(np.array([interval.estimate]))[0])
    holds = bool(kept.all()) if rule.in_every_seed else mean_keeps
    return Finding(rule, tuple(map(float, values)), interval, int(kept.sum()), holds)


def best_of(arms: Iterable[str], quantity: str) -> Callable[[Measured], Array]:
    """Return the measure: a quantity of the arm whose mean over seeds is highest.

    The choice sees the seeds that it is reported on, for every rival alike.
    """
    names = tuple(arms)

    def measure(measured: Measured) -> Array:
        return max((measured[name][quantity] for name in names), key=np.mean)

    return measure


def minus(
    left: Callable[[Measured], Array], right: Callable[[Measured], Array]
) -> Callable[[Measured], Array]:
    """Return the measure: one less another, seed by seed."""
    return lambda measured: left(measured) - right(measured)


def difference(left: str, right: str, quantity: str) -> Callable[[Measured], Array]:
    """Return the measure: one arm's quantity less another's, seed by seed."""
    return lambda measured: measured[left][quantity] - measured[right][quantity]
