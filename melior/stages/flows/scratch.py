"""A flow network that learns one reward: what a conversion is held against."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from melior.data.flow import FlowEnvironment, Trajectories
from melior.losses.flow import (
    Paths,
    detailed_balance,
    forward_looking,
    mean_of_steps,
    squared,
    sub_trajectory_balance,
    sub_trajectory_weights,
    trajectory_balance,
)
from melior.models.flow import FlowModel, along, policy_of, unconditioned
from melior.records import Metrics
from melior.rewards.flow import LogReward
from melior.sampling.flow import sample

BalanceLoss = Callable[[FlowModel, Paths, Float[Tensor, "n t"]], Float[Tensor, " n"]]
"""From a network and what it says of trajectories to a loss of each."""


def by_trajectories(
    model: FlowModel, paths: Paths, log_flow: Float[Tensor, "n t"]
) -> Float[Tensor, " n"]:
    """Trajectory balance, with a `log Z` of its own."""
    return squared(trajectory_balance(paths, model.log_z.expand(len(log_flow))))


def by_steps(_: FlowModel, paths: Paths, log_flow: Float[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """Detailed balance, averaged over the steps."""
    return mean_of_steps(squared(detailed_balance(paths, log_flow)), paths.is_step)


def by_parts(*, lamda: float = 0.9) -> BalanceLoss:
    """Return sub-trajectory balance, longer parts weighing `lamda` for each step more."""

    def loss(_: FlowModel, paths: Paths, log_flow: Float[Tensor, "n t"]) -> Float[Tensor, " n"]:
        weights = sub_trajectory_weights(paths.is_step, lamda=lamda, dtype=log_flow.dtype)
        return (weights * squared(sub_trajectory_balance(paths, log_flow))).flatten(1).sum(-1)

    return loss


def looking_forward(
    env: FlowEnvironment, model: FlowModel, log_reward: LogReward, batch: Trajectories
) -> tuple[Float[Tensor, ""], Metrics]:
    """Return the loss of forward-looking detailed balance, where every state has a reward.

    Pan, Malkin, Zhang, Bengio 2023, arXiv 2302.01687: the network says only what is still to come.
    """
    worth = log_reward(batch.states[batch.is_step])
    known = worth.new_zeros(batch.actions.shape).masked_scatter(batch.is_step, worth)
    reward = known[batch.actions == env.n_actions]
    paths, still = along(unconditioned(model, env), batch, reward)
    balance = detailed_balance(paths, forward_looking(still, known))
    total = mean_of_steps(squared(balance), paths.is_step).mean()
    return total, {"loss": total.item(), "log_reward": reward.double().mean().item()}


def rollouts(
    env: FlowEnvironment,
    model: FlowModel,
    *,
    batch_size: int,
    exploration: float,
    generator: torch.Generator,
) -> Iterator[list[Trajectories]]:
    """Yield batches without end, each sampled from the network as it is when asked for."""
    policy = policy_of(model, env)
    while True:
        yield [sample(env, policy, batch_size, generator=generator, exploration=exploration)]


def balanced(
    env: FlowEnvironment,
    model: FlowModel,
    log_reward: LogReward,
    batch: Trajectories,
    *,
    loss: BalanceLoss,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Return the loss of a batch of trajectories under a reward."""
    reward = log_reward(batch.objects)
    paths, log_flow = along(unconditioned(model, env), batch, reward)
    total = loss(model, paths, log_flow).mean()
    return total, {"loss": total.item(), "log_reward": reward.double().mean().item()}
