"""Rows drawn value by value in any order, chains of them, and the likelihood that costs as much."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior.checks import in_range
from melior.data.marginal import UNKNOWN, at_rank, drawn_orders, revealed
from melior.losses.marginal import log_conditionals

Conditionals = Callable[[Int[Tensor, "n d"]], Float[Tensor, "n d k"]]
"""From rows with unknown values to the logits of the values of every position."""


@torch.no_grad()
def any_order(
    conditionals: Conditionals, n: int, length: int, *, generator: torch.Generator
) -> Int[Tensor, "n d"]:
    """Draw rows from nothing, each in an order of its own."""
    nothing = torch.full((n, length), UNKNOWN, device=generator.device)
    return completed(
        conditionals, nothing, drawn_orders(n, length, generator=generator), 0, generator=generator
    )


@torch.no_grad()
def block_gibbs(
    conditionals: Conditionals,
    tokens: Int[Tensor, "n d"],
    block: int,
    *,
    generator: torch.Generator,
) -> Int[Tensor, "n d"]:
    """Erase `block` positions of each row and draw them again, one after another.

    Liu, Ramadge, Adams 2024, arXiv 2310.12920: chains that persist between steps of training, which
    leave the joint as it is where the conditionals of all orders agree. The paper's block is 4.
    """
    n, length = tokens.shape
    in_range("block", block, 1, length)
    order = drawn_orders(n, length, generator=generator)
    return completed(conditionals, tokens, order, length - block, generator=generator)


@torch.no_grad()
def completed(
    conditionals: Conditionals,
    tokens: Int[Tensor, "n d"],
    order: Int[Tensor, "n d"],
    known: int,
    *,
    generator: torch.Generator,
) -> Int[Tensor, "n d"]:
    """Keep the first `known` positions of each order, and draw the rest in that order."""
    n, length = tokens.shape
    rows = torch.arange(n, device=tokens.device)
    counts = tokens.new_full((n,), known)
    tokens = revealed(tokens, order, counts)
    for rank in range(known, length):
        place = at_rank(order, counts + (rank - known))
        chances = conditionals(tokens)[rows, place].softmax(-1)
        if not chances.isfinite().all():
            raise ValueError(
                "the network's probabilities must be finite; found nan or infinity: it was damaged,"
                " or training made it so; lower --learning-rate"
            )
        value = chances.multinomial(1, generator=generator) + 1
        tokens = tokens.scatter(1, place[:, None], value)
    return tokens


@torch.no_grad()
def log_likelihood(
    conditionals: Conditionals, tokens: Int[Tensor, "n d"], order: Int[Tensor, "n d"]
) -> Float[Tensor, " n"]:
    """Return the log-likelihood of what is known of each row, revealed in an order.

    A row is read as often as it knows positions, and no more. Those that are unknown must come last
    in its order. What a `MarginalModel` says at one reading; several orders together by
    `losses.marginal.ensemble`.
    """
    known = (tokens != UNKNOWN).sum(-1)
    total = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    for rank in range(int(known.max())):
        rows = (known > rank).nonzero()[:, 0]
        own, own_order = tokens[rows], order[rows]
        counts = known.new_full((len(own),), rank)
        logits = conditionals(revealed(own, own_order, counts))
        place = at_rank(own_order, counts)[:, None]
        # Of unknown values there is no log-probability, and none is asked for.
        found = log_conditionals(logits, own.clamp(min=1)).gather(-1, place)[:, 0]
        total[rows] += found.double()
    return total
