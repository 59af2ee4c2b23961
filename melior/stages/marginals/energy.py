"""Marginals of a target known up to a constant, learned at a number of readings that stays small.

Liu, Ramadge, Adams 2024, arXiv 2310.12920, energy-based training. Chains persist from step to step;
the marginals of their rows are pulled to the target by REINFORCE, and the steps of their orders are
held together. The conditionals, from which the chains are drawn, learn by consistency alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior.data.marginal import UNKNOWN, at_rank, drawn_counts, drawn_orders, revealed
from melior.losses.marginal import log_conditionals, self_consistency, towards_energy
from melior.models.marginal import ConditionalModel, MarginalModel
from melior.records import Metrics
from melior.sampling.marginal import any_order, block_gibbs
from melior.training.checkpoint import State

Target = Callable[[Int[Tensor, "n d"]], Float[Tensor, " n"]]
"""From complete rows to their log-density, up to a constant."""
Baseline = Callable[[Float[Tensor, " n"]], Float[Tensor, " n"]]
"""`standardised`, as released, or `centred`."""
Pull = Callable[
    [MarginalModel, ConditionalModel, Target, "Chains"], tuple[Float[Tensor, ""], Metrics]
]
"""`energy` with a baseline, or `squared_energy`."""


@dataclass(frozen=True)
class Chains:
    """Rows of the model, and for each the step of an order that is held together."""

    tokens: Int[Tensor, "n d"]
    order: Int[Tensor, "n d"]
    known: Int[Tensor, " n"]
    """How many positions are revealed before the step."""


FEW = 0.1
"""Share of rows that differ from one another, below which chains are stuck and drawn anew."""


@dataclass
class Walkers:
    """Chains that persist: moved on by a block at each step, drawn anew at each epoch's start.

    Also where hardly any of them differ. Yields batches without end; `state` is where they are.
    """

    conditionals: ConditionalModel
    count: int
    block: int
    steps_per_epoch: int
    generator: torch.Generator
    tokens: Tensor = field(init=False)
    taken: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        """Begin nowhere: the first step draws them."""
        self.tokens = torch.full((self.count, self.conditionals.length), UNKNOWN)

    def __iter__(self) -> Iterator[list[Chains]]:
        """Yield a batch for each step."""
        count, length, generator = self.count, self.conditionals.length, self.generator
        while True:
            if self.taken % self.steps_per_epoch == 0 or self._are_stuck():
                self.tokens = any_order(self.conditionals, count, length, generator=generator)
            self.tokens = block_gibbs(
                self.conditionals, self.tokens, self.block, generator=generator
            )
            self.taken += 1
            order = drawn_orders(count, length, generator=generator)
            yield [Chains(self.tokens, order, drawn_counts(count, length, generator=generator))]

    def state(self) -> State:
        """Return where the chains are."""
        return {"tokens": self.tokens, "taken": self.taken}

    def load_state(self, state: State) -> None:
        """Go back to where they were."""
        tokens = state["tokens"]
        assert isinstance(tokens, Tensor)
        self.tokens, self.taken = tokens, int(state["taken"])

    def _are_stuck(self) -> bool:
        possible = self.conditionals.n_values**self.conditionals.length
        return len(self.tokens.unique(dim=0)) < FEW * min(self.count, possible)


def inconsistency(
    marginals: MarginalModel, conditionals: ConditionalModel, batch: Chains
) -> Float[Tensor, " n"]:
    """Return the residual of each row's step."""
    rows = torch.arange(len(batch.tokens), device=batch.tokens.device)
    before = revealed(batch.tokens, batch.order, batch.known)
    after = revealed(batch.tokens, batch.order, batch.known + 1)
    own = log_conditionals(conditionals(before), batch.tokens)
    own = own[rows, at_rank(batch.order, batch.known)]
    log_before, log_after = marginals(torch.cat([before, after])).chunk(2)
    return self_consistency(log_before, own, log_after)


def energy(
    marginals: MarginalModel,
    conditionals: ConditionalModel,
    target: Target,
    batch: Chains,
    *,
    baseline: Baseline,
    alpha: float = 4.0,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Return the loss of a batch of chains.

    Args:
        marginals: learns.
        conditionals: learns, by consistency.
        target: log-density of complete rows.
        batch: the chains.
        baseline: from differences to advantages.
        alpha: weight of consistency; the paper's is 4.
    """
    wanted = finite(target, batch.tokens)
    found = marginals(batch.tokens)
    difference = (found - wanted).detach()
    pull = towards_energy(found, baseline(difference)).mean()
    length = batch.tokens.shape[1]
    residual = inconsistency(marginals, conditionals, batch).square().mean()
    # The anchor only fixes the constant of the marginals: the code's is D log 2, whatever log Z is.
    nothing = marginals(torch.zeros_like(batch.tokens[:1]))[0]
    anchor = (nothing - length * math.log(2)).square()
    loss = pull + alpha * (length * residual + anchor)
    return loss, {
        "loss": loss.item(),
        "inconsistency": residual.item(),
        "spread": difference.double().std(unbiased=False).item(),
    }


def squared_energy(
    marginals: MarginalModel,
    conditionals: ConditionalModel,
    target: Target,
    batch: Chains,
    *,
    alpha: float = 4.0,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Return the loss of a batch of rows from anywhere: marginals of whole rows are the target's.

    The other objective of the authors' code, there called FM: `(f(x) - log target(x))^2` in the
    place of REINFORCE. It needs no anchor, as the value of nothing becomes `log Z`.
    """
    difference = marginals(batch.tokens) - finite(target, batch.tokens)
    residual = inconsistency(marginals, conditionals, batch).square().mean()
    loss = difference.square().mean() + alpha * batch.tokens.shape[1] * residual
    return loss, {
        "loss": loss.item(),
        "inconsistency": residual.item(),
        "spread": difference.detach().double().std(unbiased=False).item(),
    }


def finite(target: Target, tokens: Int[Tensor, "n d"]) -> Float[Tensor, " n"]:
    """Return log-densities, once they can be learned from.

    Raises:
        ValueError: one is not finite.
    """
    wanted = target(tokens)
    if not wanted.isfinite().all():
        row = int((~wanted.isfinite()).nonzero()[0])
        raise ValueError(
            f"target: finite log-densities are needed; found {float(wanted[row])} of"
            f" {tokens[row].tolist()}; give what cannot be a floor, such as -1e4"
        )
    return wanted
