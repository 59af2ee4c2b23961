"""The world of ArmoRM's claim: answers with known factors, and three data sets that rate them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

NAMES = ("helpfulness", "correctness", "safety", "style", "verbosity", "readability")
VERBOSITY, N_TYPES = 4, 4
"""A prompt of type t asks for the factor of objective t, and for no other."""
LEAKS = (0.8, 0.6, 0.7, 0.5, 0.0, 0.6)
"""What verbosity adds to the ratings by each objective."""
DATA_SETS = ((0, 1, VERBOSITY), (2, 3), (5,))
"""The objectives that each data set rates."""
WIDTH, PROMPT_WIDTH = 64, 16
N_RATED, N_PAIRS, N_TEST = 6000, 6000, 3000
CENTRE, SLOPE, RATING_NOISE = 0.5, 0.12, 0.5
WEIGHT, LENGTH_WEIGHT = 2.0, 0.8
"""What the factor that is asked for, and verbosity, add to the logit of a training label."""


@dataclass(frozen=True)
class Pairs:
    """Two answers to each prompt, the preferred one first."""

    chosen: Float[Tensor, "n d"]
    rejected: Float[Tensor, "n d"]
    prompts: Float[Tensor, "n p"]


@dataclass(frozen=True)
class World:
    """What one seed gives."""

    factors: Float[Tensor, "m d"]
    """Orthonormal, so that an answer's have the variance 1."""
    rated: Float[Tensor, "n d"]
    ratings: Float[Tensor, "n m"]
    """On the unit scale; nan where an answer's data set does not rate the objective."""
    reference: Float[Tensor, "n d"]
    """Other answers, on which is measured what objectives share with verbosity."""
    train: Pairs
    """Labelled by the factor that is asked for, and by length."""
    test: Pairs
    """Labelled without regard to length."""


def drawn_world(dice: torch.Generator) -> World:
    """Draw factors, rated answers, reference answers, and pairs to learn from and to judge on."""
    factors = torch.linalg.qr(_normal(dice, WIDTH, len(NAMES))).Q.T
    rated = _normal(dice, N_RATED, WIDTH)
    noise = SLOPE * RATING_NOISE * _normal(dice, N_RATED, len(NAMES))
    said = (true_ratings(rated, factors) + noise).clamp(0, 1)
    data_set = torch.arange(N_RATED) % len(DATA_SETS)
    for place, own in enumerate(DATA_SETS):
        others = [j for j in range(len(NAMES)) if j not in own]
        rows = (data_set == place).nonzero()
        said[rows, torch.tensor(others)] = torch.nan
    return World(
        factors,
        rated,
        said,
        _normal(dice, N_RATED, WIDTH),
        drawn_pairs(factors, N_PAIRS, LENGTH_WEIGHT, dice),
        drawn_pairs(factors, N_TEST, 0.0, dice),
    )


def true_ratings(
    answers: Float[Tensor, "n d"], factors: Float[Tensor, "m d"]
) -> Float[Tensor, "n m"]:
    """Return what raters without noise say: each factor, and verbosity's share in it."""
    quality = answers @ factors.T
    leaks = torch.tensor(LEAKS, dtype=quality.dtype)
    return CENTRE + SLOPE * (quality + leaks * quality[:, [VERBOSITY]])


def drawn_pairs(
    factors: Float[Tensor, "m d"], n: int, length_weight: float, dice: torch.Generator
) -> Pairs:
    """Draw prompts of four types, two answers to each, and the label by Bradley-Terry."""
    kind = torch.randint(N_TYPES, (n,), generator=dice)
    prompts = 0.3 * _normal(dice, n, PROMPT_WIDTH)
    prompts[torch.arange(n), kind] += 2
    left, right = _normal(dice, n, WIDTH), _normal(dice, n, WIDTH)
    gap = (left - right) @ factors.T
    logit = WEIGHT * gap[torch.arange(n), kind] + length_weight * gap[:, VERBOSITY]
    is_won = torch.rand(n, generator=dice, dtype=torch.float64) < logit.sigmoid()
    chosen, rejected = left.where(is_won[:, None], right), right.where(is_won[:, None], left)
    return Pairs(chosen, rejected, prompts)


def with_constant(features: Float[Tensor, "n d"]) -> Float[Tensor, "n e"]:
    """Append a 1: a regression without intercept has no other way to have a mean."""
    return torch.cat([features, torch.ones_like(features[:, :1])], -1)


def _normal(dice: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=dice, dtype=torch.float64)
