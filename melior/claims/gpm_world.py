"""The world of GPM's claim: answers on a circle, of which each beats the one before it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

N_PROMPTS, N_TRAIN = 120, 84
PROMPT_NUMBERS, WIDTH = 8, 32
NOISE = 0.1
"""Deviation of an answer's angle from its place, in radians."""
START_ON_CIRCLE, START_IN_ORDER = 3.0, 0.5
"""Deviation of the first place between prompts: a circle may begin anywhere. Half-circles begin
nearly at the same place, or no number of an answer alone could put them in order."""


@dataclass(frozen=True)
class World:
    """Prompts with answers, and which answer beats which: the same for every prompt."""

    answers: Float[Tensor, "n k d"]
    prompts: Float[Tensor, "n d"]
    """The prompt without an answer, through the same map."""
    winners: Int[Tensor, " edges"]
    losers: Int[Tensor, " edges"]

    def part(self, start: int, stop: int) -> World:
        """Return some of the prompts."""
        rows = slice(start, stop)
        return World(self.answers[rows], self.prompts[rows], self.winners, self.losers)


def drawn_world(dice: torch.Generator, *, size: int, is_cyclic: bool) -> World:
    """Draw prompts with `size` answers: around the circle, or in order along half of it."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=dice)

    numbers = normal(N_PROMPTS, PROMPT_NUMBERS)
    start = numbers @ normal(PROMPT_NUMBERS) / PROMPT_NUMBERS**0.5
    start = start * (START_ON_CIRCLE if is_cyclic else START_IN_ORDER)
    step = (2 * math.pi if is_cyclic else math.pi) / size
    angle = start[:, None] + step * torch.arange(size) + NOISE * normal(N_PROMPTS, size)
    drawn = normal(2 + PROMPT_NUMBERS, WIDTH) / (2 + PROMPT_NUMBERS) ** 0.5
    place = torch.stack([angle.cos(), angle.sin()], -1)
    shown = torch.cat([place, numbers[:, None].expand(-1, size, -1)], -1)
    alone = torch.cat([torch.zeros(N_PROMPTS, 2), numbers], -1)
    winners, losers = edges(size, is_cyclic=is_cyclic).unbind(-1)
    return World((shown @ drawn).tanh(), (alone @ drawn).tanh(), winners, losers)


def edges(size: int, *, is_cyclic: bool) -> Int[Tensor, "edges 2"]:
    """Return winner and loser of each pair: the next one around, or any later one along."""
    if is_cyclic:
        return torch.tensor([((i + 1) % size, i) for i in range(size)])
    return torch.tensor([(i, j) for i in range(size) for j in range(i)])
