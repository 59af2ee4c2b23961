"""Losses of pairs relative to a reference: log-probabilities in, one number per pair out.

A `policy` holds what the trained model says of the chosen and the rejected answer, a `reference`
what the start model says. Unless a docstring says otherwise both are *summed* over the answer's
tokens, no gradient flows into the reference, `beta` is above 0 and `D` is the margin of the
log-ratios `rho = log policy - log reference`. Higher `margin` always means a more certain right
answer.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from melior.types import Pairwise

Slope = Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]]
"""The derivative f' of a divergence, as a function of log-ratios."""


def dpo(
    policy: Pairwise, reference: Pairwise, *, beta: float, label_smoothing: float = 0.0
) -> Float[Tensor, " n"]:
    """Direct preference optimisation.

    Rafailov et al. 2023, arXiv 2305.18290, eq. 7: `-log sigmoid(beta * D)`. With `label_smoothing`
    e it is the conservative form, `-(1-e) log sigmoid(beta D) - e log sigmoid(-beta D)`, of
    Mitchell's note on noisy labels (2023), eq. 3.

    Args:
        policy: log-probabilities of the answers, *summed* over their tokens.
        reference: the same of the start model; no gradient flows into it.
        beta: above 0; how strongly the policy is held to the reference.
        label_smoothing: share of labels taken to be flipped, at least 0 and below 0.5.
    """
    return smoothed_log_sigmoid_loss(beta * _margin(policy, reference), label_smoothing)


def robust_dpo(
    policy: Pairwise, reference: Pairwise, *, beta: float, label_smoothing: float
) -> Float[Tensor, " n"]:
    """DPO whose mean over randomly flipped labels is that of DPO on the true ones.

    Chowdhury, Kini, Natarajan 2024, arXiv 2403.00409, sec. 3 (rDPO):
    `[-(1-e) log sigmoid(beta D) + e log sigmoid(-beta D)] / (1 - 2e)`. It has no lower bound: wide
    margins go on paying `e / (1 - 2e)` each.

    Args:
        policy: log-probabilities of the answers.
        reference: the same of the start model.
        beta: as in `dpo`.
        label_smoothing: rate e at which labels are flipped, at least 0 and below 0.5.
    """
    logits = beta * _margin(policy, reference)
    right, flipped = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    return ((1 - label_smoothing) * right - label_smoothing * flipped) / (1 - 2 * label_smoothing)


def ipo(policy: Pairwise, reference: Pairwise, *, tau: float) -> Float[Tensor, " n"]:
    """Identity preference optimisation: a target for the margin instead of a limit.

    Azar et al. 2023, arXiv 2310.12036, eq. 17: `(D - 1 / (2 tau))^2`. Log-probabilities *summed*
    over tokens are the paper's derivation, command `ipo`; *averages* give the length-normalised
    form of other libraries, command `ipo-mean`. A `tau` of one form means nothing in the other.
    """
    return (_margin(policy, reference) - 1 / (2 * tau)) ** 2


def hinge(policy: Pairwise, reference: Pairwise, *, beta: float) -> Float[Tensor, " n"]:
    """Hinge on the log-ratios, `max(0, 1 - beta D)`: no gradient once the margin is there.

    Liu et al. 2023 (RSO), arXiv 2309.06657, sec. 3.2 (hinge-norm), with gamma called `beta`.
    SLiC-HF itself knows no reference and stands in `reference_free.slic`.
    """
    return F.relu(1 - beta * _margin(policy, reference))


def r_dpo(
    policy: Pairwise, reference: Pairwise, lengths: Pairwise, *, beta: float, alpha: float
) -> Float[Tensor, " n"]:
    """DPO under a price on length: a pair that a longer answer won is partly explained by that.

    Park et al. 2024, arXiv 2403.19159: `-log sigmoid(beta D + alpha (n_w - n_l))`. The reward
    `r - alpha n` has the optimum `r = beta rho + alpha n + const`, hence the plus sign.

    Args:
        policy: log-probabilities of the answers.
        reference: the same of the start model.
        lengths: scored tokens of each answer.
        beta: as in `dpo`.
        alpha: at least 0; price of a token, in units of the reward.
    """
    logits = beta * _margin(policy, reference) + alpha * lengths.margin.detach()
    return -F.logsigmoid(logits)


