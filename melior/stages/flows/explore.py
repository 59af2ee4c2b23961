"""Who goes ahead: explorers, whose trajectories become goals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from melior.data.flow import FlowEnvironment, Trajectories
from melior.losses.flow import squared
from melior.losses.flow_outcomes import augmented_trajectory_balance
from melior.models.flow import FlowModel, along, policy_of, unconditioned
from melior.models.flow_outcomes import Novelty
from melior.options import OptimConfig
from melior.records import Metrics
from melior.sampling.flow import evenly, sample, sample_back
from melior.training.checkpoint import State
from melior.training.loop import Step, descend

Explorer = Callable[[int], Trajectories]
"""Builds so many objects, in whatever way."""


def wanderer(env: FlowEnvironment, *, generator: torch.Generator) -> Explorer:
    """Return the explorer that takes any allowed action: what is far from the start is rare."""
    return lambda n: sample(env, evenly(env.allowed), n, generator=generator)


def backtracker(
    env: FlowEnvironment, objects: Int[Tensor, "m d"], *, generator: torch.Generator
) -> Explorer:
    """Return the explorer that takes objects of a list apart: all of them come equally often."""

    def explore(n: int) -> Trajectories:
        rows = torch.randint(len(objects), (n,), generator=generator, device=generator.device)
        return sample_back(env, objects[rows], evenly(env.undoable), generator=generator)

    return explore


@dataclass
class Curious:
    """The explorer that learns to build what is new: a generative augmented flow network.

    Pan, Zhang, Courville, Huang, Bengio 2023; no reward but novelty. Each call is a step.
    """

    env: FlowEnvironment
    model: FlowModel
    novelty: Novelty
    generator: torch.Generator
    step: Step[Trajectories]
    metrics: Metrics = field(default_factory=dict)
    """Of the last step."""

    def __call__(self, n: int) -> Trajectories:
        """Build objects, and learn from them."""
        policy = policy_of(self.model, self.env)
        found = sample(self.env, policy, n, generator=self.generator)
        self.metrics = self.step([found])
        return found


def curious(
    env: FlowEnvironment,
    model: FlowModel,
    novelty: Novelty,
    *,
    optim: OptimConfig,
    total_steps: int,
    generator: torch.Generator,
) -> Curious:
    """Return an explorer that learns."""
    step = descend(
        lambda found: _novelty_loss(env, model, novelty, found),
        _named(model, novelty),
        optim,
        total_steps=total_steps,
    )
    return Curious(env, model, novelty, generator, step)


@dataclass
class Remembered:
    """An explorer, and what it has built: the outcomes whose flows are learned."""

    explore: Explorer
    width: int
    """Numbers of an object."""
    seen: set[tuple[int, ...]] = field(default_factory=set)

    def __call__(self, n: int) -> Trajectories:
        """Explore, and remember."""
        found = self.explore(n)
        self.seen.update(tuple(row) for row in found.objects.tolist())
        return found

    @property
    def outcomes(self) -> Int[Tensor, "y d"]:
        """Return what was built, in order."""
        rows = torch.tensor(sorted(self.seen), dtype=torch.long)
        return rows.view(len(self.seen), self.width)

    def state(self) -> State:
        """Return what was built."""
        return {"seen": self.outcomes}

    def load_state(self, state: State) -> None:
        """Go back to what had been built."""
        seen = state["seen"]
        assert isinstance(seen, Tensor)
        self.seen = {tuple(row) for row in seen.tolist()}


def _novelty_loss(
    env: FlowEnvironment, model: FlowModel, novelty: Novelty, found: Trajectories
) -> tuple[Float[Tensor, ""], Metrics]:
    nothing = torch.full((len(found.actions),), -torch.inf, device=found.actions.device)
    paths, log_flow = along(unconditioned(model, env), found, nothing)
    features = env.features(found.states[found.is_step])
    log_novelty = torch.zeros_like(log_flow).masked_scatter(
        found.is_step, novelty.log_novelty(features)
    )
    log_z = model.log_z.expand(len(log_flow))
    balance = squared(augmented_trajectory_balance(paths, log_z, log_flow, log_novelty)).mean()
    surprise = novelty.error(features).mean()
    loss = balance + surprise
    return loss, {"loss": loss.item(), "surprise": surprise.item()}


def _named(model: nn.Module, novelty: nn.Module) -> Mapping[str, nn.Parameter]:
    parts: Sequence[tuple[str, nn.Module]] = (("flows", model), ("novelty", novelty))
    return {f"{name}.{key}": p for name, part in parts for key, p in part.named_parameters()}
