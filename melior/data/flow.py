"""What travels in the world of flows: environments, trajectories, and graphs of all states.

An object is built step by step from `start`; the stop is an action of its own, the last one, and
leads out of the graph. Undoing an action bears the same number as the action. Axes: `n`
trajectories, `t` steps, `d` numbers of a state, `a` actions without the stop, `s` states of a
graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

NO_ACTION = -1
"""Stands where a trajectory is over, or where an action leads nowhere."""


@runtime_checkable
class FlowEnvironment(Protocol):
    """A graph without circles, in which objects are built; every path leads to a stop."""

    @property
    def n_actions(self) -> int:
        """How many ways there are to go on; the stop is one more, with this number."""

    @property
    def longest(self) -> int:
        """How many actions the longest trajectory has, the stop among them."""

    @property
    def start(self) -> Int[Tensor, " d"]:
        """Where every trajectory begins."""

    def allowed(self, states: Int[Tensor, "n d"]) -> Bool[Tensor, "n actions"]:
        """Say which actions may be taken; the last one is the stop."""

    def undoable(self, states: Int[Tensor, "n d"]) -> Bool[Tensor, "n a"]:
        """Say which actions may have led here."""

    def step(self, states: Int[Tensor, "n d"], actions: Int[Tensor, " n"]) -> Int[Tensor, "n d"]:
        """Go on by actions that are allowed and none the stop."""

    def undo(self, states: Int[Tensor, "n d"], actions: Int[Tensor, " n"]) -> Int[Tensor, "n d"]:
        """Go back by actions that are undoable."""

    def features(self, states: Int[Tensor, "n d"]) -> Float[Tensor, "n f"]:
        """Turn states into what a network reads."""


@runtime_checkable
class KnowsReach(Protocol):
    """An environment that can say without a search what may still be built."""

    def reachable(
        self, states: Int[Tensor, "n d"], outcomes: Int[Tensor, "n d"]
    ) -> Bool[Tensor, " n"]:
        """Say whether a path leads from each state to its outcome."""


@dataclass(frozen=True)
class Trajectories:
    """Ways in which objects were built; each has at least the stop.

    What a model says of them is computed when it is needed, never kept: a sampler that explores, or
    a model that has learned since, would have said something else.
    """

    states: Int[Tensor, "n t d"]
    """Where each step begins; after the end the last state again."""
    actions: Int[Tensor, "n t"]
    """The last of each is the stop; `NO_ACTION` after it."""

    @property
    def is_step(self) -> Bool[Tensor, "n t"]:
        """Say where there is an action."""
        return self.actions != NO_ACTION

    @property
    def lengths(self) -> Int[Tensor, " n"]:
        """Count the actions, the stop among them."""
        return self.is_step.sum(-1)

    @property
    def objects(self) -> Int[Tensor, "n d"]:
        """Return what was built."""
        return self.states[:, -1]


def joined(parts: Sequence[Trajectories]) -> Trajectories:
    """Put trajectories one after another, the shorter ones padded."""
    longest = max(part.actions.shape[1] for part in parts)
    padded = [_padded(part, longest) for part in parts]
    return Trajectories(
        torch.cat([part.states for part in padded]), torch.cat([part.actions for part in padded])
    )


def _padded(part: Trajectories, longest: int) -> Trajectories:
    n, t, _ = part.states.shape
    more = part.states[:, -1:].expand(-1, longest - t, -1)
    none = part.actions.new_full((n, longest - t), NO_ACTION)
    return Trajectories(torch.cat([part.states, more], 1), torch.cat([part.actions, none], 1))


@dataclass(frozen=True)
class Graph:
    """All states of a small environment, every parent before its children."""

    states: Int[Tensor, "s d"]
    children: Int[Tensor, "s a"]
    """The row of the state to which each action leads; `NO_ACTION` where it is not allowed."""
    can_stop: Bool[Tensor, " s"]
    levels: tuple[int, ...]
    """Where each level begins, and the number of states; edges lead to later levels."""

    @property
    def rows_by_level(self) -> list[slice]:
        """Return the rows of each level, the start's first."""
        return [slice(a, b) for a, b in zip(self.levels, self.levels[1:], strict=False)]


def rows_of(table: Int[Tensor, "s d"], states: Int[Tensor, "n d"]) -> Int[Tensor, " n"]:
    """Return which row of a table of distinct states each state is; -1 where it is none."""
    unique, place = torch.cat([table, states]).unique(dim=0, return_inverse=True)
    row_of = place.new_full((len(unique),), -1)
    row_of[place[: len(table)]] = torch.arange(len(table), device=table.device)
    return row_of[place[len(table) :]]
