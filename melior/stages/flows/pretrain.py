"""Learning to build whatever is asked for: contrastive attempts at goals that were reached once.

Pan, Jain, Madan, Bengio 2024, arXiv 2310.03419. An explorer builds `x`; `x` becomes the goal `y` of
its own trajectory, which so succeeds, and of one by the network, which may not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from melior.data.flow import FlowEnvironment, Trajectories, joined
from melior.losses.flow import Paths, squared, sum_of_steps
from melior.losses.flow_outcomes import FAILURE, converted, log_success
from melior.models.flow import FlowModel, along, policy_of, towards
from melior.records import Metrics
from melior.sampling.flow import sample
from melior.stages.flows.explore import Explorer

Balance = Callable[[Paths, Float[Tensor, "n t"]], Float[Tensor, "n t"]]
"""`detailed_balance` or `teleported_balance`."""


@dataclass(frozen=True)
class Attempts:
    """Trajectories and what each was to build."""

    trajectories: Trajectories
    outcomes: Int[Tensor, "n d"]

    @property
    def succeeded(self) -> Bool[Tensor, " n"]:
        """Say which built what was asked for."""
        return (self.trajectories.objects == self.outcomes).all(-1)


def attempts(
    env: FlowEnvironment,
    model: FlowModel,
    explorer: Explorer,
    *,
    batch_size: int,
    exploration: float,
    generator: torch.Generator,
) -> Iterator[list[Attempts]]:
    """Yield batches without end: as many trajectories of the explorer as of the network.

    Each is sampled when it is asked for, from the network as it then is.
    """
    while True:
        found = explorer(batch_size)
        tried = attempt(env, model, found.objects, exploration=exploration, generator=generator)
        yield [Attempts(joined([found, tried]), found.objects.repeat(2, 1))]


def attempt(
    env: FlowEnvironment,
    model: FlowModel,
    outcomes: Int[Tensor, "n d"],
    *,
    generator: torch.Generator,
    exploration: float = 0.0,
) -> Trajectories:
    """Try to build each of the outcomes."""
    return sample(
        env,
        policy_of(model, env, outcomes),
        len(outcomes),
        generator=generator,
        exploration=exploration,
    )


def contrast(
    env: FlowEnvironment,
    model: FlowModel,
    balance: Balance,
    batch: Attempts,
    *,
    epsilon: float = FAILURE,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Return the loss of a batch of attempts: the sum over edges, as in the paper.

    Args:
        env: the environment.
        model: conditioned on outcomes.
        balance: of each step.
        batch: the explorer's trajectories in its first half.
        epsilon: the reward of a failure.
    """
    succeeded = batch.succeeded
    reward = log_success(succeeded, epsilon=epsilon)
    paths, log_flow = along(towards(model, env, batch.outcomes), batch.trajectories, reward)
    loss = sum_of_steps(squared(balance(paths, log_flow)), paths.is_step).mean()
    half = len(succeeded) // 2
    success = succeeded[half:].double().mean()
    return loss, {"loss": loss.item(), "success": success.item()}


@torch.no_grad()
def outcome_tables(
    env: FlowEnvironment,
    model: FlowModel,
    states: Int[Tensor, "s d"],
    outcomes: Int[Tensor, "y d"],
    *,
    chunk: int = 256,
) -> tuple[Float[Tensor, "s y"], Float[Tensor, "s y actions"]]:
    """Return log-flows and policies of all states under all outcomes, as `converted` takes them.

    Args:
        env: the environment.
        model: conditioned on outcomes.
        states: at which a policy is wanted.
        outcomes: that have a reward.
        chunk: states read at a time.
    """
    wanted = env.features(outcomes)[None]
    tables = [
        model(
            env.features(part)[:, None],
            wanted,
            allowed=env.allowed(part)[:, None],
            undoable=env.undoable(part)[:, None],
        )
        for part in states.split(chunk)
    ]
    return (
        torch.cat([part.log_flow for part in tables]),
        torch.cat([part.log_forward for part in tables]),
    )


def convert(
    env: FlowEnvironment,
    model: FlowModel,
    states: Int[Tensor, "s d"],
    outcomes: Int[Tensor, "y d"],
    log_reward: Float[Tensor, " y"],
) -> Float[Tensor, "s actions"]:
    """Return the policy of a reward at each state, with nothing trained."""
    _, policy = converted(*outcome_tables(env, model, states, outcomes), log_reward)
    return policy
