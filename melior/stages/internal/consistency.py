"""Learning from what a model's internal reward models agree on: choice, penalty, anchor.

Zhou et al. 2025, arXiv 2502.08922 (SCIR). Which pairs are kept depends on the model as it is and on
the whole optimizer batch, so each step reads its unlabelled pairs once without a graph and chooses,
and then descends portion by portion. That is exact: labels and choice carry no gradient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior import selection
from melior.data.batches import GroupBatch
from melior.losses import consistency
from melior.losses.preference import dpo
from melior.models.language import LanguageModel
from melior.records import Metrics
from melior.stages.internal.opinions import NAMES, SHARES, Seen, join, read
from melior.stages.internal.options import ConsistencyOptions
from melior.types import Objective, Pairwise

Penalty = Callable[[Float[Tensor, "m n"], Float[Tensor, " m"]], Float[Tensor, " n"]]


@dataclass(frozen=True)
class Portion:
    """Some pairs of a step, and what is to be learned from them."""

    batch: GroupBatch
    is_seed: bool
    """They have labels, and the first answer is the better one."""
    sides: Int[Tensor, " n"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Of unlabelled pairs: 1 where the first answer is taken for the better one, -1 where the
    second is, 0 where nothing is learned."""
    n_kept: int = 0
    """How many pairs of the whole step are learned from."""
    measured: Metrics = field(default_factory=dict)
    """Of the whole step, on one of its portions."""

    @property
    def origins(self) -> tuple[str, ...]:
        """Where the rows were read."""
        return self.batch.origins


def choose(
    model: LanguageModel, labels: tuple[int, int], options: ConsistencyOptions
) -> Callable[[Sequence[Portion]], list[Portion]]:
    """Return what gives the unlabelled pairs of a step their labels, by the model as it is."""

    def chosen(step: Sequence[Portion]) -> list[Portion]:
        free = [part for part in step if not part.is_seed]
        with model.evaluating():
            seen = [read(model, part.batch, labels) for part in free]
        whole = join(seen)
        given = torch.cat([part.batch.margins for part in free])
        sides = sides_of(whole, given, options, is_warm_up=is_warm_up(free[0].batch, options))
        n_kept = int((sides != 0).sum())
        found = [measure(whole, sides, options), *({} for _ in free[1:])]
        shares = sides.split([len(part.batch.margins) for part in free])
        rows = zip(free, shares, found, strict=True)
        labelled = [
            replace(part, sides=own, n_kept=n_kept, measured=metrics) for part, own, metrics in rows
        ]
        return [*labelled, *(part for part in step if part.is_seed)]

    return chosen


def sides_of(
    seen: Seen, given: Float[Tensor, " n"], options: ConsistencyOptions, *, is_warm_up: bool
) -> Int[Tensor, " n"]:
    """Return which answer of each pair is taken for the better one; 0 for neither.

    Args:
        seen: what the model says now.
        given: the start model's judgement, a logit.
        options: whose labels count.
        is_warm_up: the implicit reward has nothing to say yet.
    """
    if options.labels == "judge":
        return given.to(seen.judge.device).sign().long()
    votes = seen.votes(beta=options.beta, implicit=options.implicit)
    if is_warm_up:
        return selection.agree(votes[:1], delta=options.warmup_confidence)
    return selection.agree(votes, delta=options.delta)


def is_warm_up(batch: GroupBatch, options: ConsistencyOptions) -> bool:
    """Say whether a step is one of the first, which learn from the judge alone."""
    return options.labels == "agreed" and batch.progress < options.warmup_share


def n_warm_up_steps(total_steps: int, options: ConsistencyOptions) -> int:
    """Return how many steps of a run `is_warm_up` is true of."""
    return ceil(options.warmup_share * total_steps) if options.labels == "agreed" else 0


def consistent_objective(
    model: LanguageModel, labels: tuple[int, int], options: ConsistencyOptions
) -> Objective[Portion]:
    """Return the objective of a step's portions after `choose`."""

    def objective(part: Portion) -> tuple[Float[Tensor, ""], Metrics]:
        seen = read(model, part.batch, labels)
        share = seed_loss if part.is_seed else free_loss
        loss, metrics = share(seen, part, options)
        n_tokens = float(len(part.batch.forest.tokens))
        return loss, {**metrics, **part.measured, "num_tokens": n_tokens}

    return objective


