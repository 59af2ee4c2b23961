"""Correlations of many columns with one: Pearson's, and Spearman's, which is that of the ranks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def pearson(columns: Float[Tensor, "n m"], other: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
    """Return the linear correlation of each column; of what does not vary it is taken to be 0."""
    left, right = columns - columns.mean(0), (other - other.mean())[:, None]
    scale = left.square().sum(0).sqrt() * right.square().sum(0).sqrt()
    # Asked of the numbers themselves: a constant less its rounded mean need not be 0.
    varies = _varies(columns) & _varies(other[:, None])
    return (left * right).sum(0).div(scale.where(varies, 1.0)).where(varies, 0.0)


def spearman(columns: Float[Tensor, "n m"], other: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
    """Return the correlation of the ranks of each column; 0 for what does not vary."""
    return pearson(average_ranks(columns), average_ranks(other[:, None])[:, 0])


def average_ranks(columns: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
    """Return each number's rank in its column from 1; equal ones share the mean of their ranks."""
    rows = columns.T.contiguous()
    ordered = rows.sort(-1).values
    less, no_more = (torch.searchsorted(ordered, rows, right=side) for side in (False, True))
    return ((less + no_more + 1) / 2).T.to(columns.dtype)


def _varies(columns: Float[Tensor, "n m"]) -> Bool[Tensor, " m"]:
    return columns.amax(0) > columns.amin(0)
