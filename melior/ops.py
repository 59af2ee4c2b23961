"""Masked sums and means, log-space helpers and seeded generators."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_sum(values: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """Sum along the last axis where the mask is true.

    Masked inf or nan give 0 and a gradient of 0.
    """
    return torch.where(mask, values, torch.zeros_like(values)).sum(-1)


def masked_mean(values: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """Average along the last axis where the mask is true; a row without a true position gives 0."""
    return masked_sum(values, mask) / mask.sum(-1).clamp(min=1)


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on a device, seeded."""
    return torch.Generator(device=device).manual_seed(seed)
