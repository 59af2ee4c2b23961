"""Networks of marginals: one number for any subset of positions, and conditionals of the rest."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class MarginalModel(nn.Module):
    """`f(x_S)`, the log-marginal of what is known, up to a constant; 0 stands for unknown."""

    def __init__(self, length: int, n_values: int, *, width: int = 128, blocks: int = 3) -> None:
        """Set up the layers; `length` positions of values 1 to `n_values`."""
        super().__init__()
        self.trunk = _Trunk(length, n_values, width=width, blocks=blocks)
        self.head = nn.Linear(width, 1)

    def forward(self, tokens: Int[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the log-marginals, one reading each."""
        return self.head(self.trunk(tokens))[:, 0]

    def normalised(self, tokens: Int[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return log-probabilities: less the value where nothing is known, which ought to be 0."""
        return self(tokens) - self(torch.zeros_like(tokens[:1]))


class ConditionalModel(nn.Module):
    """`p(x_d | x_S)`: logits of the values of every position, given what is known."""

    def __init__(self, length: int, n_values: int, *, width: int = 128, blocks: int = 3) -> None:
        """Set up the layers; `length` positions of values 1 to `n_values`."""
        super().__init__()
        self.length, self.n_values = length, n_values
        self.trunk = _Trunk(length, n_values, width=width, blocks=blocks)
        self.head = nn.Linear(width, length * n_values)

    def forward(self, tokens: Int[Tensor, "n d"]) -> Float[Tensor, "n d k"]:
        """Return the logits; those at known positions say nothing."""
        return self.head(self.trunk(tokens)).unflatten(-1, (self.length, self.n_values))


class _Trunk(nn.Module):
    """A residual perceptron on the one-hot values, unknown being one of them."""

    def __init__(self, length: int, n_values: int, *, width: int, blocks: int) -> None:
        super().__init__()
        self.n_values = n_values
        self.first = nn.Linear(length * (n_values + 1), width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LeakyReLU(), nn.Linear(width, width)) for _ in range(blocks)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        one_hot = F.one_hot(tokens, self.n_values + 1).flatten(1)
        hidden = self.first(one_hot.to(self.first.weight))
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return F.leaky_relu(hidden)
