"""Soft actor-critic in a task itself: who acts in the data sets that are collected.

Haarnoja et al. 2018, arXiv 1812.05905, algorithm 1: a step in the task, a step of gradients, over
and over. Here copies of the task are lived side by side, with as many steps of gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from melior import ops
from melior.checks import in_range
from melior.data.control import Transitions
from melior.envs.control import Lives, by_life
from melior.models.control_policies import Critics, GaussianPolicy, PolicyOptions
from melior.records import Metrics
from melior.stages.control.learners import ActorCriticOptions, Rows, SoftActorCritic
from melior.stages.control.replay import drawn, joined, logged_rows
from melior.training.checkpoint import State, under


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
        in_range("random_steps", self.random_steps, self.copies, self.steps - self.copies)
        in_range("learning_rate", self.learning_rate, 0, above=True)
        in_range("discount", self.discount, 0, 1)


class Online:
    """Who learns while it lives; observations are scaled by those of the first, random steps."""

    def __init__(self, world: Lives, shape: PolicyOptions, options: OnlineOptions, *, seed: int):
        self.policy = GaussianPolicy(shape, seed=seed)
        critics, rate = Critics(shape, seed=seed), options.learning_rate
        self._learner = SoftActorCritic(
            self.policy, critics,
            ActorCriticOptions(options.discount, actor_rate=rate, critic_rate=rate,
                               temperature_rate=rate, actor_schedule="constant"),
            total_steps=options.steps, seed=seed,
        )  # fmt: skip
        self._scales = (self.policy.scale, critics.scale, self._learner.targets.scale)
        self._world, self._options = world, options
        self._generator = ops.generator(ops.stream(seed, "online"))
        self._parts: list[Transitions] = []
        self._learned = 0

    def __call__(self, batch: Sequence[Rows]) -> Metrics:
        """Learn from a batch."""
        return self._learner(batch)

    @property
    def steps(self) -> int:
        """Return how many steps have been lived."""
        return len(self._parts) * self._options.copies

    def lived(self) -> Transitions:
        """Return all steps so far, one copy's after another's."""
        return by_life(self._parts, self.steps)

    def batches(self) -> Iterator[Sequence[Rows]]:
        """Act, and yield a batch for each step in the task once the random ones are over."""
        options = self._options
        if not self._parts:
            self._parts = [self._world.step(self._evenly) for _ in range(_n_random(options))]
            self._standardise()
        memory = _Memory([logged_rows(part) for part in self._parts], options.steps)
        while self._learned < n_learned(options):
            if self._learned % options.copies == 0:
                self._parts.append(self._world.step(self._draw))
                memory.add(logged_rows(self._parts[-1]))
            self._learned += 1
            yield [drawn(memory.rows, options.batch_size, self._generator)]

    def state(self) -> State:
        """Return all that what comes next depends on; of the task, what was done in it."""
        state: State = {"learned": self._learned, "generator": self._generator.get_state()}
        state |= {f"learner/{name}": value for name, value in self._learner.state().items()}
        for name in vars(self._parts[0]) if self._parts else ():
            column = np.stack([vars(part)[name] for part in self._parts])
            state[f"lived/{name}"] = torch.from_numpy(column)
        return state

    def load_state(self, state: State) -> None:
        """Go back to a state: the task is brought there by living the same once more."""
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        self._learned = int(state["learned"])
        self._generator.set_state(tensors["generator"])
        self._learner.load_state(under("learner/", state))
        columns = under("lived/", tensors)
        self._parts = [self._again(columns, place) for place in range(len(columns["rewards"]))]
        self._standardise()

    def _again(self, columns: Mapping[str, Tensor], place: int) -> Transitions:
        """Do what was done in a step, in which the same must follow."""
        part = self._world.step(lambda observations: columns["actions"][place])
        for name, column in vars(part).items():
            if not np.array_equal(column, columns[name][place].numpy()):
                raise ValueError(
                    "resume: the task must give the same again for the same actions; found other "
                    f"{name} after {place * self._options.copies} steps; begin anew by --overwrite"
                )
        return part

    def _standardise(self) -> None:
        """Scale observations by those of the first steps."""
        parts = self._parts[: _n_random(self._options)]
        observations = torch.from_numpy(np.concatenate([part.observations for part in parts]))
        for scale in self._scales:
            scale.standardise(observations)

    def _evenly(self, observations: Float[Tensor, "n d"]) -> Float[Tensor, "n a"]:
        shape = (len(observations), self.policy.options.actions)
        return torch.empty(shape).uniform_(-1, 1, generator=self._generator)

    def _draw(self, observations: Float[Tensor, "n d"]) -> Float[Tensor, "n a"]:
        return self.policy.draw(observations, generator=self._generator)[0]


def n_learned(options: OnlineOptions) -> int:
    """Return the number of steps of gradients: one for each in the task but the random ones."""
    return (-(-options.steps // options.copies) - _n_random(options)) * options.copies


def _n_random(options: OnlineOptions) -> int:
    return -(-options.random_steps // options.copies)


class _Memory:
    """Rows in tensors that are made once and filled up."""

    def __init__(self, parts: Sequence[Rows], capacity: int) -> None:
        first = joined(parts)
        self._count = len(first.rewards)
        more = max(0, capacity - self._count) + len(parts[0].rewards)
        self._all = {
            name: torch.cat([own, own.new_zeros(more, *own.shape[1:])])
            for name, own in vars(first).items()
        }

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
