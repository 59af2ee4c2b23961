"""Environments of flows: a grid of many dimensions, and strings built in order or in any order.

An environment of one's own is a class with the same few members (`data.flow.FlowEnvironment`);
`envs.flow_graph.check_environment` says whether its two directions agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from melior.checks import in_range

LARGEST_TABLE = 256
"""Of one-hots that are kept, in rows."""


@dataclass(frozen=True)
class HyperGrid:
    """Cells of a cube: each action goes on by one along an axis, and any cell may be the last.

    Bengio, Jain, Korablyov, Precup, Bengio 2021, arXiv 2106.04399.
    """

    n_axes: int
    height: int
    """Cells along each axis."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("n_axes", self.n_axes, 1)
        in_range("height", self.height, 2)

    @property
    def n_actions(self) -> int:
        """One to an axis."""
        return self.n_axes

    @property
    def longest(self) -> int:
        """From corner to corner, and the stop."""
        return self.n_axes * (self.height - 1) + 1

    @property
    def start(self) -> Int[Tensor, " d"]:
        """The corner of zeros."""
        return torch.zeros(self.n_axes, dtype=torch.long)

    def allowed(self, states: Int[Tensor, "n d"]) -> Bool[Tensor, "n actions"]:
        """On until the wall, and stop anywhere."""
        onward = states < self.height - 1
        return torch.cat([onward, onward.new_ones(len(states), 1)], -1)

    def undoable(self, states: Int[Tensor, "n d"]) -> Bool[Tensor, "n a"]:
        """Back to the other wall."""
        return states > 0

    def step(self, states: Int[Tensor, "n d"], actions: Int[Tensor, " n"]) -> Int[Tensor, "n d"]:
        """Go on by a cell."""
        return states + _one_hot(actions, self.n_axes, states.dtype)

    def undo(self, states: Int[Tensor, "n d"], actions: Int[Tensor, " n"]) -> Int[Tensor, "n d"]:
        """Go back by a cell."""
        return states - _one_hot(actions, self.n_axes, states.dtype)

    def features(self, states: Int[Tensor, "n d"]) -> Float[Tensor, "n f"]:
        """One-hot, axis by axis."""
        return _one_hot(states, self.height).flatten(1)

    def reachable(
        self, states: Int[Tensor, "n d"], outcomes: Int[Tensor, "n d"]
    ) -> Bool[Tensor, " n"]:
        """No axis goes back."""
        return (states <= outcomes).all(-1)


@dataclass(frozen=True)
class Strings:
    """Strings of one length, letter by letter from the left; 0 is a place still empty.

    Every state has one parent, so that nothing is to be learned of the way back. DNA of length 8
    has 4 letters; bits by words of `k` are letters of an alphabet of `2^k` (`rewards.flow`).
    """

    length: int
    n_letters: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("length", self.length, 1)
        in_range("n_letters", self.n_letters, 2)

    @property
    def n_actions(self) -> int:
        """One to a letter."""
        return self.n_letters

    @property
    def longest(self) -> int:
        """All letters and the stop."""
        return self.length + 1

    @property
    def start(self) -> Int[Tensor, " d"]:
        """The empty string."""
        return torch.zeros(self.length, dtype=torch.long)

    def allowed(self, states: Int[Tensor, "n d"]) -> Bool[Tensor, "n actions"]:
        """Any letter until the string is full, and then only the stop."""
        is_full = states[:, -1:] > 0
        return torch.cat([(~is_full).expand(-1, self.n_letters), is_full], -1)

    def undoable(self, states: Int[Tensor, "n d"]) -> Bool[Tensor, "n a"]:
        """The last letter."""
        last = states.gather(-1, (self._filled(states) - 1).clamp(min=0))
        return last == torch.arange(1, self.n_letters + 1, device=states.device)

    def step(self, states: Int[Tensor, "n d"], actions: Int[Tensor, " n"]) -> Int[Tensor, "n d"]:
        """Write a letter."""
        return states.scatter(-1, self._filled(states), actions[:, None] + 1)

    def undo(self, states: Int[Tensor, "n d"], actions: Int[Tensor, " n"]) -> Int[Tensor, "n d"]:
        """Strike the last letter."""
        return states.scatter(-1, self._filled(states) - 1, 0)

    def features(self, states: Int[Tensor, "n d"]) -> Float[Tensor, "n f"]:
        """One-hot, place by place; empty places are zeros."""
        return _one_hot_letters(states, self.n_letters)

    def reachable(
        self, states: Int[Tensor, "n d"], outcomes: Int[Tensor, "n d"]
    ) -> Bool[Tensor, " n"]:
        """What is written is the outcome's beginning."""
        return ((states == outcomes) | (states == 0)).all(-1)

    def _filled(self, states: Tensor) -> Tensor:
        return (states > 0).sum(-1, keepdim=True)


