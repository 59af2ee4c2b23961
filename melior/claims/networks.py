"""Small networks in small worlds: trained one seed after another, and measured side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from melior.claims.claim import Measured


def descend(
    network: nn.Module, loss: Callable[[int], Tensor], *, steps: int, learning_rate: float
) -> None:
    """Train a network by AdamW, weights decaying by 0.01; `loss` gives one number per example."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, weight_decay=0.01)
    for step in range(steps):
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss(step).mean())
        optimizer.step()
    network.eval()


def side_by_side(
    rows: Sequence[Mapping[str, Mapping[str, float | Sequence[float]]]],
) -> Measured:
    """Turn what each seed measured, by arm and quantity, into one number per seed of each."""
    return {
        arm: {name: np.array([row[arm][name] for row in rows]) for name in quantities}
        for arm, quantities in rows[0].items()
    }
