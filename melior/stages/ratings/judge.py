"""What a mixture of objectives came to: against a static and an even one, and what it looks at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from melior.correlation import spearman
from melior.data.batches import TokenGroup
from melior.data.files import read_pairs, turn_rows
from melior.evaluation.compare import compare, compare_by_subset
from melior.evaluation.preferences import correct
from melior.losses.aspects import Regression, gated_score, static_mixture
from melior.losses.reward import bradley_terry
from melior.models.aspects import AspectModel, Mixed
from melior.models.layout import evaluating
from melior.ops import generator
from melior.records import text
from melior.stages.ratings.gate import PairTable, gated_scores
from melior.types import Pairwise

MOST_SHOWN = 4
"""Objectives that an explanation names."""


@dataclass(frozen=True)
class Tables:
    """The pairs that were trained on and those held out, as rewards, and the latter as tokens."""

    train: PairTable
    held_out: PairTable
    pairs: Sequence[TokenGroup]


def verdict(
    model: AspectModel, regression: Regression, tables: Tables, *, seed: int
) -> dict[str, Any]:
    """Compare the gate with mixtures that are the same for every prompt: `evaluation.json`.

    The static mixture is the likeliest one on the pairs that the gate was trained on; the even one
    weighs all objectives alike.
    """
    if not tables.pairs:
        return {"comparisons": [], "tables": [_objectives(model, regression, tables)]}
    draw, held_out = generator(seed), tables.held_out
    gated = gated_scores(model.gate, model.aspects.transform, held_out.to(_device(model)))
    fixed, even = (_mixed(model, held_out, own) for own in _mixtures(model, tables.train))
    right = {name: correct(own.margin) for name, own in
             (("gate", gated), ("static", fixed), ("even", even))}  # fmt: skip
    losses = bradley_terry(fixed), bradley_terry(gated)
    comparisons = [
        compare(right["static"], right["gate"], name="held-out pairs ranked right: static mixture,"
                " then gate", unit="share", generator=draw),
        compare(right["even"], right["gate"], name="held-out pairs ranked right: even mixture, then"
                " gate", unit="share", generator=draw),
        compare(*losses, name="Bradley-Terry loss of held-out pairs: static mixture, then gate",
                unit="nats", higher_is_better=False, generator=draw),
    ]  # fmt: skip
    subsets = [pair.subset for pair in tables.pairs]
    apart = []
    if len(set(subsets)) > 1:
        apart = compare_by_subset(
            right["static"], right["gate"], subsets, generator=draw, unit="share"
        )
    shown = ("name", "n", "before", "after", "low", "high")
    return {
        "comparisons": [one.to_json() for one in comparisons],
        "subsets": [{key: one.to_json()[key] for key in shown} for one in apart],
        "facts": _facts(model, tables, gated),
        "tables": [_objectives(model, regression, tables), _weights(model, tables)],
    }


def explained_pairs(
    model: AspectModel, sources: Sequence[str], pairs: PairTable, *, most: int
) -> list[dict[str, Any]]:
    """Return the first held-out pairs with what makes their scores, as rows of `samples.jsonl`.

    A row's score is its margin: those below 0 are where the mixture contradicts the label.
    """
    places = {origin: i for i, origin in enumerate(pairs.origins[:most])}
    rows: list[dict[str, Any]] = []
    for pair in read_pairs(sources) if places else ():
        place = places.pop(pair.origin, None)
        if place is None:
            continue
        mixed = _mix(model, pairs, place)
        said = "\n\n".join(
            f"{side}, score {mixed.scores[k]:.3f} = {_why(model, mixed, k)}\n{text(answer)}"
            for k, (side, answer) in enumerate(
                (("chosen", pair.chosen), ("rejected", pair.rejected))
            )
        )
        margin = float(mixed.scores[0] - mixed.scores[1])
        rows.append({"prompt": turn_rows(pair.prompt), "after": said, "score_after": margin})
        if not places:
            break
    return rows


def _mix(model: AspectModel, pairs: PairTable, place: int) -> Mixed:
    both = torch.stack([pairs.chosen[place], pairs.rejected[place]])
    return model.mix_rewards(both, pairs.prompts[place])


def _why(model: AspectModel, mixed: Mixed, k: int) -> str:
    rows = model.aspects.explanation(mixed.rewards[k], mixed.coefficients)
    parts = [
        f"{row['contribution']:+.3f} {row['objective']} (weight {row['weight']:.3f}, rating"
        f" {row['rating']:.2f})"
        for row in rows[:MOST_SHOWN]
    ]
    return ", ".join(parts) + (", ..." if len(rows) > MOST_SHOWN else "")


def _device(model: AspectModel) -> torch.device:
    return model.reward.core.device


def _allowed(model: AspectModel) -> Bool[Tensor, " m"]:
    """Say which objectives may have weight."""
    return torch.arange(len(model.aspects.each)) != (
        -1 if model.gate.options.null is None else model.gate.options.null
    )


def _mixtures(
    model: AspectModel, train: PairTable
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Return the weights of the best static mixture, and of one that weighs all alike."""
    transform, allowed = model.aspects.transform, _allowed(model)
    fixed = static_mixture(
        train.chosen @ transform, train.rejected @ transform, allowed, weights=train.weights
    )
    return fixed, fixed.sum() * allowed.double() / allowed.sum()


