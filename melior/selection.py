"""Choices among the candidates of a group: a score matrix in, indices of candidates out.

Higher is better. A score that is not finite is missing: it is never chosen. Where a row has too
few scores for a choice, its index is -1. Equal scores are decided by the lower index.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def has_spread(scores: Float[Tensor, "n k"]) -> Bool[Tensor, " n"]:
    """Say which rows have a best and a worst: two scores or more that are not all equal."""
    best, worst = _ends(scores)
    return best > worst


def best_and_worst(
    scores: Float[Tensor, "n k"],
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Return the candidate with the highest and the one with the lowest score of each row.

    Of equal ones it is the first, of the best and of the worst alike; a row whose scores are all
    equal therefore gives one candidate twice, and is the caller's to leave out (`has_spread`).
    """
    is_scored = scores.isfinite()
    best = scores.masked_fill(~is_scored, -torch.inf).argmax(-1)
    worst = scores.masked_fill(~is_scored, torch.inf).argmin(-1)
    has_any = is_scored.any(-1)
    return best.where(has_any, -1), worst.where(has_any, -1)


def best_and_random(
    scores: Float[Tensor, "n k"], *, generator: torch.Generator
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Return the best candidate and one that is drawn evenly among those that score less.

    The second is -1 in a row without spread.
    """
    best, _ = best_and_worst(scores)
    highest, _ = _ends(scores)
    is_less = scores.isfinite() & (scores < highest[:, None])
    other = top(torch.where(is_less, _uniform(scores, generator), -torch.inf), 1)[:, 0]
    return best, other


def best_and_second(
    scores: Float[Tensor, "n k"],
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Return the best candidate and the best among those that score less.

    The second is -1 in a row without spread.
    """
    best, _ = best_and_worst(scores)
    highest, _ = _ends(scores)
    less = scores.masked_fill(~(scores < highest[:, None]), -torch.inf)
    return best, top(less, 1)[:, 0]


def top(scores: Float[Tensor, "n k"], m: int) -> Int[Tensor, "n m"]:
    """Return the `m` best candidates of each row, best first; -1 where a row has fewer scores."""
    order = scores.masked_fill(~scores.isfinite(), -torch.inf).argsort(stable=True, descending=True)
    count = scores.isfinite().sum(-1, keepdim=True)
    place = torch.arange(scores.shape[-1], device=scores.device)
    chosen = order.where(place < count, -1)[:, :m]
    return torch.nn.functional.pad(chosen, (0, m - chosen.shape[-1]), value=-1)


def boltzmann(
    scores: Float[Tensor, "n k"], m: int, *, temperature: float, generator: torch.Generator
) -> Int[Tensor, "n m"]:
    """Draw `m` candidates of each row in proportion to `exp(score / temperature)`.

    Without replacement, in the order drawn; -1 where a row has fewer scores. Computed as the `m`
    highest of the scores with Gumbel noise (Kool et al. 2019, 1903.06059, section 2.3).
    """
    noise = -(-_uniform(scores, generator).log()).log()
    return top(scores.double() / temperature + noise, m)


def mean_win(logits: Float[Tensor, "n k k"]) -> Float[Tensor, "n k"]:
    """Return each candidate's mean probability to beat the others, of logits of row over column.

    A logit that is nan is not known and is left out, an infinite one is certain, and the diagonal
    is not read; nan where a candidate is compared with no other.
    """
    wins = logits.sigmoid()
    own = torch.eye(wins.shape[-1], dtype=torch.bool, device=wins.device)
    return wins.masked_fill(own, torch.nan).nanmean(-1)


def agree(wins: Float[Tensor, "m n"], *, delta: float = 0.0) -> Int[Tensor, " n"]:
    """Return what all judges hold of each pair: 1 for the first, -1 for the second, 0 for neither.

    A judge at one half, or closer to it than `delta`, is undecided. One whose probability is nan
    has no vote; a pair without any vote gives 0.

    Args:
        wins: each judge's probability that the first of the pair is the better one.
        delta: how far from one half every judge must be, below 0.5.
    """
    has_vote = ~wins.isnan()
    lead = wins.detach() - 0.5
    votes = lead.sign().masked_fill((lead.abs() < delta) | ~has_vote, 0.0)
    total = votes.sum(0)
    return total.sign().where(total.abs() == has_vote.sum(0), 0.0).long()


def _ends(scores: Float[Tensor, "n k"]) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    is_scored = scores.isfinite()
    best = scores.masked_fill(~is_scored, -torch.inf).amax(-1)
    return best, scores.masked_fill(~is_scored, torch.inf).amin(-1)


def _uniform(scores: Float[Tensor, "n k"], generator: torch.Generator) -> Float[Tensor, "n k"]:
    """Draw in the open interval (0, 1): float64 never rounds to an end after the shift."""
    drawn = torch.rand(scores.shape, dtype=torch.float64, device=scores.device, generator=generator)
    return drawn.clamp(min=torch.finfo(torch.float64).tiny)
