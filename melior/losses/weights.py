"""How much a pair counts, and how: weights, betas and log-probabilities that adapt to the pair.

All weights, betas and probabilities are detached: none of them is a way to lower a loss.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from melior.losses.preference import dpo
from melior.types import Pairwise

# MADPO


def madpo(
    policy: Pairwise, reference: Pairwise, weight: Float[Tensor, " n"], *, beta: float
) -> Float[Tensor, " n"]:
    """Margin-adaptive DPO: the loss of each pair times a weight of its reward margin.

    Rho 2025, arXiv 2510.05342: `-w(h) log sigmoid(beta D)`.

    Args:
        policy: log-probabilities of the answers, *summed* over their tokens.
        reference: the same of the start model; no gradient flows into it.
        weight: of `madpo_weight` or one of its two parts; no gradient flows into it.
        beta: as in `dpo`.
    """
    return weight.detach() * dpo(policy, reference, beta=beta)


def madpo_weight(
    margin: Float[Tensor, " n"], *, c_max: float, tau: float, lam: float = 1.0
) -> Float[Tensor, " n"]:
    """MADPO's weight: narrow margins amplified, wide ones dampened, contradicted labels fade.

    Rho 2025, arXiv 2510.05342: `sigmoid(c h) / sigmoid(h)` where `h > -tau`, else 1, with the
    coefficient `c` of `madpo_coefficient`.

    Args:
        margin: `h`, reward of the chosen answer less that of the rejected one under a reward
            model; below 0 where the model disagrees with the label.
        c_max: at least 1; 2 and 4 in the paper.
        tau: above 0; the margin at which amplifying turns into dampening.
        lam: above 0; steepness of that turn.
    """
    coefficient = madpo_coefficient(margin, c_max=c_max, tau=tau, lam=lam)
    return _target_weight(margin, coefficient, tau)


def madpo_amplifying_weight(
    margin: Float[Tensor, " n"], *, c_max: float, tau: float, lam: float = 1.0
) -> Float[Tensor, " n"]:
    """`madpo_weight` with `c = 1` from tau on: the paper's ablation that only amplifies."""
    coefficient = madpo_coefficient(margin, c_max=c_max, tau=tau, lam=lam)
    return _target_weight(margin, coefficient.clamp(min=1.0), tau)  # c > 1 just where |h| < tau


def madpo_dampening_weight(
    margin: Float[Tensor, " n"], *, c_max: float, tau: float, lam: float = 1.0
) -> Float[Tensor, " n"]:
    """`madpo_weight` with `c = 1` below tau: the paper's ablation that only regularises."""
    coefficient = madpo_coefficient(margin, c_max=c_max, tau=tau, lam=lam)
    return _target_weight(margin, coefficient.clamp(max=1.0), tau)  # c < 1 just where |h| > tau


def madpo_coefficient(
    margin: Float[Tensor, " n"], *, c_max: float, tau: float, lam: float = 1.0
) -> Float[Tensor, " n"]:
    """What MADPO multiplies a margin by: near `c_max` at 0, 1 at tau, towards `1 / c_max` beyond.

    Rho 2025, arXiv 2510.05342: `c_min + (c_max - c_min) / (1 + k exp(lam (|h| - tau)))` with
    `c_min = 1 / c_max` and `k = (c_max - 1) / (1 - c_min)`, which is `c_max`; written so, `c_max`
    may be 1, where `c` is 1 everywhere.
    """
    logit = lam * (tau - margin.detach().abs()) - math.log(c_max)
    return 1 / c_max + (c_max - 1 / c_max) * F.sigmoid(logit)


def _target_weight(
    margin: Float[Tensor, " n"], coefficient: Float[Tensor, " n"], tau: float
) -> Float[Tensor, " n"]:
    """`sigmoid(c h) / sigmoid(h)` above -tau, else 1; a difference of logs, as quotients fail."""
    h = margin.detach()
    weight = (F.logsigmoid(coefficient * h) - F.logsigmoid(h)).exp()
    return torch.where(h > -tau, weight, torch.ones_like(weight))


# Beta-DPO


@dataclass(frozen=True)
class GapState:
    """Running mean and spread of the reward gaps seen so far; starts at 0 and 1."""

    mean: Float[Tensor, ""]
    std: Float[Tensor, ""]


def beta_dpo(policy: Pairwise, reference: Pairwise, beta: Float[Tensor, ""]) -> Float[Tensor, " n"]:
    """DPO with the beta of its batch.

    Wu et al. 2024, arXiv 2407.08639: `-log sigmoid(beta D)`, with `beta` of `adaptive_beta` or
    `clamped_adaptive_beta`; no gradient flows into it. Log-probabilities are *summed*.
    """
    margin = policy.margin - reference.margin.detach()
    return -F.logsigmoid(beta.detach() * margin)


