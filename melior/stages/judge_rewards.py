"""How well rewards agree with held-out pairs, before and after, and where they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from melior.data.batches import TokenGroup
from melior.data.files import read_pairs, turn_rows
from melior.evaluation.compare import compare, compare_by_subset
from melior.evaluation.preferences import correct, length_bias
from melior.losses.reward import bradley_terry
from melior.ops import generator
from melior.records import Metrics, text
from melior.types import Pairwise


@torch.no_grad()
def metrics_of(
    rewards: Pairwise,
    pairs: Sequence[TokenGroup],
    loss: Callable[[Pairwise, Float[Tensor, " n"]], Float[Tensor, " n"]],
) -> Metrics:
    """Score pairs, under the names of TRL's reward trainer."""
    margins = torch.tensor([pair.margin for pair in pairs], dtype=torch.float64)
    both = torch.cat([rewards.chosen, rewards.rejected])
    return {
        "loss": float(loss(rewards, margins).mean()),
        "accuracy": float(correct(rewards.margin).mean()),
        "margin": float(rewards.margin.mean()),
        "min_reward": float(both.min()),
        "mean_reward": float(both.mean()),
        "max_reward": float(both.max()),
    }


def verdict(
    before: Pairwise, after: Pairwise, pairs: Sequence[TokenGroup], *, seed: int
) -> dict[str, Any]:
    """Compare held-out pairs before and after, as in a run's `evaluation.json`."""
    draw = generator(seed)
    right = correct(before.margin), correct(after.margin)
    losses = bradley_terry(before), bradley_terry(after)
    comparisons = [
        compare(*right, name="held-out pairs ranked right", unit="share", generator=draw),
        compare(
            *losses, name="Bradley-Terry loss of held-out pairs", unit="nats",
            higher_is_better=False, generator=draw,
        ),
    ]  # fmt: skip
    subsets = [pair.subset for pair in pairs]
    apart = []
    if len(set(subsets)) > 1:
        apart = compare_by_subset(*right, subsets, generator=draw, unit="share")
    shown = ("name", "n", "before", "after", "low", "high")
    return {
        "title": "Held-out pairs",
        "comparisons": [one.to_json() for one in comparisons],
        "subsets": [{key: one.to_json()[key] for key in shown} for one in apart],
        "facts": _facts(after, pairs),
    }


def shown_pairs(
    sources: Sequence[str],
    pairs: Sequence[TokenGroup],
    before: Pairwise,
    after: Pairwise,
    *,
    most: int,
) -> list[dict[str, Any]]:
    """Return the first pairs with their rewards, as rows of a run's `samples.jsonl`.

    A row's score is its margin: those below 0 are where the reward model contradicts the label.
    """
    places = {pair.origin: i for i, pair in enumerate(pairs[:most])}
    rows = []
    for pair in read_pairs(sources) if places else ():
        place = places.pop(pair.origin, None)
        if place is None:
            continue
        chosen, rejected = float(after.chosen[place]), float(after.rejected[place])
        said = (
            f"chosen, reward {chosen:.2f}:\n{text(pair.chosen)}\n\n"
            f"rejected, reward {rejected:.2f}:\n{text(pair.rejected)}"
        )
        rows.append(
            {
                "prompt": turn_rows(pair.prompt),
                "after": said,
                "score_before": float(before.margin[place]),
                "score_after": float(after.margin[place]),
            }
        )
        if not places:
            break
    return rows


def _facts(rewards: Pairwise, pairs: Sequence[TokenGroup]) -> dict[str, Any]:
    """Say how margins are spread, and whether only length was learned."""
    sides = [[answer.n_scored for answer in pair.answers] for pair in pairs]
    bias = length_bias(rewards.margin, *map(list, zip(*sides, strict=True)))
    sizes = rewards.margin.abs()
    facts: dict[str, Any] = {
        "mean margin": float(rewards.margin.mean()),
        "share of margins below 0": float((rewards.margin < 0).double().mean()),
        "90th percentile of the margin's size": float(sizes.quantile(0.9)),
    }
    for name, scores in (("shorter", bias.chosen_shorter), ("longer", bias.chosen_longer)):
        if scores:
            facts[f"ranked right where the better answer is {name}"] = scores.accuracy
            facts[f"pairs whose better answer is {name}"] = scores.n
    return facts
