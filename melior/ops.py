"""Seeded generators."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator on a device, seeded."""
    return torch.Generator(device=device).manual_seed(seed)


def stream(seed: int, name: str) -> int:
    """Return the seed of one purpose among a run's: no two purposes, nor seeds, draw the same.

    Without it what one part of a run draws from `seed + 1` another draws in the run of that seed.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8])
