"""Targets of marginals that are known exactly: Ising's lattice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior.checks import in_range
from melior.data.marginal import all_rows


@dataclass(frozen=True)
class Ising:
    """Spins on a torus of `side * side` sites, tokens 1 and 2 being -1 and +1.

    arXiv 2310.12920: `log f(x) = x' (coupling A) x + field sum(x)`, with `A` the symmetric
    matrix of neighbours, so that **each edge counts twice**; the paper's coupling is 0.1 and its
    field 0.2.
    """

    side: int
    coupling: float = 0.1
    field: float = 0.2

    def __post_init__(self) -> None:
        """Check the ranges; of two sites across, each would be the other's neighbour twice."""
        in_range("side", self.side, 3)
        in_range("coupling", self.coupling)
        in_range("field", self.field)

    @property
    def length(self) -> int:
        """How many sites there are."""
        return self.side**2

    def log_target(self, tokens: Int[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return `log f` of complete rows, site after site, line after line."""
        spins = (2 * tokens - 3).to(torch.get_default_dtype()).unflatten(-1, (self.side, self.side))
        neighbours = spins.roll(1, -1) + spins.roll(1, -2)
        bonds = (spins * neighbours).flatten(1).sum(-1)
        return 2 * self.coupling * bonds + self.field * spins.flatten(1).sum(-1)

    def log_z(self) -> float:
        """Return the log of the sum of `f` over all rows, by the transfer matrix, in float64.

        `Z = trace T^side`, where `T` couples a line of sites to the next; each line's own bonds and
        field are split evenly between the two matrices that it stands in, so `T` is symmetric.
        """
        lines = (2 * all_rows(self.side, 2) - 3).double()
        own = 2 * self.coupling * (lines * lines.roll(1, -1)).sum(-1) + self.field * lines.sum(-1)
        transfer = 2 * self.coupling * lines @ lines.T + (own[:, None] + own[None]) / 2
        largest = transfer.max()
        values = torch.linalg.eigvalsh((transfer - largest).exp())
        return float(values.pow(self.side).sum().log() + self.side * largest)
