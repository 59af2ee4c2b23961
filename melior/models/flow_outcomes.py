"""Networks beside those of flows: what is new about a state, and the sum over all outcomes."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from melior.models.marginal import ConditionalModel

LATENT = 128
"""Width of what a random network says of a state; GAFN's authors' code."""


class Novelty(nn.Module):
    """Random network distillation: a state is new where a network fails to foretell another.

    Burda, Edwards, Storkey, Klimov 2019, arXiv 1810.12894; as GAFN uses it, `eta * ||predictor -
    target||`.
    """

    def __init__(self, n_features: int, *, width: int = 256, eta: float = 0.005) -> None:
        """Set up both networks; the target's never learns.

        Args:
            n_features: numbers that describe a state.
            width: of the hidden layers.
            eta: scale; GAFN's are 0.001 to 0.005 by the size of the grid.
        """
        super().__init__()
        self.eta = eta
        self.predictor = _perceptron(n_features, width, LATENT)
        self.target = _perceptron(n_features, width, LATENT).requires_grad_(False)

    def error(self, features: Float[Tensor, "n f"]) -> Float[Tensor, " n"]:
        """Return the squared distance, the predictor's loss."""
        return (self.predictor(features) - self.target(features)).square().sum(-1)

    @torch.no_grad()
    def log_novelty(self, features: Float[Tensor, "n f"]) -> Float[Tensor, " n"]:
        """Return the log of a state's novelty."""
        # Where the predictor is exact the distance is 0 and its log -inf: as little as can be.
        return (self.eta * self.error(features).sqrt()).log()


class Predictor(nn.Module):
    """`N(s'|s)`, the sum over outcomes of `r F P_F`, and `Q(y|s',s)`, the shares of outcomes in it.

    Pan, Jain, Madan, Bengio 2024, arXiv 2310.03419; here for outcomes that can be listed.
    """

    def __init__(
        self, n_features: int, n_actions: int, n_outcomes: int, *, width: int = 256
    ) -> None:
        """Set up both networks.

        Args:
            n_features: numbers that describe a state.
            n_actions: without the stop.
            n_outcomes: how many outcomes are listed.
            width: of the hidden layers.
        """
        super().__init__()
        self.n_actions = n_actions
        self.sums = _perceptron(n_features, width, n_actions + 1)
        self.shares = _perceptron(n_features + n_actions + 1, width, n_outcomes)

    def log_sum(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n actions"]:
        """Return `log N` of all actions, not normalised, the stop's being the last."""
        return self.sums(features)

    def log_posterior(
        self, features: Float[Tensor, "n f"], actions: Int[Tensor, " n"]
    ) -> Float[Tensor, "n y"]:
        """Return `log Q` of all outcomes at the edge that an action takes from a state."""
        taken = F.one_hot(actions, self.n_actions + 1).to(features)
        return self.shares(torch.cat([features, taken], -1)).log_softmax(-1)


class Speller(nn.Module):
    """`N(s'|s)` as of `Predictor`, and `Q(y|s',s)` by the letters of `y` that `s'` has not yet.

    For strings from the left, where an edge is told by where it leads; no outcome is listed. A row
    that `letters` reads is `s'`, and behind it what is written of `y` so far.
    """

    def __init__(self, length: int, n_letters: int, *, width: int = 256) -> None:
        """Set up both networks; `width` is that of the hidden layers."""
        super().__init__()
        self.sums = _perceptron(length * n_letters, width, n_letters + 1)
        self.letters = ConditionalModel(2 * length, n_letters, width=width)

    def log_sum(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n actions"]:
        """Return `log N` of all actions, not normalised, the stop's being the last."""
        return self.sums(features)

    def following(
        self, begun: Int[Tensor, "n d"], written: Int[Tensor, "n d"]
    ) -> Float[Tensor, "n d k"]:
        """Return the logits of the letters of outcomes that begin so, after what is written."""
        return self.letters(torch.cat([begun, written], 1))[:, begun.shape[1] :]


@runtime_checkable
class SaysSums(Protocol):
    """Whatever says `log N` of all actions at a state."""

    def log_sum(self, features: Float[Tensor, "n f"]) -> Float[Tensor, "n actions"]:
        """Return it, not normalised."""


def _perceptron(n_in: int, width: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_in, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, n_out),
    )