def exo(
    policy: Pairwise, reference: Pairwise, *, beta: float, label_smoothing: float
) -> Float[Tensor, " n"]:
    """Exact optimisation: the reverse KL from the policy's choice to the label's.

    Ji et al. 2024, arXiv 2402.00856, eq. 16 (EXO-pref, two answers): `KL(q || p)` of two outcomes,
    `q = sigmoid(beta D)` and `p = 1 - e` that the chosen answer wins.

    Args:
        policy: log-probabilities of the answers.
        reference: the same of the start model.
        beta: as in `dpo`.
        label_smoothing: e, above 0 and below 0.5; at 0 the divergence is infinite.
    """
    logits = beta * _margin(policy, reference)
    right = F.sigmoid(logits) * (F.logsigmoid(logits) - math.log1p(-label_smoothing))
    wrong = F.sigmoid(-logits) * (F.logsigmoid(-logits) - math.log(label_smoothing))
    return right + wrong


def nca(policy: Pairwise, reference: Pairwise, *, beta: float) -> Float[Tensor, " n"]:
    """Noise contrastive alignment: absolute log-ratios, so that the chosen one need not fall.

    Chen et al. 2024, arXiv 2402.05369, for two answers of which one is preferred:
    `-log sigmoid(r_w) - 1/2 log sigmoid(-r_w) - 1/2 log sigmoid(-r_l)` with `r = beta rho`.
    """
    ratio = _ratio(policy, reference)
    chosen, rejected = beta * ratio.chosen, beta * ratio.rejected
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def sppo_hard(policy: Pairwise, reference: Pairwise, *, beta: float) -> Float[Tensor, " n"]:
    """Self-play preference optimisation with win rates of 1 and 0.

    Wu et al. 2024, arXiv 2405.00675, eq. 4.7: `(rho - eta (P - 1/2))^2`, as the mean over the
    pair's two answers; `eta = 1 / beta`, `P = 1` for the chosen and 0 for the rejected answer.
    With win rates that are known it is `gpo` on the scores `P - 1/2`.
    """
    ratio, target = _ratio(policy, reference), 0.5 / beta
    return 0.5 * ((ratio.chosen - target) ** 2 + (ratio.rejected + target) ** 2)


def gpo(
    policy: Pairwise,
    reference: Pairwise,
    scores: Pairwise,
    *,
    beta: float,
    limit: float = math.inf,
) -> Float[Tensor, " n"]:
    """General preference optimisation: log-ratios regressed on preference scores.

    Zhang et al. 2024, arXiv 2410.02197, eq. 5.3 with `log Z = 0`, as the mean over the pair's two
    answers: `1/2 [(rho_w - s_w / beta)^2 + (rho_l - s_l / beta)^2]`. Not the GPO of Tang et al.

    Args:
        policy: log-probabilities of the answers.
        reference: the same of the model that the answers were drawn from.
        scores: of each answer against that model, on average; no gradient flows into them.
        beta: above 0; the paper's released runs have 0.001.
        limit: on the target `s / beta`, either side; the paper has none.
    """
    ratio = _ratio(policy, reference)
    chosen = (scores.chosen.detach() / beta).clamp(-limit, limit)
    rejected = (scores.rejected.detach() / beta).clamp(-limit, limit)
    return 0.5 * ((ratio.chosen - chosen) ** 2 + (ratio.rejected - rejected) ** 2)


def aot(
    policy: Pairwise, reference: Pairwise, *, beta: float, label_smoothing: float = 0.0
) -> Float[Tensor, " n"]:
    """Alignment by optimal transport: all margins of the policy above all of the reference.

    Melnyk et al. 2024, arXiv 2406.05882, the paired form under the logistic loss: the k-th
    smallest margin `log p_w - log p_l` of the policy is set against the k-th smallest of the
    reference. The value stands at the policy's pair. It depends on which `n` pairs are given
    together: more of them estimate the distributions better.
    """
    ordered = reference.margin.detach().sort().values
    rank = policy.margin.detach().argsort().argsort()
    return smoothed_log_sigmoid_loss(beta * (policy.margin - ordered[rank]), label_smoothing)


def apo_zero(policy: Pairwise, reference: Pairwise, *, beta: float) -> Float[Tensor, " n"]:
    """Anchored optimisation, for chosen answers that are better than the model's own.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 7: `-sigmoid(r_w) + sigmoid(r_l)` with
    `r = beta rho`: the chosen answer rises, the rejected one falls.
    """
    ratio = _ratio(policy, reference)
    return F.sigmoid(beta * ratio.rejected) - F.sigmoid(beta * ratio.chosen)


def apo_down(policy: Pairwise, reference: Pairwise, *, beta: float) -> Float[Tensor, " n"]:
    """Anchored optimisation, for chosen answers that are worse than the model's own.

    D'Oosterlinck et al. 2024, arXiv 2408.06266, eq. 8: `sigmoid(r_w) - sigmoid(r_w - r_l)` with
    `r = beta rho`: both answers fall, the rejected one further.
    """
    ratio = _ratio(policy, reference)
    return F.sigmoid(beta * ratio.chosen) - F.sigmoid(beta * ratio.margin)


