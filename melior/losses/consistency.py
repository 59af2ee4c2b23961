"""Self-consistency of several judges of the same pairs: penalties for what they disagree on.

Zhou et al. 2025, arXiv 2502.08922 (SCIR). The paper pulls the probabilities of all internal reward
models together and makes them confident; its formula was not at hand, and the forms here are ours.
All read `wins`, each judge's probability that a pair's first answer is the better one, and
`shares`, how much each judge counts (they add up to 1), and give one number a pair, least where all
judges say the same. Probabilities are taken in float32 or wider. Gradient flows into every judge;
one that is to stand still as a teacher is detached by the caller.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

BOUND = 1e-4
"""Probabilities are clamped to within this of 0 and 1, where logarithms have no end. A judge who is
surer than that is read as if at the bound, and is not pulled."""


def family_shares(families: Sequence[str]) -> Float[Tensor, " m"]:
    """Return how much each judge counts when every family counts the same.

    Three wordings of one judge then do not outvote the implicit reward.
    """
    sizes = Counter(families)
    return torch.tensor([1 / (len(sizes) * sizes[own]) for own in families], dtype=torch.float64)


def consensus(wins: Float[Tensor, "m n"], shares: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    """Return the judges' mean probability."""
    return _mean(_inner(wins), shares)


def entropy(wins: Float[Tensor, "*m n"]) -> Float[Tensor, "*m n"]:
    """Entropy of a win, `-p log p - (1 - p) log (1 - p)`, in nats."""
    p = _inner(wins)
    return -p * p.log() - (1 - p) * (-p).log1p()


def disagreement(wins: Float[Tensor, "m n"], shares: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    """Jensen-Shannon divergence of the judges, from 0 where all are equal to at most log 2.

    Lin 1991, IEEE Trans. Inf. Theory 37(1), eq. 5.1: `H(mean p) - mean H(p)`.
    """
    return entropy(consensus(wins, shares)) - doubt(wins, shares)


def doubt(wins: Float[Tensor, "m n"], shares: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    """Mean entropy of the judges: near 0 where each of them is certain, of whatever."""
    return _mean(entropy(wins), shares)


def inconsistency(
    wins: Float[Tensor, "m n"], shares: Float[Tensor, " m"], *, gamma: float
) -> Float[Tensor, " n"]:
    """Disagreement plus gamma times doubt: SCIR's penalty of judges that differ or waver.

    After arXiv 2502.08922; the form is ours. With gamma 1 it is `H(mean p)`, the entropy of the
    consensus; with gamma 0 judges that are all at one half cost nothing.

    Args:
        wins: of two judges or more; one alone can only doubt.
        shares: of the judges.
        gamma: weight of doubt, at least 0.
    """
    return disagreement(wins, shares) + gamma * doubt(wins, shares)


def symmetric_kl(wins: Float[Tensor, "m n"], shares: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    """Mean of `KL(p || p')` over all ordered pairs of different judges, by their shares.

    Both orders together are `(p - p') (logit p - logit p')`, so that the sum over pairs is a
    covariance. 0 for one judge alone.
    """
    p = _inner(wins)
    odds = p.logit()
    together = _mean((p - _mean(p, shares)) * (odds - _mean(odds, shares)), shares)
    other = 1 - shares.square().sum()
    return together / other.clamp(min=torch.finfo(torch.float32).eps)  # one judge: 0 of 0


def squared_spread(wins: Float[Tensor, "m n"], shares: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    """Mean squared distance of the judges from their mean."""
    p = _inner(wins)
    return _mean((p - _mean(p, shares)).square(), shares)


def consensus_cross_entropy(
    wins: Float[Tensor, "m n"], shares: Float[Tensor, " m"]
) -> Float[Tensor, " n"]:
    """Mean cross-entropy of the judges to the winner by their mean, which carries no gradient.

    A pseudo-label as of Lee 2013. At a mean of one half nobody has won, and it is 0.
    """
    p = _inner(wins)
    side = (_mean(p, shares) - 0.5).detach().sign()
    right = p.where(side > 0, 1 - p)
    return -side.abs() * _mean(right.log(), shares)


def certainty(wins: Float[Tensor, "m n"], shares: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    """How sure the judges are together, `|2 mean p - 1|`: a weight of pairs, without gradient."""
    return (2 * consensus(wins, shares) - 1).abs().detach()


def _inner(wins: Float[Tensor, "*m n"]) -> Float[Tensor, "*m n"]:
    wide = wins.to(torch.promote_types(wins.dtype, torch.float32))
    return wide.clamp(BOUND, 1 - BOUND)


def _mean(values: Float[Tensor, "m n"], shares: Float[Tensor, " m"]) -> Float[Tensor, " n"]:
    return (shares.to(values)[:, None] * values).sum(0)
