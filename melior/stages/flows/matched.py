"""Flow matching: what flows into each state that was visited, against what flows out of it."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior.data.flow import FlowEnvironment, Trajectories
from melior.losses.flow import flow_matching, squared
from melior.models.flow import FlowModel, Reading, unconditioned
from melior.records import Metrics
from melior.rewards.flow import LogReward


def matched(
    env: FlowEnvironment, model: FlowModel, log_reward: LogReward, batch: Trajectories
) -> tuple[Float[Tensor, ""], Metrics]:
    """Return the loss of the states of a batch: conservation, and the reward at each stop.

    Bengio, Jain, Korablyov, Precup, Bengio 2021, arXiv 2106.04399. There a network says the flow of
    each edge and the stop's is the reward; here an edge's flow is `F(s) P_F(s'|s)`, so that what
    flows out through the stop has to be taught the reward besides.
    """
    states = batch.states[batch.is_step]
    read = unconditioned(model, env)
    flows = read(states, torch.arange(len(states), device=states.device))
    worth = torch.full_like(flows.log_flow, -torch.inf)
    can_stop = env.allowed(states)[:, -1]
    worth = worth.masked_scatter(can_stop, log_reward(states[can_stop]).to(worth))
    is_later = env.undoable(states).any(-1)
    onward = (flows.log_flow[:, None] + flows.log_forward)[:, :-1]
    onward = onward.masked_fill(~env.allowed(states)[:, :-1], -torch.inf)
    inflow = log_inflow(env, read, states[is_later])
    # A reward is known up to a factor. Where all are small so are the flows, and flow matching's
    # epsilon would hide them all: there flows are counted from the batch's best reward.
    unit = worth.max().clamp(max=0)
    kept = squared(flow_matching(inflow - unit, onward[is_later] - unit, worth[is_later] - unit))
    taught = squared((flows.log_flow + flows.log_forward[:, -1] - worth)[can_stop])
    loss = (kept.sum() + taught.sum()) / len(batch.actions)
    reward = worth[batch.actions[batch.is_step] == env.n_actions]
    return loss, {"loss": loss.item(), "log_reward": reward.double().mean().item()}


def log_inflow(
    env: FlowEnvironment, read: Reading, states: Int[Tensor, "s d"]
) -> Float[Tensor, "s a"]:
    """Return the log-flow of each edge that leads to a state; -inf where there is none."""
    row, action = env.undoable(states).nonzero(as_tuple=True)
    before = env.undo(states[row], action)
    flows = read(before, torch.arange(len(before), device=states.device))
    taken = flows.log_forward.gather(-1, action[:, None])[:, 0]
    nothing = taken.new_full((len(states), env.n_actions), -torch.inf)
    return nothing.index_put((row, action), flows.log_flow + taken)
