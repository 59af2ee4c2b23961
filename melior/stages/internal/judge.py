"""What a model's internal reward models are worth: agreement and accuracy, told apart.

The one can rise while the other falls: two opinions with the same bias agree on it.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from melior import selection
from melior.data.batches import GroupBatches, TokenGroup, TokenValues
from melior.data.portions import portions
from melior.evaluation.compare import Comparison, compare
from melior.losses.consistency import consensus
from melior.models.language import LanguageModel
from melior.ops import generator
from melior.records import Metrics
from melior.stages.internal.consistency import right
from melior.stages.internal.opinions import SHARES, Seen, join, read
from melior.stages.internal.options import ConsistencyOptions
from melior.training.health import FEWEST, Finding, Row

SURELY_AGREED, ORDER_DECIDES, LEANS = 0.95, 0.5, 0.3
"""Of a shortcut: agreement from which all is agreed on, share of verdicts that the order decides,
and how far from one half the place that is shown first wins."""


@dataclass(frozen=True)
class Opinions:
    """Of labelled pairs, 1 where an opinion is right, one half for a tie, 0 where it is wrong."""

    judge: Float[Tensor, " n"]
    implicit: Float[Tensor, " n"]
    together: Float[Tensor, " n"]
    """By the mean of both probabilities."""
    agrees: Float[Tensor, " n"]
    """1 where both are on one side, whichever."""
    flips: Float[Tensor, " n"]
    """1 where the judge's verdict depends on the order."""

    def numbers(self) -> Metrics:
        """Return the mean of each; accuracy on agreed pairs where there are any."""
        n_agreed = float(self.agrees.sum())
        found = {
            "judge/accuracy": float(self.judge.mean()),
            "implicit/accuracy": float(self.implicit.mean()),
            "consensus/accuracy": float(self.together.mean()),
            "consistency/agreement": float(self.agrees.mean()),
            "judge/flips": float(self.flips.mean()),
        }
        if n_agreed:
            found["agreed/accuracy"] = float((self.agrees * self.together).sum()) / n_agreed
        return found


@torch.no_grad()
def opinions(seen: Seen, options: ConsistencyOptions) -> Opinions:
    """Hold what is seen of pairs, the better answer first, against their labels."""
    wins = seen.wins(beta=options.beta, implicit=options.implicit)
    return Opinions(
        right(wins[0] - 0.5),
        right(wins[1] - 0.5),
        right(consensus(wins, SHARES) - 0.5),
        (selection.agree(wins) != 0).double(),
        (seen.orders[:, 0] * seen.orders[:, 1] < 0).double(),
    )


def see(
    model: LanguageModel,
    groups: Sequence[TokenGroup],
    reference: TokenValues,
    labels: tuple[int, int],
    *,
    max_tokens: int,
) -> Seen:
    """Read pairs with their questions, in their order."""
    batches = GroupBatches(groups, reference, batch_size=1, max_tokens=max_tokens, seed=0)
    parts = portions([group.answers for group in groups], max_tokens)
    with model.evaluating():
        # A portion, divided again, is one portion in the same order.
        seen = [read(model, batch, labels) for part in parts for batch in batches.portions(part)]
    order = torch.tensor([i for part in parts for i in part]).argsort()
    return _reordered(join(seen), order)


def at_start(seen: Seen) -> Seen:
    """Return what the start model says: its implicit reward is 0, to the bit."""
    return replace(seen, policy=seen.reference)


def comparisons(before: Opinions, after: Opinions, *, seed: int) -> list[dict[str, Any]]:
    """Compare accuracies before and after, pair by pair, as in a run's `evaluation.json`."""
    found: list[Comparison] = [
        compare(
            _numbers(getattr(before, name)), _numbers(getattr(after, name)),
            name=title, unit="share", generator=generator(seed),
        )
        for name, title in (
            ("judge", "held-out pairs ranked right by the judge"),
            ("together", "held-out pairs ranked right by both averaged"),
        )
    ]  # fmt: skip
    return [one.to_json() for one in found]


def facts(before: Opinions, after: Opinions) -> dict[str, float]:
    """Return what is told of both internal reward models, before and after."""
    names = {
        "judge/accuracy": "right by the judge",
        "implicit/accuracy": "right by the implicit reward",
        "consistency/agreement": "pairs on which both agree",
        "agreed/accuracy": "right where both agree",
        "judge/flips": "verdicts that the order decides",
    }
    told = {}
    for key, name in names.items():
        for when, side in (("before", before), ("after", after)):
            if key in (numbers := side.numbers()):
                told[f"{name}, {when}"] = numbers[key]
    return told


def parted(before: Opinions, after: Opinions, *, seed: int) -> Finding | None:
    """Find agreement that rises while accuracy falls: a shortcut that both have learned.

    Rule: more held-out pairs are agreed on than before, and both averaged are right on fewer, so
    that the interval of the difference lies below 0.
    """
    rise = float(after.agrees.mean() - before.agrees.mean())
    accuracy = compare(
        _numbers(before.together), _numbers(after.together),
        name="together", generator=generator(seed),
    )  # fmt: skip
    if rise <= 0 or accuracy.high is None or accuracy.high >= 0:
        return None
    return Finding(
        "agreement-without-accuracy", "warning",
        f"agreement on held-out pairs rose by {rise:.2f} while accuracy fell by"
        f" {-accuracy.difference:.2f}: both have learned the same mistake",
        "more labelled pairs in --data, a higher --seed-weight, or fewer --epochs",
        curves=("eval_consistency/agreement", "eval_consensus/accuracy"),
    )  # fmt: skip


def shortcut(rows: Sequence[Row]) -> Finding | None:
    """Find agreement on everything by a judge whose verdicts depend on the order.

    Rule: over the last 20 steps both agree on 95 % of the pairs or more, while the order decides
    half of the verdicts or more, or what is shown first wins with a mean probability farther from
    one half than 0.3.
    """
    last = [row for row in rows if "consistency/kept" in row][-FEWEST:]
    if len(last) < FEWEST:
        return None
    agreed, flips, first = (
        statistics.fmean(row[name] for row in last)
        for name in ("consistency/agreement", "judge/flips", "judge/shown_first")
    )
    if agreed < SURELY_AGREED or (flips < ORDER_DECIDES and abs(first - 0.5) < LEANS):
        return None
    return Finding(
        "shortcut", "warning",
        f"both agree on {agreed:.0%} of the pairs, though the order decides {flips:.0%} of the"
        f" judge's verdicts and what is shown first wins with probability {first:.2f}",
        "more labelled pairs in --data, a higher --seed-weight, or a lower --inconsistency-weight",
        int(last[0]["step"]), int(last[-1]["step"]), ("consistency/agreement", "judge/flips"),
    )  # fmt: skip


def _reordered(seen: Seen, order: Tensor) -> Seen:
    sides = (getattr(seen, name) for name in ("policy", "reference", "lengths"))
    policy, reference, lengths = (
        type(one)(one.chosen[order], one.rejected[order]) for one in sides
    )
    return Seen(policy, reference, lengths, seen.labels[order])


def _numbers(values: Float[Tensor, " n"]) -> list[float]:
    return [float(value) for value in values]
