"""The dynamics reward: how much a next state looks like something the real world would do (MOREC).

Luo, Xu, Cao, Yu 2023, arXiv 2310.05422. One discriminator only tells the data from the last model
that it met. The average over those of all iterations tells it from every model met on the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from melior.models.control import DiscriminatorOptions, Discriminators, gathered
from melior.models.parts import load_part, save_part

LEAST = math.log1p(math.exp(-1))
"""The reward of what no snapshot finds more real than generated: none is lower."""
_CERTAIN = 1 - 1e-6
"""The highest share that is read: `-log(1 - p)` stays below 14."""
_ROWS = 16_384
"""Transitions judged at once, which bounds the memory."""


@dataclass(frozen=True)
class Snapshot:
    """A discriminator as it was at one iteration, and the ends of its scale."""

    discriminator: Discriminators
    """Of one member."""
    real: float
    """Its mean logit of logged transitions."""
    generated: float
    """Its mean logit of those that the model of that iteration generated."""


def spread(count: int, *, last: int, every: int) -> list[int]:
    """Return which of `count` snapshots make the average: every so many of the last, and the last.

    The released code keeps the last 400, and of them each 10th (MOPO) or 40th (MOBILE). It counts
    from the first; we count back from the end, so that the newest is always there.
    """
    return sorted(range(count - 1, max(-1, count - last - 1), -every))


class DynamicsReward(nn.Module):
    """The average of snapshots, each on the scale from what was generated to what was real.

    As in the released code, with its constant `c` of 1:

        x_k = clamp(l_k, generated_k, real_k)
        u_k = 2 (x_k - generated_k) / (real_k - generated_k) - 1          in [-1, 1]
        r   = -log(1 - mean_k sigmoid(u_k))                               in [0.313, 1.313]

    Without the scale the reward has another range, and a threshold on it another meaning.
    """

    real: Tensor
    generated: Tensor

    def __init__(
        self,
        discriminators: Discriminators,
        real: Float[Tensor, " m"],
        generated: Float[Tensor, " m"],
    ) -> None:
        super().__init__()
        self.discriminators = discriminators
        self.register_buffer("real", real)
        self.register_buffer("generated", generated)

    @classmethod
    def of(cls, snapshots: Sequence[Snapshot]) -> DynamicsReward:
        """Make the reward of snapshots; those that find real no better than generated are left out.

        Such a scale would be upside down: early snapshots, before anything is learned.

        Raises:
            ValueError: none is left.
        """
        kept = [one for one in snapshots if one.real > one.generated]
        if not kept:
            raise ValueError(
                "dynamics reward: a snapshot that finds logged transitions more real than "
                f"generated ones is needed; found none among {len(snapshots)}; train the "
                "discriminator longer"
            )
        ends = torch.tensor([[one.real, one.generated] for one in kept])
        return cls(gathered([one.discriminator for one in kept]), ends[:, 0], ends[:, 1])

    def forward(
        self,
        observations: Float[Tensor, "n d"],
        actions: Float[Tensor, "n a"],
        next_observations: Float[Tensor, "n d"],
    ) -> Float[Tensor, " n"]:
        """Return the reward of each transition."""
        transitions = zip(
            observations.split(_ROWS),
            actions.split(_ROWS),
            next_observations.split(_ROWS),
            strict=True,
        )
        shares = [self._shares(self.discriminators(*rows)) for rows in transitions]
        return -torch.log1p(-torch.cat(shares).clamp(max=_CERTAIN))

    def only(self, members: Int[Tensor, " k"]) -> DynamicsReward:
        """Return the reward of some snapshots."""
        chosen = self.discriminators.chosen(members)
        return DynamicsReward(chosen, self.real[members], self.generated[members])

    def save(self, folder: Path) -> None:
        """Write weights and options into a folder."""
        save_part(self, asdict(self.discriminators.options), folder)

    @classmethod
    def load(cls, folder: Path) -> DynamicsReward:
        """Read what `save` wrote."""

        def made(said: Mapping[str, Any]) -> DynamicsReward:
            options = DiscriminatorOptions(**said)
            ends = torch.zeros(options.members)
            return cls(Discriminators(options, seed=0), ends, ends.clone())

        return load_part(cls, made, folder)

    def _shares(self, logits: Float[Tensor, "m n"]) -> Float[Tensor, " n"]:
        """Return how real transitions are, averaged: 0.27 as generated ones, 0.73 as real ones."""
        real, generated = self.real[:, None], self.generated[:, None]
        place = (logits.clamp(generated, real) - generated) / (real - generated)
        return (2 * place - 1).sigmoid().mean(0)
