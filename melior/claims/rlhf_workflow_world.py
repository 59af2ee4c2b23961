"""The worlds of RLHF Workflow's claims: a distant target, a biased judge, long answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

N_TRAIN, N_TEST = 150, 60
POOL, SIZE, WIDE = 400, 4, 1.8
"""Answers that each prompt can have, numbers of each, and how widely they are drawn."""
FAR, NEAR = 2.2, 1.2
"""How far in each number the best answer lies from the start policy's middle, on average."""
HIDDEN = 64


@dataclass(frozen=True)
class World:
    """Prompts, and all that each can be answered."""

    features: Float[Tensor, "n a d"]
    """Prompt, answer and the answer's length."""
    start: Float[Tensor, "n a"]
    """Log-probabilities of the start policy, a standard normal over the pool."""
    rewards: Float[Tensor, "n a"]

    def part(self, start: int, stop: int) -> World:
        """Return some of the prompts."""
        rows = slice(start, stop)
        return World(self.features[rows], self.start[rows], self.rewards[rows])


def drawn_world(dice: torch.Generator, *, offset: float) -> World:
    """Draw prompts with their pools; the best answer is linear in the prompt, off by `offset`."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=dice)

    n = N_TRAIN + N_TEST
    prompts, answers = normal(n, SIZE), WIDE * normal(n, POOL, SIZE)
    target = prompts @ (1.3 / 2 * normal(SIZE, SIZE)) + offset
    rewards = -(answers - target[:, None]).square().sum(-1) / 4
    # The pool is drawn wider than the start policy, so that it holds good answers at all.
    size = answers.square().sum(-1)
    start = (-size / 2 * (1 - 1 / WIDE**2)).log_softmax(-1)
    shown = prompts[:, None].expand(-1, POOL, -1)
    features = torch.cat([shown, answers, size.sqrt()[..., None]], -1)
    return World(features, start, rewards)


class Policy(nn.Module):
    """The start policy times exp of a perceptron that begins at 0."""

    def __init__(self, *, seed: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.change = nn.Sequential(
                nn.Linear(2 * SIZE + 1, HIDDEN), nn.GELU(),
                nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 1),
            )  # fmt: skip
        for own in self.change[-1].parameters():
            nn.init.zeros_(own)

    def forward(self, features: Float[Tensor, "*n d"]) -> Float[Tensor, "*n"]:
        """Return the log-ratio to the start policy, up to a number of the prompt."""
        return self.change(features)[..., 0]

    @torch.no_grad()
    def log_probs(self, world: World) -> Float[Tensor, "n a"]:
        """Return the log-probabilities of all answers."""
        return (world.start + self(world.features)).log_softmax(-1)


def judged(policy: Policy, world: World) -> dict[str, float]:
    """Return expected reward and KL to the start, both exact."""
    table = policy.log_probs(world)
    share = table.exp()
    return {
        "reward": float((share * world.rewards).sum(-1).mean()),
        "KL": float((share * (table - world.start)).sum(-1).mean()),
    }


@dataclass(frozen=True)
class Judged:
    """Comparisons by a judge who leans to what is shown first: logits that the first shown wins."""

    first: Float[Tensor, " n"]
    """With the one answer first, ..."""
    exchanged: Float[Tensor, " n"]
    """... and with the other one first."""
    is_better: Float[Tensor, " n"]
    """1 where the one answer is the better one by its label."""


def biased_judge(dice: torch.Generator, *, bias: float, n: int = 20_000) -> Judged:
    """Draw comparisons: how clear they are, their labels, and what the judge says in each order."""
    clear = 1.5 * torch.randn(n, generator=dice, dtype=torch.float64)
    label = (torch.rand(n, generator=dice, dtype=torch.float64) < (2 * clear).sigmoid()).double()
    noise = 0.3 * torch.randn(2, n, generator=dice, dtype=torch.float64)
    return Judged(clear + bias + noise[0], -clear + bias + noise[1], label)


def swap_averaged(
    first: Float[Tensor, " n"], exchanged: Float[Tensor, " n"]
) -> Float[Tensor, " n"]:
    """Return the probability that the one answer wins, the mean over both orders."""
    return (first.sigmoid() + 1 - exchanged.sigmoid()) / 2


def long_answers(
    dice: torch.Generator, *, n: int = 500, k: int = 8
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Draw rewards that rise with length, by 1 for 500 characters, and the lengths."""
    lengths = (6.2 + 0.6 * torch.randn(n, k, generator=dice, dtype=torch.float64)).exp().round()
    noise = torch.randn(n, k, generator=dice, dtype=torch.float64)
    return lengths / 500 + noise, lengths


def drawn_answers(
    log_probs: Float[Tensor, "n a"], k: int, dice: torch.Generator
) -> Int[Tensor, "n k"]:
    """Draw k answers to each prompt, with replacement as a model draws them."""
    return torch.multinomial(log_probs.exp(), k, replacement=True, generator=dice)
