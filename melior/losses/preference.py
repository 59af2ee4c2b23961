"""Pairwise preference losses: two log-probabilities in, one number per pair out.

A `policy` holds what the trained model says of the chosen and the rejected answer, a `reference`
what the start model says; *reference-free* is a reference of zeros. Whether log-probabilities are
sums over the answer's tokens or averages is part of a loss and stands in its docstring. Higher
`margin` always means a more certain right answer.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from melior.types import Pairwise


def dpo(
    policy: Pairwise, reference: Pairwise, *, beta: float, label_smoothing: float = 0.0
) -> Float[Tensor, " n"]:
    """Direct preference optimisation.

    Rafailov et al. 2023, arXiv 2305.18290, eq. 7: `-log sigmoid(beta * D)`, where `D` is the
    margin of the log-ratios of policy to reference. With `label_smoothing` e it is the
    conservative form, `-(1-e) log sigmoid(beta D) - e log sigmoid(-beta D)`, of Mitchell's note
    on noisy labels (2023), eq. 3.

    Args:
        policy: log-probabilities of the answers, *summed* over their tokens.
        reference: the same of the start model; no gradient flows into it.
        beta: above 0; how strongly the policy is held to the reference.
        label_smoothing: share of labels taken to be flipped, at least 0 and below 0.5.
    """
    margin = policy.margin - reference.margin.detach()
    return smoothed_log_sigmoid_loss(beta * margin, label_smoothing)


def simpo(
    policy: Pairwise, *, beta: float, gamma: float, label_smoothing: float = 0.0
) -> Float[Tensor, " n"]:
    """Simple preference optimisation, without a reference.

    Meng, Xia, Chen 2024, arXiv 2405.14734, eq. 6: `-log sigmoid(beta p_w - beta p_l - gamma)`.
    The flipped term of the smoothed form keeps the margin, as in the authors' code:
    `-log sigmoid(-(beta p_w - beta p_l - gamma))`, which is not a loss on the swapped pair.

    Args:
        policy: log-probabilities of the answers, *averaged* over their tokens.
        beta: above 0; the paper searches 2 to 10.
        gamma: target margin of the rewards `beta p`, absolute; the authors' configs give
            `gamma / beta` (0 to 1) instead.
        label_smoothing: share of labels taken to be flipped, at least 0 and below 0.5.
    """
    return smoothed_log_sigmoid_loss(beta * policy.margin - gamma, label_smoothing)


def simpo_hinge(policy: Pairwise, *, beta: float, gamma: float) -> Float[Tensor, " n"]:
    """SimPO's reward and margin under a hinge: `max(0, 1 - (beta p_w - beta p_l - gamma))`.

    A variant of the authors' code (`loss_type: hinge`), not of the paper. Arguments as in `simpo`.
    """
    return F.relu(1 - (beta * policy.margin - gamma))


def smoothed_log_sigmoid_loss(
    logits: Float[Tensor, " n"], label_smoothing: float
) -> Float[Tensor, " n"]:
    """Cross-entropy of the logit that the chosen answer wins, with a share of flipped labels."""
    right = -F.logsigmoid(logits)
    if label_smoothing == 0.0:
        return right
    return torch.lerp(right, -F.logsigmoid(-logits), label_smoothing)
