"""The modes of a reward, and what was built when: known modes, or what is near the best built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior.data.flow import Graph
from melior.evaluation.flow import modes_found
from melior.records import Metrics
from melior.rewards.flow import LogReward, Modes
from melior.stages.flows.named import load_modes
from melior.stages.flows.options import FlowOptions, RewardOptions
from melior.training.checkpoint import State

POINTS = 100
"""Of a curve, at most."""


def modes_of(
    reward: RewardOptions, flow: FlowOptions, graph: Graph | None, log_reward: LogReward
) -> Modes | None:
    """Return the modes that the reward knows, or those of all objects where they are listed.

    There they are the objects worth at least a share of the best. None where neither is so.
    """
    known = load_modes(reward, flow)
    if known or graph is None:
        return known
    objects = graph.states[graph.can_stop]
    best = near_best(objects, log_reward(objects), reward.mode_share)
    return Modes(len(best), partial(modes_found, modes=best))


def near_best(
    objects: Int[Tensor, "n d"], log_reward: Float[Tensor, " n"], share: float
) -> Int[Tensor, "m d"]:
    """Return the objects that are worth at least a share of the best one.

    Compared in logs: a reward is known up to a factor, which may be beyond what `exp` can hold.
    """
    return objects[log_reward >= log_reward.max() + math.log(share)]


@dataclass
class Finds:
    """What has been built since the run began, each thing with the look at which it came first.

    Things are modes where these are known; else objects worth at least a share of the best built
    so far. What falls below that as a better one is built can never count again, and is forgotten.
    """

    modes: Modes | None
    log_reward: LogReward
    share: float
    looks: int = 0
    best: float = -math.inf
    """Log-reward of the best built so far; of modes 0."""
    first: dict[tuple[int, ...], tuple[int, float]] = field(default_factory=dict)
    """Of each thing, the look and its log-reward."""

    def __call__(self, objects: Int[Tensor, "n d"], looks: int) -> Metrics:
        """Take in what was built at so many more looks at the reward, and count."""
        self.looks += looks
        things, worth = self._things(objects)
        best = max([self.best, *worth.tolist()])
        for thing, own in zip(things.tolist(), worth.tolist(), strict=True):
            self.first.setdefault(tuple(thing), (self.looks, own))
        if best > self.best or not self.modes:
            self.best, bar = best, best + math.log(self.share)
            self.first = {k: v for k, v in self.first.items() if v[1] >= bar}
        return {"modes" if self.modes else "near_best": float(len(self.first))}

    def state(self) -> State:
        """Return all that was kept."""
        looks, worth = zip(*self.first.values(), strict=True) if self.first else ((), ())
        things = torch.tensor(list(self.first), dtype=torch.long)
        return {
            "things": things.view(len(self.first), -1) if self.first else things,
            "first": torch.tensor(looks, dtype=torch.long),
            "worth": torch.tensor(worth, dtype=torch.float64),
            "looks": self.looks,
            "best": self.best,
        }

    def load_state(self, state: State) -> None:
        """Go back to what had been built."""
        things, first, worth = (_rows(state[name]) for name in ("things", "first", "worth"))
        both = zip(first, worth, strict=True)
        self.first = dict(zip(map(tuple, things), both, strict=True))
        self.looks, self.best = int(state["looks"]), float(state["best"])

    def curve(self, best: float) -> list[tuple[int, float]]:
        """Return how many things were built by which look, held against the best of all ways."""
        bar = best + math.log(self.share)
        looks = torch.tensor([at for at, worth in self.first.values() if worth >= bar])
        every = range(1, POINTS + 1)
        ends = sorted({-(-self.looks * point // POINTS) for point in every} if self.looks else ())
        return [(end, float((looks <= end).sum())) for end in ends]

    def _things(self, objects: Tensor) -> tuple[Tensor, Tensor]:
        if self.modes is None:
            distinct = objects.unique(dim=0)
            return distinct, self.log_reward(distinct).double()
        found = self.modes.among(objects).nonzero()
        return found, torch.zeros(len(found), dtype=torch.float64)


def built_over_looks(finds: Mapping[str, Finds], *, over: str) -> dict[str, Any]:
    """Return a picture of what each way to sample built, by then."""
    best = max(own.best for own in finds.values())
    some = next(iter(finds.values()))
    title = (
        f"Modes built, of {some.modes.count}"
        if some.modes
        else f"Distinct objects built, worth at least {some.share:g} of the best of all ways"
    )
    lines = {name: [list(point) for point in own.curve(best)] for name, own in finds.items()}
    return {"kind": "lines", "title": title, "over": over, "lines": lines}


def known_modes(modes: Modes | None) -> dict[str, int]:
    """Return a fact for the page, if there is one."""
    return {"modes": modes.count} if modes else {}


def _rows(found: object) -> list[Any]:
    assert isinstance(found, Tensor)
    rows: list[Any] = found.tolist()
    return rows
