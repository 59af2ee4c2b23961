"""Records that travel between rooms and lie in files: pure Python, no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Metrics = dict[str, float]
"""`stage/name` to a number; written as JSON lines by `training.run`, printed only by `cli`."""

Facts = Mapping[str, Any]
"""Whatever else a file says of a record (subset, id, constraints), kept as it was: a JSON edge."""


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: str
    """`system`, `user`, `assistant` or `tool`."""
    content: str
    extra: Facts = field(default_factory=dict, hash=False)
    """Other fields of the message that a chat template may read: `name`, `tool_calls`, ..."""


Turns = tuple[Turn, ...]


@dataclass(frozen=True)
class Candidate:
    """One response to a prompt, with what was said of it."""

    response: Turns
    score: float | None = None
    """Higher is better; None where nothing has scored it yet."""
    aspects: Facts = field(default_factory=dict, hash=False)
    """Named ratings, such as `helpfulness`."""
    steps: tuple[str, ...] = ()
    """The response cut into steps, where the file does so."""
    facts: Facts = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Group:
    """A prompt and its candidates: the unit that is sampled, scored and chosen from."""

    prompt: Turns
    candidates: tuple[Candidate, ...]
    facts: Facts = field(default_factory=dict, hash=False)
    origin: str = field(default="", compare=False)
    """Where it was read, as `file:line`, for messages."""


@dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse response."""

    prompt: Turns
    chosen: Turns
    rejected: Turns
    margin: float = 0.0
    weight: float = 1.0
    facts: Facts = field(default_factory=dict, hash=False)
    origin: str = field(default="", compare=False)


CUT_OFF = ("is_finished_chosen", "is_finished_rejected")
"""Facts of a pair that are false where its answer was stopped before its end."""


def is_cut_off(facts: Facts, name: str = "is_finished") -> bool:
    """Say whether an answer was stopped before its end; without the fact, or with null, it was not.

    In CSV files false is a word.
    """
    return facts.get(name) in (False, "false", "False")


def text(turns: Turns) -> str:
    """Return what was said, without roles: the contents joined by blank lines."""
    return "\n\n".join(turn.content for turn in turns)
