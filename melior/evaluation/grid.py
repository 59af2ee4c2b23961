"""Which cells an experiment has: factors and a design, and no cell twice. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

Value = str | int
Setting = Mapping[str, Value]
"""One value of each factor; empty where a cell does not read the factor."""
Design = Literal["full", "one_at_a_time"]

ARMS = ("objective", "seed")
"""Factors that are crossed in every design: without them there is nothing to compare."""


@dataclass(frozen=True)
class Grid:
    """Factors with their values; the first value of each is the centre."""

    factors: Mapping[str, Sequence[Value]]
    design: Design = "full"
    """All combinations, or one factor at a time changed from the centre."""

    def settings(self) -> list[dict[str, Value]]:
        """Return every setting of the design, each once."""
        others = [name for name in self.factors if name not in ARMS]
        if self.design == "full":
            walks = [dict(self.factors)]
        else:
            walks = [self._walk(others, moving) for moving in others or [""]]
        return unlike(
            dict(zip(walk, values, strict=True))
            for walk in walks
            for values in product(*walk.values())
        )

    def _walk(self, others: Collection[str], moving: str) -> dict[str, Sequence[Value]]:
        """Hold all factors but one of the others at the centre."""
        return {
            name: values[:1] if name in others and name != moving else values
            for name, values in self.factors.items()
        }


def read_alone(
    settings: Iterable[Setting], reads: Callable[[Setting], Collection[str]]
) -> list[dict[str, Value]]:
    """Blank the factors that a cell does not read, and keep each cell that is left once."""
    return unlike(
        {name: value if name in reads(setting) else "" for name, value in setting.items()}
        for setting in settings
    )


def unlike(settings: Iterable[dict[str, Value]]) -> list[dict[str, Value]]:
    """Keep the first of equal settings."""
    return list({tuple(setting.items()): setting for setting in settings}.values())


def varied(settings: Sequence[Setting]) -> list[str]:
    """Return the factors that have several values among settings, in their order."""
    return [
        name
        for name in settings[0]
        if len({setting[name] for setting in settings if setting[name] != ""}) > 1
    ]
