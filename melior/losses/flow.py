"""Balance of flows: what a generative flow network is held to, and what a lack of it costs.

Residuals are differences of logs, 0 where flows balance; a penalty turns them into losses. So any
objective goes with any penalty: `squared(trajectory_balance(...))`. Axes: `n` trajectories, `t`
steps, of which the last is the stop, `a` actions, `s` states.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

EPSILON = 1e-8
"""What flow matching adds to both sides, that no state without flow gives -inf."""


@dataclass(frozen=True)
class Paths:
    """What a model says of trajectories; what stands after their end counts nothing."""

    log_forward: Float[Tensor, "n t"]
    """Of each step, the stop among them."""
    log_backward: Float[Tensor, "n t"]
    """Of undoing each step; the stop's is not read."""
    is_step: Bool[Tensor, "n t"]
    log_reward: Float[Tensor, " n"]
    """Of what was built; finite."""

    @property
    def log_ratio(self) -> Float[Tensor, "n t"]:
        """Forward less backward, step by step; 0 after the end."""
        forward = self.log_forward.where(self.is_step, 0.0)
        return forward - self.log_backward.where(self.goes_on, 0.0)

    @property
    def goes_on(self) -> Bool[Tensor, "n t"]:
        """Say which steps are not the stop."""
        return F.pad(self.is_step[:, 1:], (0, 1), value=False)

    @property
    def is_stop(self) -> Bool[Tensor, "n t"]:
        """Say which step is the stop."""
        return self.is_step & ~self.goes_on


