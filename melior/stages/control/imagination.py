"""How a run's policy is rolled out in its learned world: base method and filter put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior import ops
from melior.data.control import Transitions
from melior.envs.control import Reward, Termination, named_function
from melior.losses.control import aleatoric_penalty
from melior.models.control import Prediction
from melior.models.control_policies import GaussianPolicy
from melior.sampling.control import (
    Filter,
    Imagined,
    Penalty,
    best,
    evenly,
    imagine,
    sharply,
)
from melior.stages.control.options import ImagineOptions
from melior.stages.control.world import World

FilterName = Literal["softmax", "best", "none"]


@dataclass(frozen=True)
class Imagination:
    """Rolls a policy out from logged observations, anew at each call."""

    world: World
    policy: GaussianPolicy
    observations: Float[Tensor, "n d"]
    """Of the log: where roll-outs may begin."""
    transition_filter: Filter
    is_over: Termination
    penalty: Penalty
    true_reward: Reward | None
    options: ImagineOptions
    generators: Mapping[str, torch.Generator]

    def __call__(self) -> Imagined:
        """Live through roll-outs."""
        options = self.options
        starts = torch.randint(
            len(self.observations), (options.starts,), generator=self.generators["starts"]
        )
        return imagine(
            self.world.dynamics,
            self.observations[starts],
            lambda seen: self.policy.draw(seen, generator=self.generators["actions"])[0],
            self.transition_filter,
            is_over=self.is_over,
            penalty=self.penalty,
            true_reward=self.true_reward,
            horizon=options.horizon,
            draws=options.draws,
            bound=options.bound,
            on_reject=options.on_reject,
            generator=self.generators["candidates"],
        )


def imagination(
    world: World,
    policy: GaussianPolicy,
    logged: Transitions,
    *,
    transition_filter: FilterName,
    is_over: Termination,
    penalty: float,
    options: ImagineOptions,
    seed: int,
) -> Imagination:
    """Put together how a policy is rolled out; `penalty` weighs how unsure the ensemble is."""
    generators = {
        name: ops.generator(ops.stream(seed, name))
        for name in ("starts", "actions", "candidates", "choices")
    }
    return Imagination(
        world,
        policy,
        torch.from_numpy(logged.observations),
        named_filter(transition_filter, world, options, generators["choices"]),
        is_over,
        _penalty(penalty),
        named_function(options.true_reward, "true_reward") if options.true_reward else None,
        options,
        generators,
    )


def named_filter(
    name: FilterName, world: World, options: ImagineOptions, generator: torch.Generator
) -> Filter:
    """Return how candidates are chosen; `none` takes any and rejects nothing."""
    if name == "none":
        return evenly(generator=generator)
    assert world.reward is not None  # a world for a filter is learned, or read, with its reward
    softly = sharply(temperature=options.temperature, generator=generator)
    return Filter(world.reward, best if name == "best" else softly, options.threshold)


def described(imagined: Imagined, elites: Int[Tensor, " e"]) -> dict[str, float]:
    """Return what became of roll-outs: how long they were, why they ended, and who drew them."""
    n_starts = imagined.n_starts
    shares = (imagined.members[:, None] == elites).float().mean(0) if len(imagined) else elites
    return {
        "imagined/length": len(imagined) / n_starts,
        "imagined/rejected": imagined.n_rejected / n_starts,
        "imagined/reward": float(imagined.rewards.mean()) if len(imagined) else 0.0,
        "imagined/dynamics_reward": float(imagined.scores.mean()) if len(imagined) else 0.0,
        "imagined/largest_elite": float(shares.max()) if len(imagined) else 0.0,
    }


def _penalty(weight: float) -> Penalty:
    def lowered(prediction: Prediction) -> Float[Tensor, " n"]:
        return weight * aleatoric_penalty(prediction.deviations)

    return lowered
