"""How well flows do: exactly, where everything that can be built is listed, and by samples."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from melior import ops
from melior.data.flow import FlowEnvironment, Graph, KnowsReach
from melior.envs.flow_graph import TooManyStatesError, enumerated
from melior.evaluation.flow import (
    built,
    diversity,
    jensen_shannon,
    mean_absolute_error,
    target,
    top,
    total_variation,
)
from melior.losses.flow_outcomes import calibration
from melior.models.flow import FlowModel, towards
from melior.records import Metrics
from melior.rewards.flow import LogReward, Modes
from melior.sampling.flow import Policy, evenly, sample
from melior.stages.flows.pretrain import attempt

FEW = 20_000
"""States that are listed to judge by, at most."""
TRIES, PAIRS, DRAWN, TOP = 512, 4096, 1000, 100
SPREAD, OUT_OF_REACH = 0.25, -4.0
"""Beyond these a conversion is not to be trusted: see `losses.flow_outcomes.calibration`."""


def listed(env: FlowEnvironment) -> Graph | None:
    """Return all states where there are few; None where there are not.

    Raises:
        ValueError: from the environment itself, or because its paths are longer than it says.
    """
    try:
        return enumerated(env, most=FEW)
    except TooManyStatesError:
        return None


def objects_of(graph: Graph) -> Int[Tensor, "s d"]:
    """Return what can be built."""
    return graph.states[graph.can_stop]


@dataclass(frozen=True)
class Exam:
    """The same outcomes, asked for again and again."""

    env: FlowEnvironment
    wanted: Int[Tensor, "n d"]
    states: Int[Tensor, "m d"]
    """On the way to other outcomes: each is paired with one of those wanted."""
    seed: int

    @classmethod
    def of(cls, env: FlowEnvironment, graph: Graph | None, *, seed: int) -> Exam:
        """Ask for all objects equally often, or for some where there are too many."""
        generator = ops.generator(seed)
        walked = sample(env, evenly(env.allowed), TRIES, generator=generator)
        wanted = walked.objects
        if graph is not None:
            objects = objects_of(graph)
            wanted = objects.repeat(-(-TRIES // len(objects)), 1)
        states = walked.states[walked.is_step]
        rows = torch.randint(len(states), (PAIRS,), generator=generator)
        return cls(env, wanted, states[rows], seed)

    def succeeded(self, model: FlowModel) -> Bool[Tensor, " n"]:
        """Say which outcomes were built when asked for."""
        tried = attempt(self.env, model, self.wanted, generator=ops.generator(self.seed + 1))
        return (tried.objects == self.wanted).all(-1)

    @torch.no_grad()
    def metrics(self, model: FlowModel) -> Metrics:
        """Return success, the spread of total flows, and the flow of what is out of reach."""
        starts = self.env.start.expand(len(self.wanted), -1)
        every = torch.arange(len(self.wanted))
        total = towards(model, self.env, self.wanted)(starts, every).log_flow
        found = {
            "success": float(self.succeeded(model).double().mean()),
            "spread": float(calibration(total)),
        }
        if isinstance(self.env, KnowsReach):
            others = self.wanted[torch.arange(len(self.states)) % len(self.wanted)]
            is_far = ~self.env.reachable(self.states, others)
            if is_far.any():
                read = towards(model, self.env, others[is_far])
                flows = read(self.states[is_far], torch.arange(int(is_far.sum())))
                found["out_of_reach"] = float(flows.log_flow.median())
        return found


@dataclass(frozen=True)
class Truth:
    """All states, and what a reward asks for, exactly."""

    graph: Graph
    wanted: Float[Tensor, " s"]

    @classmethod
    def of(cls, graph: Graph, log_reward: LogReward) -> Truth:
        """Return the truth of a reward.

        Raises:
            ValueError: it is nan or inf somewhere, or nothing is worth building.
        """
        worth = torch.full((len(graph.states),), -torch.inf, dtype=torch.float64)
        worth[graph.can_stop] = log_reward(objects_of(graph)).double()
        return cls(graph, target(graph, worth))

    def built(self, policy: Policy) -> Float[Tensor, " s"]:
        """Return the exact distribution of what a policy builds."""
        states = self.graph.states
        with torch.no_grad():
            return built(self.graph, policy(states, torch.arange(len(states))).double())

    def metrics(self, policy: Policy) -> Metrics:
        """Return how far what a policy builds is from the truth."""
        return self.apart(self.built(policy))

    def apart(self, found: Float[Tensor, " s"]) -> Metrics:
        """Return how far shares of all states are from the truth."""
        return {
            "total_variation": float(total_variation(found, self.wanted)),
            "jensen_shannon": float(jensen_shannon(found, self.wanted)),
            "l1": float(mean_absolute_error(found, self.wanted)),
        }


def of_samples(objects: Int[Tensor, "n d"], log_reward: LogReward, modes: Modes | None) -> Metrics:
    """Return what samples are worth, how they differ, and how many modes they reach, if known.

    The worth is the log of a mean reward, as the reward's factor may be beyond what `exp` can
    hold; where nothing is worth anything it has no log, and is left out.
    """
    reward = log_reward(objects)
    best, worth = top(objects, reward, TOP)
    found = {"log_mean_reward": _log_mean(reward), "log_top_reward": _log_mean(worth)}
    found = {key: own for key, own in found.items() if own > -math.inf}
    found["top_diversity"] = diversity(best)
    return found | ({"modes": float(modes.among(objects).sum())} if modes else {})


def _log_mean(log_reward: Float[Tensor, " n"]) -> float:
    return float(log_reward.double().logsumexp(0)) - math.log(len(log_reward))


def judged_by(
    env: FlowEnvironment,
    policy: Policy,
    log_reward: LogReward,
    modes: Modes | None,
    *,
    truth: Truth | None,
    seed: int,
) -> Metrics:
    """Return what a policy draws, and how far it is from the truth where that is known."""
    drawn = sample(env, policy, DRAWN, generator=ops.generator(seed + 3)).objects
    return of_samples(drawn, log_reward, modes) | (truth.metrics(policy) if truth else {})


def side_by_side(found: Mapping[str, Metrics]) -> dict[str, Any]:
    """Return a table of what each way to sample reaches."""
    columns = list(dict.fromkeys(key for own in found.values() for key in own))
    return {
        "title": "What is drawn",
        "note": f"{DRAWN} objects of each; total variation, jensen shannon and l1 are exact",
        "columns": ["", *(name.replace("_", " ") for name in columns)],
        "rows": [[name, *(own.get(key) for key in columns)] for name, own in found.items()],
    }
