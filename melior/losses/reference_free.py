"""Losses of pairs without a reference: log-probabilities of the policy in, one number per pair out.

Several of these methods add the chosen answers' negative log-likelihood (NLL). It is no part of the
functions here: the stage adds it (`sft_weight`), and each docstring says how the paper weighs it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from melior.losses.preference import smoothed_log_sigmoid_loss
from melior.types import Pairwise


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


def slic(policy: Pairwise, *, delta: float) -> Float[Tensor, " n"]:
    """Sequence likelihood calibration: `max(0, delta - log p_w + log p_l)`.

    Zhao et al. 2023 (SLiC-HF), arXiv 2305.10425, its rank calibration. The paper adds `lambda`
    times the *summed* NLL of a reference answer; taken of the chosen one, it is the comparison's
    form in SimPO's paper.

    Args:
        policy: log-probabilities of the answers, *summed* over their tokens.
        delta: above 0; margin of the log-probabilities.
    """
    return F.relu(delta - policy.margin)


def rrhf(policy: Pairwise) -> Float[Tensor, " n"]:
    """Rank responses to align with human feedback, of two: `max(0, p_l - p_w)`.

    Yuan et al. 2023, arXiv 2304.05302, the ranking loss. The paper adds the *summed* NLL of the
    best answer with weight 1, which keeps the language; alone, this asks for no margin at all.

    Args:
        policy: log-probabilities of the answers, *averaged* over their tokens.
    """
    return F.relu(-policy.margin)


def cpo(policy: Pairwise, *, beta: float, label_smoothing: float = 0.0) -> Float[Tensor, " n"]:
    """Contrastive preference optimisation: DPO with a uniform reference.

    Xu et al. 2024, arXiv 2401.08417, the preference part of eq. 3:
    `-log sigmoid(beta log p_w - beta log p_l)`. The paper adds the *summed* NLL of the chosen
    answer with weight 1.

    Args:
        policy: log-probabilities of the answers, *summed* over their tokens.
        beta: above 0; the paper uses 0.1.
        label_smoothing: share of labels taken to be flipped, at least 0 and below 0.5.
    """
    return smoothed_log_sigmoid_loss(beta * policy.margin, label_smoothing)


def orpo(policy: Pairwise, *, lam: float) -> Float[Tensor, " n"]:
    """Odds ratio preference optimisation: lambda times the loss on the odds ratio.

    Hong, Lee, Thorne 2024, arXiv 2403.07691, eq. 7 with the weight of eq. 6:
    `-lam log sigmoid(log(odds_w / odds_l))`, where `odds = P / (1 - P)` and `P` is the geometric
    mean of the tokens' probabilities. The paper adds the NLL of the chosen answer, *averaged* over
    its tokens, with weight 1.

    Args:
        policy: log-probabilities of the answers, *averaged* over their tokens.
        lam: at least 0; the paper uses 0.1 to 0.25.
    """
    return -lam * F.logsigmoid(log_odds(policy.chosen) - log_odds(policy.rejected))


def log_odds(log_prob: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """`log(P / (1 - P))` of a log-probability, in log space."""
    # A certain answer has infinite odds. In float32 exp(a) is 1 from about -6e-8 on; the bound
    # leaves 1 - P a digit, and an answer as certain as that has nothing left to learn.
    bounded = log_prob.clamp(max=-1e-6)
    # expm1 keeps the digits of 1 - P near certainty; far from it 1 - P is 1, and its log no matter.
    return bounded - (-torch.expm1(bounded)).log()
