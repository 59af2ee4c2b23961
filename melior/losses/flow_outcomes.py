"""Flows towards an outcome: how they are learned without a task, and turned to any reward.

Pan, Jain, Madan, Bengio 2024, arXiv 2310.03419 (OC-GFN). While there is no task, the reward of a
trajectory that was to reach `y` and built `x` is 1 where `f(x) = y`, and 0 elsewhere. Its log is
-inf, of which the paper says nothing; `log_success` gives failures a small `epsilon`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from melior.losses.flow import Paths, detailed_balance

FAILURE = 1e-4
"""The reward of a failure: of 0.3 nothing is learned, of 0 the log does not exist."""
LEAST_REWARD = 1e-8
"""What GAFN's authors add to the reward inside the log, in their code."""


def log_success(
    succeeded: Bool[Tensor, " n"], *, epsilon: float = FAILURE, dtype: torch.dtype = torch.float32
) -> Float[Tensor, " n"]:
    """Return the log-reward of having built what was to be built: 0, or `log epsilon`."""
    failed = torch.full((), epsilon, dtype=dtype, device=succeeded.device).log()
    return torch.where(succeeded, 0.0, failed)


def teleported_balance(paths: Paths, log_flow: Float[Tensor, "n t"]) -> Float[Tensor, "n t"]:
    """Of each step: detailed balance less the trajectory's reward, which every edge sees.

    arXiv 2310.03419, outcome teleportation: `log F(s|y) + log P_F(s'|s,y) - log F(s'|y) -
    log P_B(s|s',y) - log R(x|y)`. At the stop the reward stands once, in place of `F(s')`.
    Trajectories that succeed have `log R = 0`, and plain detailed balance. The conditions of edges
    that good and bad trajectories share contradict each other unless none fails: success comes
    sooner, but the flow of states from which `y` is out of reach stays near 1, and `converted` then
    needs a mask of what is reachable.
    """
    seen = paths.log_reward[:, None].where(paths.goes_on, 0.0)
    return detailed_balance(paths, log_flow) - seen


def augmented_trajectory_balance(
    paths: Paths,
    log_z: Float[Tensor, " n"],
    log_flow: Float[Tensor, "n t"],
    log_novelty: Float[Tensor, "n t"],
) -> Float[Tensor, " n"]:
    """Of whole trajectories of a generative augmented flow network, which looks for the new.

    Pan, Zhang, Courville, Huang, Bengio 2023 (GAFN), from the authors' code: `log Z + sum log P_F -
    log(R + r_n + 1e-8) - sum log(P_B(s_t|s_t+1) + r_t / F(s_t+1))`, with `r_t` the novelty of where
    step `t` leads, and `r_n` that of what was built. A stop leads to no new state.

    Args:
        paths: their log-reward is the task's; -inf where there is none.
        log_z: the log of the total flow.
        log_flow: of the state where each step begins.
        log_novelty: of the state where each step begins; carries no gradient, and the start's is
            read only where it is what was built.
    """
    novelty = log_novelty.detach()
    following = (novelty - log_flow).roll(-1, -1).where(paths.goes_on, 0.0)
    parent = paths.log_backward.where(paths.goes_on, 0.0)
    back = torch.logaddexp(parent, following).where(paths.goes_on, 0.0)
    forward = paths.log_forward.where(paths.is_step, 0.0)
    last = novelty.where(paths.is_stop, 0.0).sum(-1)
    floor = last.new_tensor(LEAST_REWARD).log()
    reward = torch.logaddexp(torch.logaddexp(paths.log_reward, last), floor)
    return log_z + forward.sum(-1) - reward - back.sum(-1)


def converted(
    log_flow: Float[Tensor, "s y"],
    log_forward: Float[Tensor, "s y actions"],
    log_reward: Float[Tensor, " y"],
) -> tuple[Float[Tensor, " s"], Float[Tensor, "s actions"]]:
    """Return the flows and the policy of any reward, as sums over all outcomes: nothing is trained.

    Bengio, Lahlou, Deleu, Hu, Tiwari, Bengio 2023, arXiv 2111.09266, prop. 61 and 62; in arXiv
    2310.03419 the exact conversion: `F_r(s) = sum of r(y) F(s|y)` and `pi_r(s'|s) = sum of
    r(y) F(s|y) P_F(s'|s,y) / F_r(s)`. It holds for any way back, since flows of any outcome add up.

    Args:
        log_flow: of each state under each outcome.
        log_forward: of each action there.
        log_reward: of each outcome; -inf for none, as for what the explorer never built: the flow
            towards that was never learned.

    Raises:
        ValueError: no outcome has a reward, or one is nan or inf.
    """
    if log_reward.isnan().any() or (log_reward == torch.inf).any():
        raise ValueError("reward: log-rewards must be finite or -inf; found nan or inf")
    if (log_reward == -torch.inf).all():
        raise ValueError("reward: an outcome that is worth something is needed; found none")
    weight = log_flow + log_reward
    policy = (weight[..., None] + log_forward).logsumexp(1)
    # A state from which nothing worth anything is within reach is never visited: any policy does.
    is_dead = policy.amax(-1, keepdim=True) == -torch.inf
    return weight.logsumexp(1), policy.masked_fill(is_dead, 0.0).log_softmax(-1)


def amortised(
    log_sum: Float[Tensor, " n"],
    log_posterior: Float[Tensor, " n"],
    log_reward: Float[Tensor, " n"],
    *,
    log_flow: Float[Tensor, " n"],
    log_forward: Float[Tensor, " n"],
    least: float = -15.0,
) -> Float[Tensor, " n"]:
    """Of an edge and an outcome: `log N(s'|s) + log Q(y|s',s) - log r(y) - log F - log P_F`.

    arXiv 2310.03419: as `Q` sums to 1 over outcomes, `N` is the sum that `converted` takes. The
    outcome's flows carry no gradient: only `N` and `Q` learn.

    Args:
        log_sum: of `N`, of the edge.
        log_posterior: of `Q`, of the outcome at the edge.
        log_reward: of the outcome.
        log_flow: of the state where the edge begins, under the outcome.
        log_forward: of the edge, under the outcome.
        least: the right-hand side is held above it, as `Q` cannot follow what is out of reach.
    """
    wanted = (log_reward + log_flow + log_forward).detach().clamp(min=least)
    return log_sum + log_posterior - wanted


def calibration(log_flow_at_start: Float[Tensor, " y"]) -> Float[Tensor, ""]:
    """Return by how much the outcomes' total flows differ: the standard deviation of their logs.

    Each is 1 when learned: 0 is perfect, and above 0.25 a conversion cannot be trusted.
    """
    return log_flow_at_start.std(unbiased=False)
