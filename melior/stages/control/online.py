"""Soft actor-critic in a task itself: who acts in the data sets that are collected.

Haarnoja et al. 2018, arXiv 1812.05905, algorithm 1: a step in the task, a step of gradients, over
and over. Here copies of the task are lived side by side, with as many steps of gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from melior import ops
from melior.data.control import Transitions
from melior.envs.control import Lives, by_life
from melior.models.control_policies import Critics, GaussianPolicy, PolicyOptions
from melior.options import in_range
from melior.records import Metrics
from melior.stages.control.learners import ActorCriticOptions, Rows, SoftActorCritic
from melior.stages.control.replay import drawn, logged_rows


@dataclass(frozen=True)
class OnlineOptions:
    """How soft actor-critic learns in a task."""

    steps: int = 10_000
    """In the task, in all copies together; the authors: 1 to 3 million."""
    random_steps: int = 1000
    """Of them, those before anything is learned, with actions drawn evenly."""
    copies: int = 4
    """Of the task, lived side by side."""
    batch_size: int = 256
    hidden: int = 256
    layers: int = 2
    learning_rate: float = 1e-3
    """Of policy, critics and temperature; the authors: 3e-4, over longer runs."""
    discount: float = 0.99

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("copies", "batch_size", "hidden", "layers"):
            in_range(name, getattr(self, name), 1)
        in_range("steps", self.steps, 2 * self.copies)
        in_range("random_steps", self.random_steps, self.copies, self.steps, below=True)
        in_range("learning_rate", self.learning_rate, 0, above=True)
        in_range("discount", self.discount, 0, 1)


class Online:
    """Who learns while it lives; observations are scaled by those of the first, random steps."""

    def __init__(self, world: Lives, shape: PolicyOptions, options: OnlineOptions, *, seed: int):
        self.policy = GaussianPolicy(shape, seed=seed)
        critics, rate = Critics(shape, seed=seed + 1), options.learning_rate
        self._learner = SoftActorCritic(
            self.policy, critics,
            ActorCriticOptions(options.discount, actor_rate=rate, critic_rate=rate,
                               temperature_rate=rate, actor_schedule="constant"),
            total_steps=options.steps, seed=seed,
        )  # fmt: skip
        self._scales = (self.policy.scale, critics.scale, self._learner.targets.scale)
        self._world, self._options = world, options
        self._generator = ops.generator(seed)
        self._parts: list[Transitions] = []
        self._memory: list[Rows] = []

    def __call__(self, batch: Sequence[Rows]) -> Metrics:
        """Learn from a batch."""
        return self._learner(batch)

    def lived(self) -> Transitions:
        """Return all steps so far, one copy's after another's."""
        return by_life(self._parts, len(self._parts) * self._options.copies)

    def batches(self) -> Iterator[Sequence[Rows]]:
        """Act, and yield a batch for each step in the task once the random ones are over."""
        options = self._options
        n_random = -(-options.random_steps // options.copies)
        self._parts = [self._world.step(self._evenly) for _ in range(n_random)]
        first = logged_rows(self.lived())
        for scale in self._scales:
            scale.standardise(first.observations)
        memory = _Memory(first, options.steps + options.copies)
        while len(self._parts) * options.copies < options.steps:
            self._parts.append(self._world.step(self._draw))
            memory.add(logged_rows(self._parts[-1]))
            for _ in range(options.copies):
                yield [drawn(memory.rows, options.batch_size, self._generator)]

    def _evenly(self, observations: Float[Tensor, "n d"]) -> Float[Tensor, "n a"]:
        shape = (len(observations), self.policy.options.actions)
        return torch.empty(shape).uniform_(-1, 1, generator=self._generator)

    def _draw(self, observations: Float[Tensor, "n d"]) -> Float[Tensor, "n a"]:
        return self.policy.draw(observations, generator=self._generator)[0]


class _Memory:
    """Rows in tensors that are made once and filled up."""

    def __init__(self, first: Rows, capacity: int) -> None:
        self._all = {
            name: torch.cat([own, own.new_zeros(capacity - len(own), *own.shape[1:])])
            for name, own in vars(first).items()
        }
        self._count = len(first.rewards)

    @property
    def rows(self) -> Rows:
        """Return what is there."""
        return Rows(**{name: own[: self._count] for name, own in self._all.items()})

    def add(self, rows: Rows) -> None:
        """Take rows in."""
        end = self._count + len(rows.rewards)
        for name, own in vars(rows).items():
            self._all[name][self._count : end] = own
        self._count = end
