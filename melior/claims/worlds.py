"""What small worlds share: all seeds are trained at once, each as if it were alone.

A leading axis holds the seeds. Adam treats every number by itself, so that seeds side by side in
one tensor learn exactly what each would learn alone, as long as their losses are added and never
averaged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior import ops
from melior.claims.claim import Array

LossOfSeeds = Callable[[Tensor, int], Tensor]
"""From parameters, with the seeds' axis first, and the step to one loss per example."""


def fitted(
    start: Float[Tensor, "e ..."], loss: LossOfSeeds, *, steps: int, learning_rate: float
) -> Float[Tensor, "e ..."]:
    """Descend by Adam from a start; `loss` gives `[e n]`, seeds by examples of the step."""
    parameters = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([parameters], lr=learning_rate)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss(parameters, step).mean(-1).sum())
        optimizer.step()
    return parameters.detach()


def drawn_batches(
    seeds: Sequence[int], steps: int, *, batch_size: int, n: Sequence[int]
) -> Int[Tensor, "steps e b"]:
    """Draw which of its `n` examples each seed sees at each step, anew for every step."""
    draws = [
        torch.randint(own, (steps, batch_size), generator=ops.generator(seed + 10**6))
        for seed, own in zip(seeds, n, strict=True)
    ]
    return torch.stack(draws, dim=1)


def per_seed(values: Float[Tensor, " e"]) -> Array:
    """Return one number per seed, out of torch."""
    return values.double().numpy()


def stacked(parts: Sequence[Any]) -> Any:
    """Put the same fields of several worlds on one leading axis of seeds."""
    kind = type(parts[0])
    fields = {name: torch.stack([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    return kind(**fields)
