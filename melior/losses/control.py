"""Losses of control: of a world that is modelled, of values, and of policies; one number per row.

Axes: `n` transitions, `m` members of an ensemble or critics, `k` candidates, `d` and `a` the
numbers of an observation and of an action. A terminal is True where the task itself is over; a
time-out is none.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import softplus


def gaussian_nll(
    mean: Float[Tensor, "*m n d"],
    log_variance: Float[Tensor, "*m n d"],
    target: Float[Tensor, "*m n d"],
) -> Float[Tensor, "*m n"]:
    """Twice the negative log-likelihood of a diagonal Gaussian, less its constant.

    Chua et al. 2018, arXiv 1805.12114, eq. 1:
    `(mean - target)' Sigma^-1 (mean - target) + log det Sigma`. A sum over dimensions, as there;
    released code of MOPO and MOBILE takes the mean, so that their weight decay and bound loss are
    `d` times heavier beside it.
    """
    error = (mean - target).square() * (-log_variance).exp()
    return (error + log_variance).sum(-1)


def discriminator(
    logits: Float[Tensor, "*m n"], is_real: Bool[Tensor, " n"]
) -> Float[Tensor, "*m n"]:
    """Cross-entropy of telling logged transitions from generated ones.

    Ho, Ermon 2016, arXiv 1606.03476, eq. 14, with Luo et al.'s sign (2023, arXiv 2310.05422): a
    logit is high where a transition looks real, `-log sigma(l)` there and `-log(1 - sigma(l))` of
    generated ones. Where both are as frequent, the best logit is the log-ratio of the densities.
    """
    return softplus(torch.where(is_real, -logits, logits))


def looks_real(logits: Float[Tensor, "*m n"]) -> Float[Tensor, "*m n"]:
    """The reward of whoever generates transitions: `-log(1 - sigma(l))`.

    Ho, Ermon 2016, arXiv 1606.03476, algorithm 1, in the sign of `discriminator`; always above 0.
    """
    return softplus(logits)


def gradient_penalty(slopes: Float[Tensor, "*m n d"]) -> Float[Tensor, "*m n"]:
    """What keeps a discriminator smooth: the squared norm of its logit's slope at an input.

    Mescheder et al. 2018, arXiv 1801.04406, eq. 9; they take it at real inputs, Gulrajani et al.
    2017 (arXiv 1704.00028, eq. 3) between real and generated ones, around a norm of 1. The slopes
    must come with a graph (`create_graph=True`).
    """
    return slopes.square().sum(-1)


def td_target(
    rewards: Float[Tensor, " n"],
    terminals: Bool[Tensor, " n"],
    next_values: Float[Tensor, " n"],
    *,
    discount: float,
) -> Float[Tensor, " n"]:
    """What a value is drawn to: `r + gamma (1 - terminal) V(s')`.

    Sutton, Barto 2018, eq. 6.2 (of action values 6.7). After a terminal nothing follows, whatever
    stands in `next_values`; after a time-out something does. Carries no gradient.
    """
    following = next_values.masked_fill(terminals, 0.0)
    return (rewards + discount * following).detach()


def soft_value(
    values: Float[Tensor, "m n"], log_prob: Float[Tensor, " n"], *, temperature: float
) -> Float[Tensor, " n"]:
    """The value of a state at a drawn action: the lowest critic's, and the action's surprise.

    Haarnoja et al. 2018, arXiv 1812.05905, eq. 3, with the least of several critics (sec. 6):
    `min_j Q_j(s, a) - alpha log pi(a|s)`. A temperature of 0 gives what TD3 reads (Fujimoto et al.
    2018, arXiv 1802.09477, eq. 10).
    """
    return values.amin(0) - temperature * log_prob


def critic(values: Float[Tensor, "m n"], targets: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Half the squared distance to the target, added over critics.

    Haarnoja et al. 2018, arXiv 1812.05905, eq. 5. No gradient flows into the target.
    """
    return 0.5 * (values - targets.detach()).square().sum(0)


