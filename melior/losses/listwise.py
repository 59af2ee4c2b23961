"""Losses on whole lists of scored answers: implicit rewards `[n k]` in, one number per list out.

`rewards` are what the policy says of each answer, such as `beta` times its log-ratio to the
reference; `scores` say how good each one is, and only they order a list; `mask` says which answers
are there. Absent answers give nothing, whatever they hold. Pairs `[n k k]` are read "row over
column", and a list in which no pair is ordered gives 0, with a graph and a gradient of 0 (but for
`softmax_cross_entropy`, for which equal scores are a target, too).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

OverPairs = Callable[[Tensor, Tensor], Tensor]
"""From values `[n k k]`, and which pairs count, to one value per list."""


def sum_over_pairs(
    values: Float[Tensor, "n k k"], pairs: Bool[Tensor, "n k k"]
) -> Float[Tensor, " n"]:
    """Add up the pairs that count: long lists weigh more."""
    return values.where(pairs, 0.0).flatten(1).sum(-1)


def mean_over_pairs(
    values: Float[Tensor, "n k k"], pairs: Bool[Tensor, "n k k"]
) -> Float[Tensor, " n"]:
    """Average the pairs that count: every list weighs the same."""
    return sum_over_pairs(values, pairs) / pairs.flatten(1).sum(-1).clamp(min=1)


def lambda_rank(
    rewards: Float[Tensor, "n k"],
    scores: Float[Tensor, "n k"],
    mask: Bool[Tensor, "n k"],
    *,
    over_pairs: OverPairs = sum_over_pairs,
) -> Float[Tensor, " n"]:
    """Tree preference optimisation's ranking of a whole list, every pair weighted by its rank.

    Liao, Chu, Wang 2024, arXiv 2410.12854: `sum of lambda_ij * -log sigmoid(r_i - r_j)` over the
    pairs with `v_i > v_j`; the form of LiPO-lambda (Liu et al. 2024, arXiv 2402.01878), whose
    printed sign is a slip. The authors' released code is another function, which ranks the wrong
    way round; see `docs/tpo.md`.

    Args:
        rewards: implicit rewards of the answers; they carry the gradient.
        scores: of the answers, normalised to 0 to 1 (`global_scores`, `per_list_scores`).
        mask: which answers are there.
        over_pairs: `sum_over_pairs`, the paper's and the default, or `mean_over_pairs`.
    """
    return lambda_rank_of_margins(margins(rewards), rewards, scores, mask, over_pairs=over_pairs)


def lambda_rank_of_margins(
    margin: Float[Tensor, "n k k"],
    rewards: Float[Tensor, "n k"],
    scores: Float[Tensor, "n k"],
    mask: Bool[Tensor, "n k"],
    *,
    over_pairs: OverPairs = sum_over_pairs,
) -> Float[Tensor, " n"]:
    """`lambda_rank` with margins of the caller's, such as those of `adaptive_step_margin`.

    The rewards only rank here; the gradient flows through the margins.
    """
    pairs = ordered_pairs(scores, mask)
    losses = lambda_weights(rewards, scores, mask) * _log_loss(margin, pairs)
    return over_pairs(losses, pairs)


def all_pairs(
    rewards: Float[Tensor, "n k"], scores: Float[Tensor, "n k"], mask: Bool[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """DPO on every ordered pair of the list: the mean of `-log sigmoid(r_i - r_j)`.

    The baseline that shows whether a list loss gains by its weights or only by seeing the list.
    """
    pairs = ordered_pairs(scores, mask)
    return mean_over_pairs(_log_loss(margins(rewards), pairs), pairs)


def best_against_worst(
    rewards: Float[Tensor, "n k"], scores: Float[Tensor, "n k"], mask: Bool[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """DPO on the best answer of the list against its worst; of equal ones the first counts."""
    has_spread = ordered_pairs(scores, mask).flatten(1).any(-1)
    best = scores.masked_fill(~mask, -torch.inf).argmax(-1, keepdim=True)
    worst = scores.masked_fill(~mask, torch.inf).argmin(-1, keepdim=True)
    margin = (rewards.gather(-1, best) - rewards.gather(-1, worst)).squeeze(-1)
    return _log_loss(margin, has_spread).where(has_spread, 0.0)


def plackett_luce(
    rewards: Float[Tensor, "n k"], scores: Float[Tensor, "n k"], mask: Bool[Tensor, "n k"]
) -> Float[Tensor, " n"]:
    """Negative log-likelihood of the list's order when answers are drawn one by one (ListMLE).

    Xia et al. 2008, eq. 10, under the model of Plackett 1975 and Luce 1959; as a preference loss
    Rafailov et al. 2023, arXiv 2305.18290, eq. 20. In order of falling scores it is the sum over t
    of `logsumexp(r_t, ..., r_k) - r_t`. The papers know no ties: here an answer competes with those
    that score less, so that equal ones do not compete and their places in the list do not matter.
    """
    reward = rewards.where(mask, 0.0)
    itself = torch.eye(rewards.shape[-1], dtype=torch.bool, device=rewards.device)
    rivals = ordered_pairs(scores, mask) | itself
    competing = reward[:, None, :].expand(rivals.shape).masked_fill(~rivals, -torch.inf)
    return (competing.logsumexp(-1) - reward).where(mask, 0.0).sum(-1)


def softmax_cross_entropy(
    rewards: Float[Tensor, "n k"],
    scores: Float[Tensor, "n k"],
    mask: Bool[Tensor, "n k"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, " n"]:
    """Cross-entropy of the rewards' softmax against that of the scores (ListNet's top-one).

    Cao et al. 2007, eq. 6; LiPO's softmax loss. `-sum of softmax(v / temperature) log_softmax(r)`.
    The size of the scores counts, not only their order: equal ones ask for equal rewards.
    """
    lowest = torch.finfo(rewards.dtype).min  # of -inf alone a softmax would be nan
    target = (scores / temperature).masked_fill(~mask, lowest).softmax(-1).detach()
    log_share = rewards.masked_fill(~mask, lowest).log_softmax(-1)
    return -(target.where(mask, 0.0) * log_share.where(mask, 0.0)).sum(-1)


def adaptive_step_margin(
    step_rewards: Float[Tensor, "n k s"],
    embeddings: Float[Tensor, "n k s d"],
    is_step: Bool[Tensor, "n k s"],
) -> Float[Tensor, "n k k"]:
    """Margins of answers in steps: `sum over s of (1 - cos(e_i, e_j)) (r_i - r_j)`, step by step.

    Liao, Chu, Wang 2024, arXiv 2410.12854, eq. 10 (adaptive step reward). Steps that say the same
    count nothing, unrelated ones 1, opposed ones 2. Steps are compared by place. The paper leaves
    open what a step counts that the other answer lacks, or that is empty (an embedding of zeros or
    nan): 1 here. The released code weighs by `1 + cos` instead, against the paper.

    Args:
        step_rewards: implicit rewards of the steps; they carry the gradient.
        embeddings: of the steps; detached, or the model could gain by moving them.
        is_step: which steps are there.
    """
    reward = step_rewards.where(is_step, 0.0)
    vectors = embeddings.detach().nan_to_num(0.0, 0.0, 0.0)
    direction = F.normalize(vectors.where(is_step[..., None], 0.0), dim=-1)
    weight = 1 - torch.einsum("nisd,njsd->nijs", direction, direction)
    return (weight * (reward[:, :, None] - reward[:, None, :])).sum(-1)


def lambda_weights(
    rewards: Float[Tensor, "n k"], scores: Float[Tensor, "n k"], mask: Bool[Tensor, "n k"]
) -> Float[Tensor, "n k k"]:
    """What DCG would change by, were two answers to swap their predicted ranks; detached.

    `|G_i - G_j| |1/D(tau_i) - 1/D(tau_j)|` with the gain `G = 2^v - 1` and the discount
    `D(tau) = log(1 + tau)`: Wang et al. 2018 (LambdaLoss), eq. 16. The base of the logarithm only
    scales the loss.
    """
    gain = torch.exp2(scores.where(mask, 0.0))
    inverse_discount = 1 / torch.log1p(predicted_ranks(rewards, mask).to(rewards.dtype))
    return (_differences(gain) * _differences(inverse_discount)).abs().detach()


def predicted_ranks(rewards: Float[Tensor, "n k"], mask: Bool[Tensor, "n k"]) -> Int[Tensor, "n k"]:
    """Return the place of each answer by falling reward, from 1; absent ones come last.

    Equal rewards rank by their place in the list. Before the first step all are equal: shuffle
    lists that lie in order of their scores, or the first weights follow that order.
    """
    order = rewards.detach().masked_fill(~mask, -torch.inf).argsort(stable=True, descending=True)
    return order.argsort() + 1


def ordered_pairs(scores: Float[Tensor, "n k"], mask: Bool[Tensor, "n k"]) -> Bool[Tensor, "n k k"]:
    """Say which answers score more than which; equal and absent ones make no pair."""
    are_there = mask[:, :, None] & mask[:, None, :]
    return (scores[:, :, None] > scores[:, None, :]) & are_there


def margins(rewards: Float[Tensor, "n k"]) -> Float[Tensor, "n k k"]:
    """Return the reward of each answer minus that of each other one."""
    return _differences(rewards)


def global_scores(scores: Float[Tensor, "n k"], *, low: float, high: float) -> Float[Tensor, "n k"]:
    """Bring scores to 0 to 1 by the bounds of their scale, such as -100 and 100."""
    return (scores - low) / (high - low)


def per_list_scores(
    scores: Float[Tensor, "n k"], mask: Bool[Tensor, "n k"]
) -> Float[Tensor, "n k"]:
    """Bring each list's scores to 0 to 1 by its own worst and best; 0 where all are equal."""
    low = scores.masked_fill(~mask, torch.inf).amin(-1, keepdim=True)
    width = scores.masked_fill(~mask, -torch.inf).amax(-1, keepdim=True) - low
    return ((scores - low) / width).where(mask & (width > 0), 0.0)


def _log_loss(margin: Tensor, counts: Tensor) -> Tensor:
    """`-log sigmoid(margin)`, away from margins that do not count and may hold inf or nan."""
    return -F.logsigmoid(margin.where(counts, 0.0))


def _differences(values: Float[Tensor, "n k"]) -> Float[Tensor, "n k k"]:
    return values[:, :, None] - values[:, None, :]