def discopop(
    policy: Pairwise, reference: Pairwise, *, beta: float, tau: float = 0.05
) -> Float[Tensor, " n"]:
    """Log-ratio modulated loss, found by a language model.

    Lu et al. 2024, arXiv 2406.08414, eq. 5: `(1 - m) (-log sigmoid(x)) + m exp(-x)` with
    `x = beta D` and `m = sigmoid(x / tau)`. Not convex: badly wrong pairs are learned from
    logistically, right ones exponentially.

    Args:
        policy: log-probabilities of the answers.
        reference: the same of the start model.
        beta: as in `dpo`.
        tau: temperature of the modulation, above 0 and below 1: from 1 on, `m exp(-x)` has no
            bound for wrong pairs.
    """
    logits = beta * _margin(policy, reference)
    logistic = F.sigmoid(-logits / tau) * -F.logsigmoid(logits)
    return logistic + (F.logsigmoid(logits / tau) - logits).exp()


def dpop(policy: Pairwise, reference: Pairwise, *, beta: float, lam: float) -> Float[Tensor, " n"]:
    """DPO-positive: a chosen answer that becomes less likely than at the start is paid for.

    Pal et al. 2024 (Smaug), arXiv 2402.13228, eq. 3: `-log sigmoid(beta (D - lam max(0, -rho_w)))`.

    Args:
        policy: log-probabilities of the answers.
        reference: the same of the start model.
        beta: as in `dpo`.
        lam: at least 0; the paper uses 50.
    """
    ratio = _ratio(policy, reference)
    return -F.logsigmoid(beta * (ratio.margin - lam * F.relu(-ratio.chosen)))


def f_dpo(
    policy: Pairwise, reference: Pairwise, *, beta: float, slope: Slope
) -> Float[Tensor, " n"]:
    """DPO under another divergence to the reference than the reverse KL.

    Wang et al. 2023, arXiv 2309.16240: `-log sigmoid(beta f'(rho_w) - beta f'(rho_l))`.

    Args:
        policy: log-probabilities of the answers.
        reference: the same of the start model.
        beta: weight of the divergence.
        slope: f' of the divergence on log-ratios: one of the four below, or your own. What it adds
            as a constant cancels.
    """
    ratio = _ratio(policy, reference)
    return -F.logsigmoid(beta * (slope(ratio.chosen) - slope(ratio.rejected)))


def reverse_kl(log_ratio: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """`f'(u) = log u` for `f = u log u` (less its 1): the KL of DPO itself."""
    return log_ratio


def forward_kl(log_ratio: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """`f'(u) = 1 - 1 / u` for `f = -log u` (plus 1): mass-covering."""
    return alpha_divergence(log_ratio, alpha=1.0)


def jensen_shannon(log_ratio: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """`f'(u) = log(2u / (1 + u))` for the Jensen-Shannon divergence; at most log 2."""
    return math.log(2) + F.logsigmoid(log_ratio)


def alpha_divergence(log_ratio: Float[Tensor, " n"], *, alpha: float) -> Float[Tensor, " n"]:
    """`f'(u) = (1 - u^-alpha) / alpha`, alpha above 0 and at most 1.

    Between the reverse KL, its limit at 0, and the forward KL, at 1.
    """
    # exp overflows float32 beyond 88, and inf - inf is nan: an answer that has lost a factor of
    # e^(80 / alpha) against the reference is held there, without gradient.
    return -torch.expm1((-alpha * log_ratio).clamp(max=80.0)) / alpha


def smoothed_log_sigmoid_loss(
    logits: Float[Tensor, " n"], label_smoothing: float
) -> Float[Tensor, " n"]:
    """Cross-entropy of the logit that the chosen answer wins, with a share of flipped labels."""
    right = -F.logsigmoid(logits)
    if label_smoothing == 0.0:
        return right
    return torch.lerp(right, -F.logsigmoid(-logits), label_smoothing)


def _margin(policy: Pairwise, reference: Pairwise) -> Float[Tensor, " n"]:
    """Margin of the log-ratios, without a gradient into the reference."""
    return policy.margin - reference.margin.detach()


def _ratio(policy: Pairwise, reference: Pairwise) -> Pairwise:
    """Log-ratios of policy to reference, without a gradient into the reference."""
    chosen = policy.chosen - reference.chosen.detach()
    return Pairwise(chosen, policy.rejected - reference.rejected.detach())
