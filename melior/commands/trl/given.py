"""What a config of TRL names, and what it comes to in our words."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

from melior.checks import one_of
from melior.records import Facts

TRAINERS = ("dpo", "cpo", "orpo", "kto")


@dataclass
class Translation:
    """A command of ours and its options, and all that could not be said in them."""

    command: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    refused: list[str] = field(default_factory=list)
    """`key: value: reason; the way out`."""
    differences: dict[str, str] = field(default_factory=dict)
    """By code: what our training does otherwise, however the options are set."""
    remarks: list[str] = field(default_factory=list)
    """What changes no weight but may surprise."""
    idle: list[str] = field(default_factory=list)
    """Keys on which nothing depends here."""


class Given:
    """The options that a config names, over TRL's defaults; notes which were looked at."""

    def __init__(self, values: Facts, defaults: Facts) -> None:
        self.values = values
        self.defaults = defaults
        self.taken: set[str] = set()

    def take(self, key: str) -> Any:
        """Return an option's value."""
        self.taken.add(key)
        value = self.values.get(key)
        return self.defaults[key] if value is None else value

    def number(self, key: str) -> float:
        """Return a number, which YAML may have taken for text (1e-6)."""
        value = self.take(key)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise ValueError(f"{key}: a number is needed; found {value!r}") from None

    def whole(self, key: str) -> int:
        """Return a whole number."""
        value = self.number(key)
        if value != int(value):
            raise ValueError(f"{key}: a whole number is needed; found {value:g}")
        return int(value)

    def left(self) -> list[str]:
        """Return the options that are named, were not looked at, and are not TRL's default."""
        names = [name for name in self.values if name not in self.taken]
        return [name for name in names if not self.is_default(name)]

    def is_default(self, key: str) -> bool:
        """Say whether an option of TRL's is as it would be, were it not named."""
        return key in self.defaults and self.values[key] in (None, self.defaults[key])


def defaults(trainer: str) -> dict[str, Any]:
    """Return every option of a trainer with its default."""
    one_of("trainer", trainer, TRAINERS)
    text = (files("melior.commands.trl") / "defaults.json").read_text(encoding="utf-8")
    table = json.loads(text)
    return {**table["shared"], **table[trainer]}