def soft_actor(
    values: Float[Tensor, "m n"], log_prob: Float[Tensor, " n"], *, temperature: float
) -> Float[Tensor, " n"]:
    """What a stochastic policy is drawn by: high value, high entropy.

    Haarnoja et al. 2018, arXiv 1812.05905, eq. 9: `alpha log pi(a|s) - min_j Q_j(s, a)`. The action
    must be drawn so that its gradient reaches the policy, through both inputs.
    """
    return temperature * log_prob - values.amin(0)


def soft_temperature(
    log_temperature: Float[Tensor, ""], log_prob: Float[Tensor, " n"], *, target_entropy: float
) -> Float[Tensor, " n"]:
    """What the temperature is drawn by: up where the entropy is below its target.

    Haarnoja et al. 2018, arXiv 1812.05905, eq. 18: `-alpha (log pi(a|s) + H)`. No gradient flows
    into the policy.
    """
    return -log_temperature.exp() * (log_prob.detach() + target_entropy)


def cloning(actions: Float[Tensor, "n a"], logged: Float[Tensor, "n a"]) -> Float[Tensor, " n"]:
    """The squared distance from what was done, averaged over an action's numbers.

    Behaviour cloning (Pomerleau 1991), and the second term of TD3+BC.
    """
    return (actions - logged).square().mean(-1)


def td3_bc(
    values: Float[Tensor, " n"],
    actions: Float[Tensor, "n a"],
    logged: Float[Tensor, "n a"],
    *,
    alpha: float,
) -> Float[Tensor, " n"]:
    """High value, close to what was done.

    Fujimoto, Gu 2021, arXiv 2106.06860, eq. 3 and 5: `-lambda Q(s, pi(s)) + (pi(s) - a)^2` with
    `lambda = alpha / mean |Q|`, the mean over the batch and without a gradient. The square is
    averaged over an action's numbers, for which the authors' `alpha` of 2.5 was found. In a batch
    whose values are all 0 only the second term counts.
    """
    size = values.detach().abs().mean()
    weight = torch.where(size > 0, alpha / size, 0.0)
    return cloning(actions, logged) - weight * values


def conservatism(
    sampled: Float[Tensor, "m n k"],
    log_densities: Float[Tensor, "n k"],
    logged: Float[Tensor, "m n"],
) -> Float[Tensor, " n"]:
    """How far values of actions that were not done stand above those that were, over critics.

    Kumar et al. 2020, arXiv 2006.04779, eq. 4 (CQL(H)): `log int exp Q(s, a) da - Q(s, a_logged)`,
    to be added to `critic` with a coefficient. The integral is estimated from drawn actions by
    their weights `exp(Q) / density` (appendix F), whose mean is taken, so that the estimate does
    not grow with `k` as in the released code; the slope is the same.

    Args:
        sampled: each critic's values of drawn actions.
        log_densities: of the distribution that each was drawn from.
        logged: values of what was done.
    """
    weights = sampled - log_densities.detach()
    integral = weights.logsumexp(-1) - math.log(sampled.shape[-1])
    return (integral - logged).sum(0)


def aleatoric_penalty(deviations: Float[Tensor, "m n d"]) -> Float[Tensor, " n"]:
    """How unsure the most unsure member is: the largest norm of its standard deviations.

    Yu et al. 2020 (MOPO), arXiv 2005.13239, sec. 4.3: `u(s, a) = max_i ||Sigma_i(s, a)||_F`, where
    released code holds standard deviations and not variances, which we follow. The learned reward
    is lowered by a multiple of it.
    """
    return deviations.norm(dim=-1).amax(0)


def bellman_inconsistency(next_values: Float[Tensor, "m n k"]) -> Float[Tensor, " n"]:
    """How far members of an ensemble disagree on what follows is worth.

    Sun et al. 2023 (MOBILE, ICML): the standard deviation, over members, of the mean over
    `k` next states that each draws, of the target critics' value there. Divided by `m - 1`, as in
    their release, for which their weights were found: two members are the least. Carries no
    gradient.
    """
    return next_values.detach().mean(-1).std(0)
