"""The world of SCIR's claim: two noisy views of answers whose true reward is known."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

N_SEED, N_UNLABELLED, N_TEST = 60, 1500, 3000
SIZE, HIDDEN = 8, 32
NOISE, BIAS = 0.9, 0.8
"""Of each view; the judge's leaning to what is shown first, in logits."""
SHORTCUT, FLIPPED = 2**0.5, 0.35
"""Deviation of a length that both views see (2 between two answers), and the share of seed labels
that follow it where it contradicts the truth."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of answers, as the judge sees them and as the implicit reward does."""

    judge: Float[Tensor, "2 n d"]
    implicit: Float[Tensor, "2 n d"]
    is_won: Bool[Tensor, " n"]
    """Whether the first answer is the better one: a label, or the truth."""
    is_longer: Bool[Tensor, " n"]

    def of(self, rows: Int[Tensor, " b"] | Bool[Tensor, " n"]) -> Pairs:
        """Return some pairs."""
        sides = self.judge[:, rows], self.implicit[:, rows]
        return Pairs(*sides, self.is_won[rows], self.is_longer[rows])


@dataclass(frozen=True)
class World:
    """What is labelled, what is not, and what is judged on."""

    seed: Pairs
    unlabelled: Pairs
    """With the truth, which no arm reads."""
    test: Pairs


def drawn_world(dice: torch.Generator, *, has_length: bool) -> World:
    """Draw a true reward and pairs; with a length, seed labels follow it now and then."""
    weights = torch.randn(SIZE, generator=dice)

    def pairs(n: int) -> Pairs:
        answers, length = (torch.randn(2, n, d, generator=dice) for d in (SIZE, 1))
        rewards = answers @ weights + 0.5 * (2 * answers[..., 0]).sin()
        noise = NOISE * torch.randn(2, 2, n, SIZE, generator=dice)
        views = (answers + own for own in noise)
        judge, implicit = (
            torch.cat([view, SHORTCUT * length], -1) if has_length else view for view in views
        )
        longer = length[0, :, 0] > length[1, :, 0]
        return Pairs(judge, implicit, rewards[0] > rewards[1], longer)

    labelled, unlabelled, test = pairs(N_SEED), pairs(N_UNLABELLED), pairs(N_TEST)
    if has_length:
        contradicts = labelled.is_won != labelled.is_longer
        follows = contradicts & (torch.rand(N_SEED, generator=dice) < FLIPPED)
        labelled = Pairs(
            labelled.judge, labelled.implicit, labelled.is_won ^ follows, labelled.is_longer
        )
    return World(labelled, unlabelled, test)


class Views(nn.Module):
    """A judge and an implicit reward, each a perceptron of its own view."""

    def __init__(self, width: int, *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.judge, self.implicit = (
                nn.Sequential(nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1))
                for _ in range(2)
            )

    def odds(self, pairs: Pairs) -> Float[Tensor, "m n"]:
        """Return each view's difference of rewards: the logit that the first wins, without bias."""
        (one, other), (left, right) = (
            read(side)[..., 0]
            for read, side in ((self.judge, pairs.judge), (self.implicit, pairs.implicit))
        )
        return torch.stack([one - other, left - right])

    def wins(self, pairs: Pairs) -> Float[Tensor, "m n"]:
        """Return each view's probability that the first wins; the judge is asked in both orders."""
        judge, implicit = self.odds(pairs)
        both = ((judge + BIAS).sigmoid() + (judge - BIAS).sigmoid()) / 2
        return torch.stack([both, implicit.sigmoid()])
