"""Losses of single answers, each known to be desirable or not: one number per answer out.

`log_ratio` is `rho = log policy - log reference` of each answer, *summed* over its tokens; the
caller keeps gradients out of the reference. `desirable_weight` and `undesirable_weight` balance
the two kinds where one is rarer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def kto(
    log_ratio: Float[Tensor, " n"],
    is_desirable: Bool[Tensor, " n"],
    reference_point: Float[Tensor, ""],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, " n"]:
    """Kahneman-Tversky optimisation: gains and losses against what the policy does on average.

    Ethayarajh et al. 2024, arXiv 2402.01306, eq. 7 and 8: `weight (1 - sigmoid(beta (rho - z)))`
    of a desirable answer, `weight (1 - sigmoid(beta (z - rho)))` of another.

    Args:
        log_ratio: of each answer.
        is_desirable: which answers are good.
        reference_point: `z`, the KL to the reference in nats, not yet times beta; see
            `kto_reference_point`. No gradient flows into it.
        beta: above 0; steepness of the value function.
        desirable_weight: the paper's lambda_D.
        undesirable_weight: lambda_U; the paper asks that the kinds' weights times their counts
            stand between 1:1 and 4:3.
    """
    gain = beta * (log_ratio - reference_point.detach())
    cost = F.sigmoid(torch.where(is_desirable, -gain, gain))
    return _kind_weight(cost, is_desirable, desirable_weight, undesirable_weight) * cost


def kto_reference_point(mismatched_log_ratio: Float[Tensor, " m"]) -> Float[Tensor, ""]:
    """KTO's estimate of the KL to the reference: the mean log-ratio, at least 0, detached.

    Ethayarajh et al. 2024, arXiv 2402.01306, sec. 4.1. The log-ratios are of answers to *other*
    prompts of the batch (the batch's answers shifted by one), summed over tokens.
    """
    # A KL is not negative; an estimate from answers that the policy did not draw may be.
    return mismatched_log_ratio.detach().mean().clamp(min=0.0)


def bco(
    log_ratio: Float[Tensor, " n"],
    is_desirable: Bool[Tensor, " n"],
    shift: Float[Tensor, ""],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, " n"]:
    """Binary classifier optimisation: logistic regression of good from bad on the reward.

    Jung et al. 2024, arXiv 2404.04656: `-log sigmoid(r - delta)` of a desirable answer and
    `-log sigmoid(-(r - delta))` of another, with `r = beta rho`. Without the paper's density
    ratio for prompts that differ between the kinds: give it as a weight of the rows.

    Args:
        log_ratio: of each answer.
        is_desirable: which answers are good.
        shift: `delta`, between the mean rewards of the kinds; see `bco_shift`. No gradient flows
            into it.
        beta: above 0.
        desirable_weight: of desirable answers.
        undesirable_weight: of the others.
    """
    logits = beta * log_ratio - shift.detach()
    cost = -F.logsigmoid(torch.where(is_desirable, logits, -logits))
    return _kind_weight(cost, is_desirable, desirable_weight, undesirable_weight) * cost


def bco_shift(
    shift: Float[Tensor, ""],
    log_ratio: Float[Tensor, " n"],
    is_desirable: Bool[Tensor, " n"],
    *,
    beta: float,
    decay: float,
) -> Float[Tensor, ""]:
    """BCO's reward shift after one more batch, detached.

    Jung et al. 2024, arXiv 2404.04656: half the sum of the kinds' mean rewards, as an exponential
    moving average. A batch of one kind only leaves it as it was.

    Args:
        shift: as it stood; 0 at the start.
        log_ratio: of each answer.
        is_desirable: which answers are good.
        beta: as in `bco`.
        decay: what remains of the old value, from 0 to below 1.
    """
    rewards = beta * log_ratio.detach()
    if bool(is_desirable.all()) or not bool(is_desirable.any()):
        return shift.detach()
    middle = (rewards[is_desirable].mean() + rewards[~is_desirable].mean()) / 2
    return torch.lerp(middle, shift.detach(), decay)


def apo_zero_unpaired(
    log_ratio: Float[Tensor, " n"],
    is_desirable: Bool[Tensor, " n"],
    *,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, " n"]:
    """APO-zero of single answers: KTO's value function with the reference itself as the point.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, the two terms of eq. 7: `-sigmoid(beta rho)` of a
    desirable answer, `sigmoid(beta rho)` of another.
    """
    value = F.sigmoid(beta * log_ratio)
    cost = torch.where(is_desirable, -value, value)
    return _kind_weight(cost, is_desirable, desirable_weight, undesirable_weight) * cost


def _kind_weight(
    like: Float[Tensor, " n"], is_desirable: Bool[Tensor, " n"], desirable: float, other: float
) -> Float[Tensor, " n"]:
    """Weight of each answer by its kind."""
    return torch.where(is_desirable, like.new_tensor(desirable), like.new_tensor(other))