def free_loss(
    seen: Seen, part: Portion, options: ConsistencyOptions
) -> tuple[Float[Tensor, ""], Metrics]:
    """Return the loss of unlabelled pairs: DPO on those that are kept, and the penalty on all.

    DPO's is averaged over the kept pairs of the step, and 0 where there are none.
    """
    is_kept, is_first = part.sides != 0, part.sides >= 0
    ratio = seen.log_ratio(options.implicit)
    better = ratio.chosen.where(is_first, ratio.rejected)
    worse = ratio.rejected.where(is_first, ratio.chosen)
    nothing = torch.zeros_like(better)
    lost = dpo(Pairwise(better, worse), Pairwise(nothing, nothing), beta=options.beta)
    preference = (is_kept * lost).sum() / max(1, part.n_kept)
    weight = 0.0 if is_warm_up(part.batch, options) else options.inconsistency_weight
    penalty = penalty_of(seen, options).sum() / part.batch.totals.groups
    metrics = {
        "loss/preference": float(preference.detach()),
        "loss/penalty": float(penalty.detach()),
    }
    return preference + weight * penalty, metrics


def penalty_of(seen: Seen, options: ConsistencyOptions) -> Float[Tensor, " n"]:
    """Return what the inconsistency of each pair costs."""
    wins = seen.wins(beta=options.beta, implicit=options.implicit)
    moved = torch.stack([
        own.detach() if name in options.frozen else own
        for name, own in zip(NAMES, wins, strict=True)
    ])  # fmt: skip
    penalties: dict[str, Penalty] = {
        "js": lambda p, s: consistency.inconsistency(p, s, gamma=options.gamma),
        "symmetric-kl": consistency.symmetric_kl,
        "squared": consistency.squared_spread,
        "pseudo-label": consistency.consensus_cross_entropy,
    }
    found = penalties[options.penalty](moved, SHARES)
    return consistency.certainty(moved, SHARES) * found if options.focus else found


def seed_loss(
    seen: Seen, part: Portion, options: ConsistencyOptions
) -> tuple[Float[Tensor, ""], Metrics]:
    """Return the loss of labelled pairs: DPO, and the judge's cross-entropy in both orders."""
    ratio = seen.log_ratio(options.implicit)
    nothing = Pairwise(*(torch.zeros_like(ratio.chosen) for _ in range(2)))
    losses = dpo(ratio, nothing, beta=options.beta) + seen.judged_right()
    n = part.batch.totals.groups
    loss = (part.batch.weights.to(losses) * losses).sum() / n
    metrics = {
        "loss/seed": loss,
        "rewards/chosen": options.beta * ratio.chosen.sum() / n,
        "rewards/rejected": options.beta * ratio.rejected.sum() / n,
        "rewards/margins": options.beta * ratio.margin.sum() / n,
        "rewards/accuracies": right(ratio.margin).sum() / n,
        "judge/accuracy": right(seen.judge - 0.5).sum() / n,
    }
    return options.seed_weight * loss, {name: float(v.detach()) for name, v in metrics.items()}


def right(lead: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return 1 where the first answer leads, one half for ties, 0 elsewhere."""
    return (lead.sign() + 1) / 2


@torch.no_grad()
def measure(seen: Seen, sides: Int[Tensor, " n"], options: ConsistencyOptions) -> Metrics:
    """Measure what a model's two opinions of unlabelled pairs have in common."""
    wins = seen.wins(beta=options.beta, implicit=options.implicit)
    orders = seen.orders
    shown_first = torch.cat([orders[:, 0], -orders[:, 1]]).sigmoid()
    longer = seen.lengths.margin.double()
    lead = consistency.consensus(wins, SHARES).double() - 0.5
    return {
        "consistency/disagreement": float(consistency.disagreement(wins, SHARES).mean()),
        "consistency/doubt": float(consistency.doubt(wins, SHARES).mean()),
        "consistency/agreement": float((selection.agree(wins) != 0).double().mean()),
        "consistency/kept": float((sides != 0).double().mean()),
        "consistency/length": _correlation(lead, longer),
        "judge/certainty": float((2 * wins[0] - 1).abs().mean()),
        "implicit/certainty": float((2 * wins[1] - 1).abs().mean()),
        "judge/flips": float((orders[:, 0] * orders[:, 1] < 0).double().mean()),
        "judge/shown_first": float(shown_first.mean()),
        "judge/mass": float(seen.labels.exp().sum(-1).mean()),
    }


def _correlation(x: Float[Tensor, " n"], y: Float[Tensor, " n"]) -> float:
    """Return Pearson's correlation; 0 where one does not vary."""
    x, y = x - x.mean(), y - y.mean()
    spread = float(x.norm() * y.norm())
    return float(x @ y) / spread if spread > 0 else 0.0
