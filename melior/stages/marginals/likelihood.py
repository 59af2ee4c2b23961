"""Marginals of rows that are given: conditionals by likelihood first, then marginals by agreement.

Liu, Ramadge, Adams 2024, arXiv 2310.12920, maximum likelihood in two stages. The first is an
any-order autoregressive model; the second holds it still and teaches the marginals to agree with
it, on rows of the data and on chains of the model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior.data.marginal import drawn_counts, drawn_orders, revealed
from melior.losses.marginal import any_order
from melior.models.marginal import ConditionalModel, MarginalModel
from melior.records import Metrics
from melior.stages.marginals.energy import Chains, Walkers, inconsistency
from melior.training.checkpoint import State


@dataclass
class Shuffled:
    """Batches of rows, each pass in an order of its own; with the step that each row is read at.

    Yields without end; `state` is the place in the pass.
    """

    rows: Int[Tensor, "rows d"]
    batch_size: int
    generator: torch.Generator
    order: Tensor = field(init=False)
    place: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Begin before the first pass."""
        self.order = torch.empty(0, dtype=torch.long)

    def __iter__(self) -> Iterator[list[Chains]]:
        """Yield a batch for each step; the last of a pass may be short."""
        length, generator = self.rows.shape[1], self.generator
        while True:
            if self.place >= len(self.order):
                self.order = torch.randperm(len(self.rows), generator=generator)
                self.place = 0
            tokens = self.rows[self.order[self.place : self.place + self.batch_size]]
            self.place += len(tokens)
            order = drawn_orders(len(tokens), length, generator=generator)
            counts = drawn_counts(len(tokens), length, generator=generator)
            yield [Chains(tokens, order, counts)]

    def state(self) -> State:
        """Return the pass and the place in it."""
        return {"order": self.order, "place": self.place}

    def load_state(self, state: State) -> None:
        """Go back to it."""
        order = state["order"]
        assert isinstance(order, Tensor)
        self.order, self.place = order, int(state["place"])


def with_chains(rows: Shuffled, walkers: Walkers) -> Iterator[list[Chains]]:
    """Yield rows of the data and as many chains together: where marginals will be asked for."""
    for (own,), (drawn,) in zip(rows, walkers, strict=False):
        yield [
            Chains(
                torch.cat([own.tokens, drawn.tokens]),
                torch.cat([own.order, drawn.order]),
                torch.cat([own.known, drawn.known]),
            )
        ]


def likelihood(conditionals: ConditionalModel, batch: Chains) -> tuple[Float[Tensor, ""], Metrics]:
    """Return the first stage's loss: nats a row, in any order."""
    seen = revealed(batch.tokens, batch.order, batch.known)
    is_known = batch.order < batch.known[:, None]
    loss = any_order(conditionals(seen), batch.tokens, is_known).mean()
    return loss, {"loss": loss.item(), "nll": loss.item()}


def distil(
    marginals: MarginalModel, conditionals: ConditionalModel, batch: Chains
) -> tuple[Float[Tensor, ""], Metrics]:
    """Return the second stage's loss: consistency over all steps, and 0 where nothing is known."""
    residual = inconsistency(marginals, conditionals, batch).square().mean()
    anchor = marginals(torch.zeros_like(batch.tokens[:1]))[0].square()
    loss = batch.tokens.shape[1] * residual + anchor
    return loss, {"loss": loss.item(), "inconsistency": residual.item()}
