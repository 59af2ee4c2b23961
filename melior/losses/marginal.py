"""Marginals that are said at once: how they are held together, and how they learn a target.

Liu, Ramadge, Adams 2024, arXiv 2310.12920 (MaM). One network gives `f(x_S) = log p(x_S)`, up to a
constant, of any subset of positions; another the conditionals of the positions that are missing.
Residuals are 0 where both agree; square them.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LEAST_SPREAD = 1e-6
"""Added to a standard deviation, as that of a batch of equal rows is 0."""


def self_consistency(
    log_before: Float[Tensor, " n"],
    log_conditional: Float[Tensor, " n"],
    log_after: Float[Tensor, " n"],
) -> Float[Tensor, " n"]:
    """Of one step of one order: `f(x_<d) + log p(x_d | x_<d) - f(x_<=d)`.

    arXiv 2310.12920, the scalable form: as conditionals sum to 1, its holding of all values implies
    the rule of sums. Subsampled to one order and step of each row; `D` times its mean estimates the
    sum over steps.

    Args:
        log_before: the marginal's value before the step, where nothing may be known yet.
        log_conditional: of the value that the step reveals.
        log_after: the marginal's value after it, where all may be known.
    """
    return log_before + log_conditional - log_after


def any_order(
    logits: Float[Tensor, "n d k"], tokens: Int[Tensor, "n d"], is_known: Bool[Tensor, "n d"]
) -> Float[Tensor, " n"]:
    """Negative log-likelihood of rows in any order, from one reading of each.

    arXiv 2310.12920, stage 1, after Uria, Murray, Larochelle 2014 and Hoogeboom et al. 2022, arXiv
    2110.02037: with `t` of `D` positions known, `t` drawn evenly from 0 to D-1, `D / (D - t)` times
    the sum of `-log p(x_d | known)` over the others. A row of which all is known gives 0.

    Args:
        logits: of the values of every position; those of known positions are not read.
        tokens: the complete rows, 1 to `k`.
        is_known: which positions the network saw.
    """
    log_probs = log_conditionals(logits, tokens).where(~is_known, 0.0)
    missing = (~is_known).sum(-1)
    return -log_probs.sum(-1) * tokens.shape[-1] / missing.clamp(min=1)


def log_conditionals(
    logits: Float[Tensor, "n d k"], tokens: Int[Tensor, "n d"]
) -> Float[Tensor, "n d"]:
    """Return what the conditionals give to the rows' own values, position by position."""
    return logits.log_softmax(-1).gather(-1, tokens[..., None] - 1)[..., 0]


def towards_energy(
    log_marginal: Float[Tensor, " n"], advantage: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Whose gradient is REINFORCE's for `KL(p || target)`: `advantage * f(x)`, rows being drawn.

    arXiv 2310.12920, energy-based training: `E of grad f (f - log target)`. The advantage is
    detached; the value says nothing, only its gradient does.

    Args:
        log_marginal: of complete rows, sampled from the model.
        advantage: `centred` or `standardised` differences `f(x) - log target(x)`.
    """
    return advantage.detach() * log_marginal


def centred(differences: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Subtract the mean, a baseline."""
    return differences - differences.mean()


def standardised(differences: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Subtract the mean and divide by the standard deviation, as the released code does.

    More than a baseline: near the optimum the differences shrink and these do not, so that
    consistency weighs less and less.
    """
    return centred(differences) / (differences.std(unbiased=False) + LEAST_SPREAD)


def clipped(differences: Float[Tensor, " n"], *, deviations: float = 20.0) -> Float[Tensor, " n"]:
    """Hold values within some median absolute deviations of the median.

    A target of next to nothing, such as that of an invalid molecule, would else be all that a batch
    tells.
    """
    middle = differences.median()
    spread = (differences - middle).abs().median()
    # Where most rows are alike there is no spread to measure by, and what differs is all there is.
    reach = torch.where(spread > 0, deviations * spread, torch.inf)
    return differences.clamp(middle - reach, middle + reach)


def ensemble(log_probs: Float[Tensor, "orders n"]) -> Float[Tensor, " n"]:
    """Return the log-likelihood of a mixture of orders: of the mean probability, not of logs."""
    return log_probs.logsumexp(0) - math.log(len(log_probs))