def adaptive_beta(
    gap: Float[Tensor, " n"], state: GapState, *, beta: float, alpha: float
) -> Float[Tensor, ""]:
    """Beta of a batch: larger where its pairs are further apart than usual.

    Wu et al. 2024, arXiv 2407.08639: `(1 + alpha (mean_i M_i - M_0)) beta`. Falls below 0 for a
    batch whose mean lies `1 / alpha` under `M_0`: then it trains against the labels.

    Args:
        gap: `M`, the rewards' margins `beta D`, of the whole optimizer batch.
        state: as it stood before this batch; `M_0` is its mean.
        beta: `beta_0`, above 0.
        alpha: at least 0; the paper uses 0.6.
    """
    return (1 + alpha * (gap.detach().mean() - state.mean)) * beta


def clamped_adaptive_beta(
    raw_gap: Float[Tensor, " n"], state: GapState, *, beta: float, alpha: float
) -> Float[Tensor, ""]:
    """Beta of a batch as the authors' code has it: of raw margins `D`, and at least 0.001.

    The gap is not multiplied by `beta_0` there, so that the same `alpha` reacts `1 / beta_0`
    times as strongly. It is the gap of the pairs that the filter kept, against a state that has
    seen this batch already; track the state from raw gaps too.
    """
    # The bound is the released code's: a beta below 0 would train against the labels.
    return adaptive_beta(raw_gap, state, beta=beta, alpha=alpha).clamp(min=1e-3)


def gap_filter(gap: Float[Tensor, " n"], state: GapState) -> Float[Tensor, " n"]:
    """Probabilities of keeping pairs in beta-DPO's filter, summing to 1: usual gaps first.

    Wu et al. 2024, arXiv 2407.08639: proportional to `exp(-((M_i - M_0) / s)^2 / 2)`.
    """
    # A batch of one, or of equal gaps, has no spread; 1e-12 leaves every pair drawable.
    distance = (gap.detach() - state.mean) / state.std.clamp(min=1e-6)
    kept = (-0.5 * distance**2).softmax(dim=-1) + 1e-12
    return kept / kept.sum()


def drawn_without_replacement(
    probabilities: Float[Tensor, " n"], *, share: float, generator: torch.Generator
) -> Int[Tensor, " m"]:
    """Indices of a share of the pairs, drawn by their probabilities; at least one of them.

    Wu et al. 2024, arXiv 2407.08639, keeps 0.8 of the batch, rounded down.
    """
    count = max(1, int(share * len(probabilities)))
    return torch.multinomial(probabilities, count, replacement=False, generator=generator)


def tracked_gap(state: GapState, gap: Float[Tensor, " n"], *, momentum: float = 0.9) -> GapState:
    """Return the state after a batch's gaps: moving averages of their mean and spread."""
    gap = gap.detach()
    mean = torch.lerp(gap.mean(), state.mean, momentum)
    return GapState(mean, torch.lerp(gap.std(correction=0), state.std, momentum))


# WPO and LD-DPO


def wpo_weight(per_token: Pairwise, alignment: Pairwise) -> Float[Tensor, " n"]:
    """Weight of a pair by how likely the policy itself would be to write it.

    Zhou et al. 2024, arXiv 2406.11827, eq. 2 and its aligned forms: the product over both answers
    of `exp(1/|y| sum_t (log pi(y_t) - a_t))`. Multiply the loss of any pair by it.

    Args:
        per_token: log-probabilities of the answers under the policy, *averaged* over their tokens.
        alignment: averages of `a_t`, what the policy would reach by itself: `log sum_v pi(v)^2`
            for sampled alignment (the paper's choice), `max_v log pi(v)` for greedy alignment,
            zeros for none.
    """
    chosen = per_token.chosen - alignment.chosen
    return (chosen + per_token.rejected - alignment.rejected).detach().exp()


def length_desensitized(whole: Pairwise, common: Pairwise, *, alpha: float) -> Pairwise:
    """Log-probabilities in which tokens beyond the shorter answer's length count less.

    Liu et al. 2024 (LD-DPO), arXiv 2409.06411: the first `min(n_w, n_l)` tokens in full, the rest
    times `alpha`. Take it of policy and reference alike, and give both to `dpo`.

    Args:
        whole: log-probabilities of the answers, *summed* over all their tokens.
        common: the same over their first `min(n_w, n_l)` tokens.
        alpha: from 0 (the rest counts nothing) to 1 (plain sums).
    """
    chosen = torch.lerp(common.chosen, whole.chosen, alpha)
    return Pairwise(chosen, torch.lerp(common.rejected, whole.rejected, alpha))