def _mixed(model: AspectModel, pairs: PairTable, weights: Float[Tensor, " m"]) -> Pairwise:
    everywhere, transform = weights.expand(len(pairs.chosen), -1), model.aspects.transform
    return Pairwise(
        gated_score(pairs.chosen, everywhere, transform),
        gated_score(pairs.rejected, everywhere, transform),
    )


def _lengths(pairs: Sequence[TokenGroup]) -> Float[Tensor, " n"]:
    """Return how long answers are in tokens: all chosen ones, then all rejected ones."""
    sides = [[pair.answers[side].n_scored for pair in pairs] for side in (0, 1)]
    return torch.tensor([*sides[0], *sides[1]], dtype=torch.float64)


def _facts(model: AspectModel, tables: Tables, gated: Pairwise) -> dict[str, Any]:
    """Say how scores go with length, before and after verbosity is taken off."""
    plain = torch.diag(torch.ones(len(model.aspects.each), dtype=torch.float64))
    raw = gated_scores(model.gate, plain, tables.held_out.to(_device(model)))
    lengths = _lengths(tables.pairs)
    facts: dict[str, Any] = {
        f"Spearman's correlation of scores with length, {name}": float(
            spearman(torch.cat([own.chosen, own.rejected])[:, None], lengths)
        )
        for name, own in (("verbosity left in", raw), ("verbosity taken off", gated))
    }
    facts["scale of the gate"] = float(model.gate.log_scale.detach().exp())
    facts["mean margin"] = float(gated.margin.mean())
    return facts


def _objectives(model: AspectModel, regression: Regression, tables: Tables) -> dict[str, Any]:
    """Say of each objective how well it was learned and what it shares with length."""
    rows: list[list[Any]] = []
    if tables.pairs:
        rewards = torch.cat([tables.held_out.chosen, tables.held_out.rejected])
        lengths = _lengths(tables.pairs)
        before = spearman(rewards, lengths).tolist()
        after = spearman(rewards @ model.aspects.transform, lengths).tolist()
    else:
        before = after = [math.nan] * len(model.aspects.each)
    columns = (regression.counts.tolist(), regression.alphas.tolist(), regression.errors.tolist(),
               regression.explained.tolist(), regression.correlations.tolist(),
               [one.penalty for one in model.aspects.each], before, after)  # fmt: skip
    for name, *own in zip(model.aspects.names, *columns, strict=True):
        rows.append([name, *(None if math.isnan(value) else value for value in own)])
    return {
        "title": "Objectives",
        "note": "alpha: strength of the ridge. MSE, R2, r: on ratings of held-out prompts, on the"
        " unit scale. Penalty: of verbosity. The last two: Spearman's correlation with length.",
        "columns": ["Objective", "ratings", "alpha", "MSE", "R2", "r", "penalty",
                    "length, before", "length, after"],
        "rows": rows,
    }  # fmt: skip


def _weights(model: AspectModel, tables: Tables) -> dict[str, Any]:
    """Say how much of its weight the gate gives to each objective, by subset."""
    with evaluating(model.gate):
        weights = model.gate(tables.held_out.prompts.to(_device(model))).double().cpu()
    shares = weights / weights.sum(-1, keepdim=True)
    subsets = [pair.subset or "all" for pair in tables.pairs]
    names = list(dict.fromkeys(subsets))
    means = [shares[[own == name for own in subsets]].mean(0).tolist() for name in names]
    rows = [[name, *own] for name, *own in zip(model.aspects.names, *means, strict=True)]
    return {
        "title": "Where the gate looks",
        "note": "Mean share of its weight on held-out prompts, by subset.",
        "columns": ["Objective", *names],
        "rows": rows,
    }
