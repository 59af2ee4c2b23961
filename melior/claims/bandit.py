"""Log-linear bandits: a prompt is a set of actions with features, a policy a softmax over them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from melior.claims.worlds import fitted
from melior.losses.reward import bradley_terry
from melior.types import Pairwise


@dataclass(frozen=True)
class Pairs:
    """Two actions of each prompt, the preferred one first."""

    features: Float[Tensor, "*e n a d"]
    """Of all actions of the prompt."""
    chosen: Int[Tensor, "*e n"]
    rejected: Int[Tensor, "*e n"]

    def of(self, rows: Int[Tensor, "e b"]) -> Pairs:
        """Return some pairs of each seed."""
        take = partial(rows_of, rows=rows)
        return Pairs(take(self.features), take(self.chosen), take(self.rejected))


def rows_of(
    values: Shaped[Tensor, "e n ..."], rows: Int[Tensor, "e b"]
) -> Shaped[Tensor, "e b ..."]:
    """Return some rows of each seed."""
    return values[torch.arange(len(rows))[:, None], rows]


def log_probs(
    features: Float[Tensor, "e n a d"], weights: Float[Tensor, "e m d"]
) -> Float[Tensor, "e n a"]:
    """Return the policy's log-probabilities of all actions, `m` being `n` or 1."""
    return (features @ weights[..., None])[..., 0].log_softmax(-1)


def pairwise(table: Float[Tensor, "e n a"], pairs: Pairs) -> Pairwise:
    """Return what a policy gives to both actions of each pair, seeds one after another."""
    chosen, rejected = (
        table.gather(-1, side[..., None]).flatten() for side in (pairs.chosen, pairs.rejected)
    )
    return Pairwise(chosen, rejected)


def expected_reward(
    table: Float[Tensor, "e n a"], rewards: Float[Tensor, "e n a"]
) -> Float[Tensor, " e"]:
    """Return the exact expected reward of a policy."""
    return (table.exp() * rewards).sum(-1).mean(-1)


def divergence(
    table: Float[Tensor, "e n a"], reference: Float[Tensor, "e n a"]
) -> Float[Tensor, " e"]:
    """Return the exact KL of a policy to its reference, in nats."""
    return (table.exp() * (table - reference)).sum(-1).mean(-1)


def reward_margins(pairs: Pairs) -> Float[Tensor, "e n"]:
    """Fit a linear reward model by Bradley-Terry and return its margins on the pairs.

    Few numbers on many pairs cannot learn the labels by heart: no early stopping is needed.
    """
    chosen, rejected = (
        rows_of(
            pairs.features.flatten(1, 2),
            side + pairs.features.shape[2] * torch.arange(side.shape[1]),
        )
        for side in (pairs.chosen, pairs.rejected)
    )

    def rewards(weights: Tensor) -> Pairwise:
        return Pairwise(
            *((side @ weights[..., None])[..., 0].flatten() for side in (chosen, rejected))
        )

    def loss(weights: Tensor, _: int) -> Tensor:
        return bradley_terry(rewards(weights)).reshape(pairs.chosen.shape)

    start = torch.zeros(len(pairs.chosen), pairs.features.shape[-1], dtype=torch.float64)
    weights = fitted(start, loss, steps=300, learning_rate=0.05)
    return rewards(weights).margin.reshape(pairs.chosen.shape)
