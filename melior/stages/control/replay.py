"""Batches of transitions for what learns to act: of the log, or of it and of what is imagined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from melior import ops
from melior.data.control import Transitions
from melior.records import Metrics
from melior.sampling.control import Imagined
from melior.stages.control.learners import Rows
from melior.training.checkpoint import State


@dataclass(frozen=True)
class Floor:
    """What rewards are counted from, so that a rejected step that is a terminal is the worst.

    Nothing follows a terminal, and where rewards are at least 0, as in the tasks of Luo et al.
    2023, arXiv 2310.05422, nothing is worth less. Where they are below 0, nothing would be worth
    more than to go on, and a policy would seek what is rejected. Counted from the log's lowest
    reward (a penalty may still be lower) all values are higher by the same,
    `-reward / (1 - discount)`, so that no other choice changes: what truly ends is paid for the
    steps that do not follow.
    """

    reward: float = 0.0
    """At most 0."""
    discount: float = 0.99

    @classmethod
    def of(cls, logged: Transitions, *, discount: float) -> Floor:
        """Return the floor of a log: its lowest reward, or 0 if that is lower.

        Raises:
            ValueError: rewards are below 0 and what is far counts as much as what is near.
        """
        reward = min(0.0, float(logged.rewards.min()))
        if reward < 0 and discount == 1:
            raise ValueError(
                "discount: below 1 is needed where rewards are below 0 and rejected steps are "
                f"terminals; found 1 and a reward of {reward:.6g}; give --discount 0.99, or "
                "--filter none"
            )
        return cls(reward, discount)

    def counted(
        self, rewards: Float[Tensor, " n"], ends: Bool[Tensor, " n"]
    ) -> Float[Tensor, " n"]:
        """Return rewards over the floor; `ends` are the task's own."""
        if self.reward == 0:
            return rewards
        return rewards - self.reward * torch.where(ends, 1 / (1 - self.discount), 1.0)


NO_FLOOR: Final = Floor()


def logged_rows(logged: Transitions, floor: Floor = NO_FLOOR) -> Rows:
    """Return a log as what is learned from."""
    columns = {name: torch.from_numpy(column) for name, column in vars(logged).items()}
    del columns["timeouts"]  # an episode is over for the log, not for its values
    columns["rewards"] = floor.counted(columns["rewards"], columns["terminals"])
    return Rows(**columns, imagined=torch.zeros(len(logged), dtype=torch.bool))


def imagined_rows(imagined: Imagined, floor: Floor = NO_FLOOR) -> Rows:
    """Return roll-outs as what is learned from."""
    return Rows(
        imagined.observations,
        imagined.actions,
        floor.counted(imagined.rewards, imagined.terminals & ~imagined.rejected),
        imagined.next_observations,
        imagined.terminals,
        torch.ones(len(imagined), dtype=torch.bool),
    )


def joined(parts: Sequence[Rows]) -> Rows:
    """Return rows one part after another."""
    return Rows(**{name: torch.cat([vars(one)[name] for one in parts]) for name in vars(parts[0])})


def chosen(rows: Rows, places: Int[Tensor, " n"] | slice) -> Rows:
    """Return some rows."""
    return Rows(**{name: column[places] for name, column in vars(rows).items()})


class LogBatches:
    """Batches of a log, each drawn evenly with replacement."""

    def __init__(self, log: Rows, *, size: int, total: int, seed: int) -> None:
        self._log, self._size, self._total = log, size, total
        self._generator = ops.generator(ops.stream(seed, "batches"))
        self._steps = 0

    def __call__(self) -> Iterator[Sequence[Rows]]:
        """Yield the batches that are still to come."""
        while self._steps < self._total:
            self._steps += 1
            yield [drawn(self._log, self._size, self._generator)]

    def state(self) -> State:
        """Return all that what comes next depends on."""
        return {"steps": self._steps, "generator": self._generator.get_state()}

    def load_state(self, state: State) -> None:
        """Go back to a state."""
        self._steps = int(state["steps"])
        self._generator.set_state(_tensor(state["generator"]))


