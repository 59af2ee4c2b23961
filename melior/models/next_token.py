"""How the next token is drawn: temperature, top-k and top-p, and a number turned into a token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from melior.options import Sampling

BLOCK = 128
"""Tokens that are summed up as one when the next is drawn."""


def next_token_log_probs(logits: Float[Tensor, "n v"], sampling: Sampling) -> Float[Tensor, "n v"]:
    """Return the log-probabilities that are sampled from: temperature, then top-k, then top-p.

    Tokens as likely as the last one kept are kept too, so the order of the vocabulary is nothing.
    """
    if sampling.temperature == 0:
        best = torch.full_like(logits, -torch.inf)
        return best.scatter(-1, logits.argmax(-1, keepdim=True), 0.0)
    log_probs = (logits / sampling.temperature).log_softmax(-1)
    if 0 < sampling.top_k < logits.shape[-1]:
        least = log_probs.topk(sampling.top_k).values[:, -1:]
        log_probs = log_probs.masked_fill(log_probs < least, -torch.inf).log_softmax(-1)
    if sampling.top_p < 1:
        least = _nucleus(log_probs, sampling.top_p)
        log_probs = log_probs.masked_fill(log_probs < least, -torch.inf).log_softmax(-1)
    return log_probs


def _nucleus(log_probs: Float[Tensor, "n v"], top_p: float) -> Float[Tensor, "n 1"]:
    """Return the least log-probability among the fewest tokens that reach `top_p` together."""
    size = log_probs.shape[-1]
    n = min(128, size)  # sorting the whole vocabulary is rarely needed, and slow
    while True:
        values = log_probs.topk(n).values
        reached = values.exp().cumsum(-1)
        if n == size or bool((reached[:, -1] >= top_p).all()):
            last = (reached < top_p).sum(-1, keepdim=True).clamp(max=n - 1)
            return values.gather(-1, last)
        n = min(n * 8, size)


def inverse(weights: Float[Tensor, "n v"], noise: Float[Tensor, " n"]) -> Int[Tensor, " n"]:
    """Return where the cumulative distribution passes the noise: first the block, then the place.

    Summing up the whole vocabulary in one go takes as long as a third of a small model.
    """
    missing = -weights.shape[-1] % BLOCK
    blocks = (F.pad(weights, (0, missing)) if missing else weights).unflatten(-1, (-1, BLOCK))
    sums = blocks.sum(-1)
    block, rest = _passed(sums, noise * sums.sum(-1))
    inside = blocks[torch.arange(len(blocks), device=blocks.device), block]
    return block * BLOCK + _passed(inside, rest)[0]


def _passed(
    weights: Float[Tensor, "n v"], goal: Float[Tensor, " n"]
) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
    """Return the first place where the running sum passes a goal, and what is left of the goal."""
    wide = torch.float32 if weights.device.type == "mps" else torch.float64
    reached = weights.cumsum(-1, dtype=wide)
    # At least zero and below the total, so that a place without weight is never chosen.
    goal = (
        goal.to(wide)
        .clamp(min=0)
        .minimum(reached[:, -1].nextafter(torch.zeros_like(goal, dtype=wide)))
    )
    place = torch.searchsorted(reached, goal[:, None], right=True)
    before = reached.gather(-1, place) - weights.gather(-1, place)
    return place[:, 0], goal - before[:, 0]