def squared(residual: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
    """Return the square, the penalty of the papers."""
    return residual.square()


def huber(residual: Float[Tensor, "*n"], *, delta: float = 1.0) -> Float[Tensor, "*n"]:
    """Return the square up to `delta`, and beyond it the line that goes on from there.

    For rewards of a wide range: the gradient of no trajectory passes `2 delta`.
    """
    size = residual.abs()
    return torch.where(size <= delta, residual.square(), delta * (2 * size - delta))


def mean_of_steps(
    losses: Float[Tensor, "n t"], is_step: Bool[Tensor, "n t"]
) -> Float[Tensor, " n"]:
    """Average over the steps of each trajectory."""
    return losses.where(is_step, 0.0).sum(-1) / is_step.sum(-1).clamp(min=1)


def sum_of_steps(losses: Float[Tensor, "n t"], is_step: Bool[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """Add the steps of each trajectory."""
    return losses.where(is_step, 0.0).sum(-1)


def trajectory_balance(paths: Paths, log_z: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Of whole trajectories: `log Z + sum log P_F - log R - sum log P_B`.

    Malkin, Jain, Bengio, Sun, Bengio 2022, arXiv 2201.13259.

    Args:
        paths: of trajectories from the start to the stop, sampled in whatever way.
        log_z: the log of the total flow.
    """
    return log_z + paths.log_ratio.sum(-1) - paths.log_reward


def detailed_balance(paths: Paths, log_flow: Float[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """Of each step: `log F(s) + log P_F(s'|s) - log F(s') - log P_B(s|s')`.

    Bengio, Lahlou, Deleu, Hu, Tiwari, Bengio 2023, arXiv 2111.09266. At the stop it
    is `log F(x) + log P_F(stop|x) - log R(x)`. 0 after the end.

    Args:
        paths: the trajectories.
        log_flow: of the state where each step begins.
    """
    after = _log_flow_after(paths, log_flow)
    here = log_flow.where(paths.is_step, 0.0)
    return here + paths.log_ratio - after


def forward_looking(
    log_flow: Float[Tensor, "n t"], log_partial_reward: Float[Tensor, "n t"]
) -> Float[Tensor, "n t"]:
    """Return the log-flow of states of which part of the reward is known: `log F~ + log R~`.

    Pan, Malkin, Zhang, Bengio 2023, arXiv 2302.01687, with the energy `-log R~`: the network says
    only what is still to come. `detailed_balance` of these flows is that paper's FL-DB, and
    `sub_trajectory_balance` of them its FL-SubTB. A state's partial reward must be the same on
    whichever path it is met.
    """
    return log_flow + log_partial_reward


def sub_trajectory_balance(
    paths: Paths, log_flow: Float[Tensor, "n t"]
) -> Float[Tensor, "n starts ends"]:
    """Of every part of every trajectory: from before step `i` to after step `j`, `i <= j`.

    Madan et al. 2023, arXiv 2209.12782: `log F(s_i) + sum log P_F - log F(s_j+1) - sum log
    P_B`, with `F = R` after the stop. The diagonal is detailed balance, the corner trajectory
    balance with `log F(s_0)` as `log Z`. Parts that do not exist are 0.
    """
    after = _log_flow_after(paths, log_flow)
    here = log_flow.where(paths.is_step, 0.0)
    so_far = paths.log_ratio.cumsum(-1)
    before = so_far - paths.log_ratio
    residual = (here - before)[:, :, None] + (so_far - after)[:, None, :]
    return residual.where(parts(paths.is_step), 0.0)


def sub_trajectory_weights(
    is_step: Bool[Tensor, "n t"], *, lamda: float, dtype: torch.dtype = torch.float32
) -> Float[Tensor, "n starts ends"]:
    """Return what each part counts: `lambda` to the power of its length, with a sum of 1.

    Madan et al. 2023, arXiv 2209.12782; the usual `lambda` is 0.9. Towards 0 it is the mean of
    detailed balance over the steps, towards infinity trajectory balance.
    """
    place = torch.arange(is_step.shape[1], device=is_step.device, dtype=dtype)
    log_weights = (place[None, :] - place[:, None] + 1) * math.log(lamda)
    exists = parts(is_step)
    lowest = torch.finfo(dtype).min  # of -inf alone a softmax would be nan
    weights = log_weights.expand(exists.shape).masked_fill(~exists, lowest).flatten(1).softmax(-1)
    return weights.unflatten(1, exists.shape[1:]).where(exists, 0.0)


def parts(is_step: Bool[Tensor, "n t"]) -> Bool[Tensor, "n starts ends"]:
    """Say which parts of trajectories there are: from a step to itself or a later one."""
    t = is_step.shape[1]
    in_order = torch.ones(t, t, dtype=torch.bool, device=is_step.device).triu()
    return is_step[:, :, None] & is_step[:, None, :] & in_order


def flow_matching(
    log_inflow: Float[Tensor, "s a"],
    log_outflow: Float[Tensor, "s a"],
    log_reward: Float[Tensor, " s"],
    *,
    epsilon: float = EPSILON,
) -> Float[Tensor, " s"]:
    """Of each state: the log of what flows in less that of what flows out.

    Bengio, Jain, Korablyov, Precup, Bengio 2021, arXiv 2106.04399, `epsilon` on both sides.
    The start has no inflow and is left out by the caller.

    Args:
        log_inflow: of the edges that lead here; -inf where there is none.
        log_outflow: of the edges that lead on, without the stop; -inf where there is none.
        log_reward: of stopping here; -inf where one cannot.
        epsilon: above 0; states of less flow hardly count.
    """
    floor = log_reward.new_tensor(epsilon).log().expand(len(log_reward), 1)
    inflow = torch.cat([log_inflow, floor], -1).logsumexp(-1)
    outflow = torch.cat([log_outflow, log_reward[:, None], floor], -1).logsumexp(-1)
    return inflow - outflow


def _log_flow_after(paths: Paths, log_flow: Float[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """Return the log-flow where each step ends: the next state's, the reward at the stop."""
    following = F.pad(log_flow[:, 1:], (0, 1)).where(paths.goes_on, 0.0)
    return following + paths.log_reward[:, None].where(paths.is_stop, 0.0)
