"""A predictor of the sum over outcomes: one reading of a state, where `convert` takes one of each.

Pan, Jain, Madan, Bengio 2024, arXiv 2310.03419. The flows towards outcomes stay as they are; only
the predictor's two networks learn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from melior.data.flow import FlowEnvironment, KnowsReach
from melior.losses.flow import squared
from melior.losses.flow_outcomes import amortised
from melior.models.flow import FlowModel, log_shares, towards
from melior.models.flow_outcomes import Predictor, SaysSums
from melior.records import Metrics
from melior.sampling.flow import Policy, drawn, sample


@dataclass(frozen=True)
class Edges:
    """Steps of trajectories, and for each an outcome that it may serve."""

    states: Int[Tensor, "n d"]
    actions: Int[Tensor, " n"]
    """The stop among them."""
    outcomes: Int[Tensor, " n"]
    """Rows of the list of outcomes."""
    objects: Int[Tensor, "m d"]
    """What the trajectories built."""


def predicted(env: FlowEnvironment, predictor: SaysSums) -> Policy:
    """Return the policy of the predicted sums: `N(s'|s)` over their sum."""

    def policy(states: Tensor, _: Tensor) -> Tensor:
        return log_shares(predictor.log_sum(env.features(states)), env.allowed(states))

    return policy


def edges(
    env: FlowEnvironment,
    predictor: Predictor,
    outcomes: Int[Tensor, "y d"],
    *,
    batch_size: int,
    exploration: float,
    generator: torch.Generator,
) -> Iterator[list[Edges]]:
    """Yield batches without end: trajectories of the predictor, outcomes of its posterior.

    Args:
        env: the environment.
        predictor: as it is when a batch is asked for.
        outcomes: that have a reward.
        batch_size: trajectories.
        exploration: share of actions, and of outcomes, that are drawn evenly.
        generator: of the draws.
    """
    while True:
        found = sample(
            env,
            predicted(env, predictor),
            batch_size,
            generator=generator,
            exploration=exploration,
        )
        states, actions = found.states[found.is_step], found.actions[found.is_step]
        with torch.no_grad():
            own = log_posterior(env, predictor, outcomes, states, actions)
        even = log_shares(torch.zeros_like(own), within_reach(env, outcomes, states, actions))
        mixed = (1 - exploration) * own.exp() + exploration * even.exp()
        served = drawn(mixed.log(), generator=generator)
        yield [Edges(states, actions, served, found.objects)]


def log_posterior(
    env: FlowEnvironment,
    predictor: Predictor,
    outcomes: Int[Tensor, "y d"],
    states: Int[Tensor, "n d"],
    actions: Int[Tensor, " n"],
) -> Float[Tensor, "n y"]:
    """Return `log Q` of all outcomes at each edge, those out of reach having none."""
    said = predictor.log_posterior(env.features(states), actions)
    return log_shares(said, within_reach(env, outcomes, states, actions))


def within_reach(
    env: FlowEnvironment,
    outcomes: Int[Tensor, "y d"],
    states: Int[Tensor, "n d"],
    actions: Int[Tensor, " n"],
) -> Bool[Tensor, "n y"]:
    """Say which outcomes can still be built after each edge; all where that is not known."""
    n, y = len(states), len(outcomes)
    if not isinstance(env, KnowsReach):
        return torch.ones(n, y, dtype=torch.bool, device=states.device)
    goes_on = actions != env.n_actions
    after = states.clone()
    after[goes_on] = env.step(states[goes_on], actions[goes_on])
    each, every = after.repeat_interleave(y, 0), outcomes.repeat(n, 1)
    is_it = (each == every).all(-1).view(n, y)
    return torch.where(goes_on[:, None], env.reachable(each, every).view(n, y), is_it)


def amortise(
    env: FlowEnvironment,
    model: FlowModel,
    predictor: Predictor,
    outcomes: Int[Tensor, "y d"],
    log_reward: Float[Tensor, " y"],
    batch: Edges,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Return the loss of a batch of edges.

    Sums are learned of rewards over the best one's, as a policy is a share of sums: whatever the
    reward's factor, `amortised` then holds down only what is next to nothing.

    Args:
        env: the environment.
        model: conditioned on outcomes; stays as it is.
        predictor: learns.
        outcomes: that have a reward.
        log_reward: of each.
        batch: the edges.
    """
    features, taken = env.features(batch.states), batch.actions[:, None]
    with torch.no_grad():
        read = towards(model, env, outcomes[batch.outcomes])
        flows = read(batch.states, torch.arange(len(batch.states), device=taken.device))
    posterior = log_posterior(env, predictor, outcomes, batch.states, batch.actions)
    residual = amortised(
        predictor.log_sum(features).gather(-1, taken)[:, 0],
        posterior.gather(-1, batch.outcomes[:, None])[:, 0],
        (log_reward - log_reward.max())[batch.outcomes],
        log_flow=flows.log_flow,
        log_forward=flows.log_forward.gather(-1, taken)[:, 0],
    )
    loss = squared(residual).mean()
    return loss, {"loss": loss.item()}
