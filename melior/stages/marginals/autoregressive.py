"""Rivals of marginals: conditionals that learn alone, in one order, by all steps or by one.

At an energy, what arXiv 2310.12920 calls ARM pays a reading for each position of each row; ARM-MC
reads one step and multiplies by their number, which is unbiased and far from the truth for any
single row. Of rows that are given, conditionals of one order learn by likelihood.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior.data.marginal import UNKNOWN, drawn_counts, revealed
from melior.losses.marginal import log_conditionals, towards_energy
from melior.models.marginal import ConditionalModel
from melior.records import Metrics
from melior.sampling.marginal import completed
from melior.stages.marginals.energy import Baseline, Chains, Target, finite


@dataclass(frozen=True)
class Draws:
    """Rows of the model, and two steps of each, drawn apart."""

    tokens: Int[Tensor, "n d"]
    judged: Int[Tensor, " n"]
    """The step from which `one_step` says how far a row is from the target."""
    moved: Int[Tensor, " n"]
    """The step that it moves."""


def draws(
    conditionals: ConditionalModel, *, count: int, generator: torch.Generator
) -> Iterator[list[Draws]]:
    """Yield batches without end, drawn from left to right by the model as it then is."""
    length = conditionals.length
    order = torch.arange(length, device=generator.device).expand(count, -1)
    nothing = torch.full_like(order, UNKNOWN)
    while True:
        tokens = completed(conditionals, nothing, order, 0, generator=generator)
        steps = (drawn_counts(count, length, generator=generator) for _ in range(2))
        yield [Draws(tokens, *steps)]


def all_steps(
    conditionals: ConditionalModel, target: Target, batch: Draws, *, baseline: Baseline
) -> tuple[Float[Tensor, ""], Metrics]:
    """Return the loss of a batch whose likelihoods are read in full: ARM, `D` readings a row."""
    n, length = batch.tokens.shape
    steps = torch.arange(length, device=batch.tokens.device).repeat_interleave(n)
    own = at_step(conditionals, batch.tokens.repeat(length, 1), steps)
    log_p = own.view(length, n).sum(0)
    return _pulled(log_p, log_p, finite(target, batch.tokens), baseline)


def one_step(
    conditionals: ConditionalModel, target: Target, batch: Draws, *, baseline: Baseline
) -> tuple[Float[Tensor, ""], Metrics]:
    """Return the loss of a batch whose likelihoods are guessed from one step: ARM-MC.

    As in the authors' code: the advantage is taken from one step and the gradient from another, so
    that their product is unbiased.
    """
    length = batch.tokens.shape[1]
    with torch.no_grad():
        judged = length * at_step(conditionals, batch.tokens, batch.judged)
    moved = length * at_step(conditionals, batch.tokens, batch.moved)
    return _pulled(moved, judged, finite(target, batch.tokens), baseline)


def one_order(conditionals: ConditionalModel, batch: Chains) -> tuple[Float[Tensor, ""], Metrics]:
    """Return nats a row from left to right, by the step of each that comes next: ARM on rows.

    The first stage on rows with the order held still. One reading of a row tells of one position
    only, as the others are not asked for with as much known: `D` times it is unbiased.
    """
    found = at_step(conditionals, batch.tokens, batch.known)
    loss = -batch.tokens.shape[1] * found.mean()
    return loss, {"loss": loss.item(), "nll": loss.item()}


def at_step(
    conditionals: ConditionalModel, tokens: Int[Tensor, "n d"], step: Int[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Return the log-probability of one position of each row, given those to its left."""
    order = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    found = log_conditionals(conditionals(revealed(tokens, order, step)), tokens)
    return found.gather(-1, step[:, None])[:, 0]


def _pulled(
    log_p: Tensor, judged: Tensor, wanted: Tensor, baseline: Baseline
) -> tuple[Float[Tensor, ""], Metrics]:
    difference = (judged - wanted).detach()
    loss = towards_energy(log_p, baseline(difference)).mean()
    spread = difference.double().std(unbiased=False).item()
    return loss, {"loss": loss.item(), "spread": spread}
