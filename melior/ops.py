"""Seeded generators."""

from __future__ import annotations

import torch


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on a device, seeded."""
    return torch.Generator(device=device).manual_seed(seed)
