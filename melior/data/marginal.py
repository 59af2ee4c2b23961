"""Rows of tokens of which some are marginalised out, and the orders in which they are revealed.

Tokens are 1 to `k`; 0 stands for a value that is summed over. An order gives each position its
rank: rank 0 is revealed first. Axes: `n` rows, `d` positions, `k` values.
"""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

UNKNOWN = 0
"""Stands where a value is summed over."""


def revealed(
    tokens: Int[Tensor, "n d"], order: Int[Tensor, "n d"], count: Int[Tensor, " n"]
) -> Int[Tensor, "n d"]:
    """Keep the first `count` positions of each row's order."""
    return tokens.where(order < count[:, None], UNKNOWN)


def drawn_orders(n: int, length: int, *, generator: torch.Generator) -> Int[Tensor, "n d"]:
    """Draw orders, every permutation equally likely."""
    keys = torch.rand(n, length, generator=generator, device=generator.device)
    return keys.argsort(-1)


def drawn_counts(n: int, length: int, *, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Draw how many positions are known before a step: 0 to one less than all."""
    return torch.randint(length, (n,), generator=generator, device=generator.device)


def at_rank(order: Int[Tensor, "n d"], rank: Int[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return which position of each row has a rank."""
    return (order == rank[:, None]).long().argmax(-1)


def all_rows(length: int, n_values: int, *, most: int = 2_000_000) -> Int[Tensor, "n d"]:
    """Return every complete row, counting up.

    Raises:
        ValueError: there are more than `most`.
    """
    count = n_values**length
    if count > most:
        raise ValueError(f"rows: at most {most} can be listed; found {n_values}^{length} of them")
    places = n_values ** torch.arange(length - 1, -1, -1)
    return torch.arange(count)[:, None] // places % n_values + 1
