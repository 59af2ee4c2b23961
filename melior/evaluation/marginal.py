"""Marginals held against the truth, where all rows can be listed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior.data.marginal import UNKNOWN, all_rows


def exact_log_marginals(
    rows: Int[Tensor, "rows d"],
    log_joint: Float[Tensor, " rows"],
    queries: Int[Tensor, "n d"],
) -> Float[Tensor, " n"]:
    """Return the log of the summed probabilities of all rows that agree with each query.

    Args:
        rows: every complete row.
        log_joint: of each, up to a constant.
        queries: 0 where a value is summed over.
    """
    log_joint = log_joint.double().log_softmax(0)
    return torch.stack([log_joint[_agreeing(rows, query)].logsumexp(0) for query in queries])


@torch.no_grad()
def chained_log_joint(
    conditionals: Callable[[Int[Tensor, "n d"]], Float[Tensor, "n d k"]],
    order: Int[Tensor, " d"],
    n_values: int,
) -> Float[Tensor, " rows"]:
    """Return the exact log-probability of every row that is drawn position by position.

    Args:
        conditionals: logits of the values of every position.
        order: which position is drawn first, second, ...
        n_values: of each position.

    Returns:
        In the order of `data.marginal.all_rows`.
    """
    length = len(order)
    log_joint = torch.zeros(1, dtype=torch.float64)
    for known, place in enumerate(order.tolist()):
        begun = torch.full((n_values**known, length), UNKNOWN)
        if known:
            begun[:, order[:known]] = all_rows(known, n_values)
        own = conditionals(begun)[:, place].double().log_softmax(-1)
        log_joint = (log_joint[:, None] + own).flatten()
    # Axes stand in the order of drawing; the table of rows has them from left to right.
    return log_joint.view((n_values,) * length).permute(order.argsort().tolist()).flatten()


def divergence(log_p: Float[Tensor, " rows"], log_q: Float[Tensor, " rows"]) -> float:
    """Return `KL(p || q)` in nats; both are normalised."""
    return float((log_p.exp() * (log_p - log_q)).sum())


def separated(values: Float[Tensor, " n"], least: float) -> Int[Tensor, " kept"]:
    """Return which values stay when, from the lowest up, each must exceed the last kept by `least`.

    The released evaluation of arXiv 2310.12920 correlates only these, 2 to 10 nats apart, which
    leaves out near-ties and so raises the correlation; report it beside that of all values.
    """
    kept: list[int] = []
    for row in values.argsort().tolist():
        if not kept or values[row] - values[kept[-1]] > least:
            kept.append(row)
    return torch.tensor(kept)


def _agreeing(rows: Int[Tensor, "rows d"], query: Int[Tensor, " d"]) -> Int[Tensor, " agreeing"]:
    """Return which rows have all that a query knows; fewer are looked at with each position."""
    left = torch.arange(len(rows))
    for place in (query != UNKNOWN).nonzero()[:, 0].tolist():
        left = left[rows[left, place] == query[place]]
    return left