@dataclass(frozen=True)
class Mixture:
    """How batches are mixed of rows that are logged and rows that are imagined."""

    size: int
    n_real: int
    """Rows of a batch that are logged."""
    every: int
    """Steps from one imagination to the next."""
    keep: int
    """Imaginations whose rows are drawn from."""


class MixedBatches:
    """Batches of a log, and of what a policy as it then was has lived in a learned world."""

    def __init__(
        self,
        logged: Transitions,
        imagine: Callable[[], Imagined],
        mixture: Mixture,
        *,
        describe: Callable[[Imagined], Metrics],
        total: int,
        seed: int,
        floor: Floor = NO_FLOOR,
    ) -> None:
        """Hold what batches are made of.

        Args:
            logged: real rows.
            imagine: lives through roll-outs; called before the first step and then every so many.
            mixture: how many of each.
            describe: says what became of roll-outs.
            total: steps in all.
            seed: of the rows that are drawn.
            floor: what the rewards of both are counted from.
        """
        self._log, self._floor = logged_rows(logged, floor), floor
        self._imagine, self._mixture, self._total = imagine, mixture, total
        self._generator = ops.generator(ops.stream(seed, "batches"))
        self._steps = 0
        self._blocks: list[Rows] = []
        self._imagined = chosen(self._log, slice(0, 0))
        self._describe = describe
        self.metrics: Metrics = {}
        """What became of the newest roll-outs."""

    def __call__(self) -> Iterator[Sequence[Rows]]:
        """Yield the batches that are still to come."""
        while self._steps < self._total:
            if self._steps % self._mixture.every == 0:
                found = self._imagine()
                self.metrics = self._describe(found)
                newest = imagined_rows(found, self._floor)
                self._blocks = [*self._blocks, newest][-self._mixture.keep :]
                self._imagined = joined(self._blocks)
            self._steps += 1
            yield [self._batch()]

    def state(self) -> State:
        """Return all that what comes next depends on."""
        state: State = {"steps": self._steps, "generator": self._generator.get_state()}
        state["lengths"] = torch.tensor([len(block.rewards) for block in self._blocks])
        state |= {f"metric/{name}": value for name, value in self.metrics.items()}
        return state | {f"imagined/{name}": own for name, own in vars(self._imagined).items()}

    def load_state(self, state: State) -> None:
        """Go back to a state."""
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        self._steps = int(state["steps"])
        self._generator.set_state(tensors["generator"])
        self.metrics = {
            name.removeprefix("metric/"): float(value)
            for name, value in state.items()
            if name.startswith("metric/")
        }
        columns = {name: tensors[f"imagined/{name}"].clone() for name in vars(self._imagined)}
        self._imagined = Rows(**columns)
        ends = [0, *tensors["lengths"].cumsum(0).tolist()]
        cuts = pairwise(ends)
        self._blocks = [chosen(self._imagined, slice(a, b)) for a, b in cuts]

    def _batch(self) -> Rows:
        """Draw a batch; where nothing could be imagined all of it is logged."""
        size, n_real = self._mixture.size, self._mixture.n_real
        if n_real >= size or not len(self._imagined.rewards):
            return drawn(self._log, size, self._generator)
        imagined = drawn(self._imagined, size - n_real, self._generator)
        if not n_real:
            return imagined
        return joined([drawn(self._log, n_real, self._generator), imagined])


def drawn(rows: Rows, count: int, generator: torch.Generator) -> Rows:
    """Return so many rows, each as likely as any."""
    return chosen(rows, torch.randint(len(rows.rewards), (count,), generator=generator))


def _tensor(value: Tensor | float | str) -> Tensor:
    assert isinstance(value, Tensor)
    return value
