"""MOREC's small world: a mass that is pushed along a wavy, braking line, and who pushes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor

from melior.data.control import Transitions

DT: Final = 0.2
NOISE: Final = 0.01
"""Deviation of what is added to place and speed in each step."""


@dataclass(frozen=True)
class Controller:
    """Who pushes: against place and speed by `gain`, with noise, from starts so far spread."""

    gain: float
    noise: float
    spread: float
    length: int
    """Steps of an episode."""


STABILISING = Controller(gain=0.8, noise=0.3, spread=0.7, length=8)
DESTABILISING = Controller(gain=-0.3, noise=0.6, spread=1.2, length=8)


def lived(controller: Controller, steps: int, *, generator: torch.Generator) -> Transitions:
    """Log whole episodes of a controller, one after another, until there are so many steps."""
    count = -(-steps // controller.length)
    state = controller.spread * torch.randn(count, 2, generator=generator)
    seen, pushed, following = [], [], []
    for _ in range(controller.length):
        noise = controller.noise * torch.randn(count, generator=generator)
        action = (-controller.gain * state.sum(-1) + noise).clamp(-1, 1)[:, None]
        seen.append(state)
        pushed.append(action)
        moved = moved_by(state, action)
        state = moved + NOISE * torch.randn(moved.shape, generator=generator)
        following.append(state)
    columns = [torch.stack(part, dim=1).flatten(0, 1)[:steps] for part in (seen, pushed, following)]
    timeouts = torch.arange(1, steps + 1) % controller.length == 0
    timeouts[-1] = True
    return Transitions(
        observations=columns[0].numpy(),
        actions=columns[1].numpy(),
        rewards=(-columns[0].square().sum(-1)).numpy(),
        next_observations=columns[2].numpy(),
        terminals=torch.zeros(steps, dtype=torch.bool).numpy(),
        timeouts=timeouts.numpy(),
    )


def moved_by(state: Float[Tensor, "n 2"], action: Float[Tensor, "n 1"]) -> Float[Tensor, "n 2"]:
    """Return where the mass is after a step, noise aside."""
    place, speed = state.unbind(-1)
    push = 2 * (1.5 * action[:, 0]).tanh()
    speed = speed + DT * (push - 0.8 * speed * speed.abs() - (2 * place).sin())
    return torch.stack([place + DT * speed, speed], dim=-1)