@dataclass(frozen=True)
class Growing(Strings):
    """Strings of up to a length, letter by letter from the left: any but the empty one may stop."""

    def allowed(self, states: Int[Tensor, "n d"]) -> Bool[Tensor, "n actions"]:
        """Any letter until the string is full, and the stop after the first."""
        is_full, is_begun = states[:, -1:] > 0, states[:, :1] > 0
        return torch.cat([(~is_full).expand(-1, self.n_letters), is_begun], -1)


@dataclass(frozen=True)
class Fillings:
    """Strings of one length, whose places are filled in any order; 0 is a place still empty.

    Zhang, Malkin, Liu, Volokhova, Courville, Bengio 2022, arXiv 2202.01361. A state has
    as many parents as letters. Action `place * n_letters + letter` writes a letter at a place.
    """

    length: int
    n_letters: int

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("length", self.length, 1)
        in_range("n_letters", self.n_letters, 2)

    @property
    def n_actions(self) -> int:
        """One to a letter at a place."""
        return self.length * self.n_letters

    @property
    def longest(self) -> int:
        """All places and the stop."""
        return self.length + 1

    @property
    def start(self) -> Int[Tensor, " d"]:
        """All places empty."""
        return torch.zeros(self.length, dtype=torch.long)

    def allowed(self, states: Int[Tensor, "n d"]) -> Bool[Tensor, "n actions"]:
        """Any letter at an empty place, and the stop where there is none."""
        is_empty = states == 0
        is_full = ~is_empty.any(-1, keepdim=True)
        return torch.cat([is_empty.repeat_interleave(self.n_letters, -1), is_full], -1)

    def undoable(self, states: Int[Tensor, "n d"]) -> Bool[Tensor, "n a"]:
        """Any letter that is there."""
        letters = torch.arange(1, self.n_letters + 1, device=states.device)
        return (states[..., None] == letters).flatten(1)

    def step(self, states: Int[Tensor, "n d"], actions: Int[Tensor, " n"]) -> Int[Tensor, "n d"]:
        """Write a letter."""
        letters = (actions % self.n_letters + 1)[:, None]
        return states.scatter(-1, (actions // self.n_letters)[:, None], letters)

    def undo(self, states: Int[Tensor, "n d"], actions: Int[Tensor, " n"]) -> Int[Tensor, "n d"]:
        """Strike a letter."""
        return states.scatter(-1, (actions // self.n_letters)[:, None], 0)

    def features(self, states: Int[Tensor, "n d"]) -> Float[Tensor, "n f"]:
        """One-hot, place by place; empty places are zeros."""
        return _one_hot_letters(states, self.n_letters)

    def reachable(
        self, states: Int[Tensor, "n d"], outcomes: Int[Tensor, "n d"]
    ) -> Bool[Tensor, " n"]:
        """What is written agrees with the outcome."""
        return ((states == outcomes) | (states == 0)).all(-1)


def _one_hot_letters(states: Int[Tensor, "n d"], n_letters: int) -> Float[Tensor, "n f"]:
    return _one_hot(states, n_letters + 1)[..., 1:].flatten(1)


def _one_hot(
    values: Int[Tensor, "*n"], n: int, dtype: torch.dtype | None = None
) -> Shaped[Tensor, "*n k"]:
    dtype = dtype or torch.get_default_dtype()
    if n > LARGEST_TABLE:
        return F.one_hot(values, n).to(dtype)
    return F.embedding(values, _eye(n, dtype, values.device))


@cache
def _eye(n: int, dtype: torch.dtype, device: torch.device) -> Shaped[Tensor, "n n"]:
    """Made once: where a step is of a few states, its calls are what it costs."""
    with torch.inference_mode(False):
        return torch.eye(n, dtype=dtype, device=device)
