"""Batches of transitions for what learns to act: of the log, or of it and of what is imagined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

from melior import ops
from melior.data.control import Transitions
from melior.records import Metrics
from melior.sampling.control import Imagined
from melior.stages.control.learners import Rows
from melior.training.checkpoint import State


def logged_rows(logged: Transitions) -> Rows:
    """Return a log as what is learned from."""
    columns = {name: torch.from_numpy(column) for name, column in vars(logged).items()}
    del columns["timeouts"]  # an episode is over for the log, not for its values
    return Rows(**columns, imagined=torch.zeros(len(logged), dtype=torch.bool))


def imagined_rows(imagined: Imagined) -> Rows:
    """Return roll-outs as what is learned from."""
    return Rows(
        imagined.observations,
        imagined.actions,
        imagined.rewards,
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
        log: Rows,
        imagine: Callable[[], Imagined],
        mixture: Mixture,
        *,
        describe: Callable[[Imagined], Metrics],
        total: int,
        seed: int,
    ) -> None:
        """Hold what batches are made of.

        Args:
            log: real rows.
            imagine: lives through roll-outs; called before the first step and then every so many.
            mixture: how many of each.
            describe: says what became of roll-outs.
            total: steps in all.
            seed: of the rows that are drawn.
        """
        self._log, self._imagine, self._mixture, self._total = log, imagine, mixture, total
        self._generator = ops.generator(ops.stream(seed, "batches"))
        self._steps = 0
        self._blocks: list[Rows] = []
        self._imagined = chosen(log, slice(0, 0))
        self._describe = describe
        self.metrics: Metrics = {}
        """What became of the newest roll-outs."""

    def __call__(self) -> Iterator[Sequence[Rows]]:
        """Yield the batches that are still to come."""
        while self._steps < self._total:
            if self._steps % self._mixture.every == 0:
                found = self._imagine()
                self.metrics = self._describe(found)
                self._blocks = [*self._blocks, imagined_rows(found)][-self._mixture.keep :]
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
