"""From rated answers and pairs to a mixture of objectives: features, regression, gate, verdict.

Wang, Xiong, Xie, Zhao, Zhang 2024, arXiv 2406.12845 (ArmoRM). The model itself is never trained:
its features are computed once and kept. Then each objective is fitted by a ridge regression, its
share of verbosity measured and taken off, and a gate trained on pairs, kept at its best step.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from melior import ops
from melior.config import config_to_dict
from melior.data.aspects import VERBOSITY
from melior.data.batches import TokenGroup
from melior.losses.aspects import (
    LEAST_RATINGS,
    Correlation,
    Regression,
    decorrelation,
    masked_ridge,
)
from melior.models.aspects import Aspect, AspectModel, Aspects, opening_length, set_head
from melior.models.gate import AspectGate, GateOptions
from melior.models.heads import load_reward_model, reward_chat
from melior.models.loading import n_positions
from melior.models.trial import refuse_disagreement
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.stages.data import Prepared, hold_out, prepare, write_data
from melior.stages.learn import write_card
from melior.stages.ratings.features import FeatureTable, KeptFeatures
from melior.stages.ratings.gate import GateRun, PairTable, train_gate
from melior.stages.ratings.judge import Tables, explained_pairs, verdict
from melior.stages.ratings.rated import Rated, prepare_rated, prepare_reference
from melior.training.hooks import counted
from melior.training.run import Run, write_json, write_json_lines

MISSED = 0.05
"""By how much a constant may be missed before it is said."""


@dataclass(frozen=True)
class GatePlan:
    """What the gate is made from."""

    hidden: int
    layers: int
    dropout: float
    temperature: float
    scale: float
    drop_null: bool
    """No weight for verbosity, whose decorrelated reward is always 0."""


@dataclass(frozen=True)
class AspectPlan:
    """All that learning a mixture of objectives needs to know, as values."""

    recipe: str
    paper: str
    ratings: tuple[str, ...]
    reference: tuple[str, ...]
    """Answers on which correlations with verbosity are measured; none takes those trained on."""
    scales: tuple[str, ...]
    verbosity: str
    """The objective's name, `auto` or `none`."""
    target: float
    correlation: Correlation
    gate: GatePlan
    validation_share: float
    model: ModelOptions
    data: DataOptions
    """The pairs."""
    optim: OptimConfig
    loop: LoopOptions
    config: object
    """The recipe's dataclass, to be written down."""


@dataclass(frozen=True)
class Inputs:
    """All that is read, tokenised, before any weights are loaded."""

    rated: Rated
    train: Prepared
    held_out: Prepared | None
    reference: Prepared | None

    def parts(self) -> dict[str, Prepared]:
        """Return what there is by its name in `data.json`."""
        found = {"train": self.train, "held_out": self.held_out, "ratings": self.rated.prepared,
                 "reference": self.reference}  # fmt: skip
        return {name: part for name, part in found.items() if part}


def train_aspects(plan: AspectPlan) -> Path:
    """Learn a mixture of objectives and prove what came of it; return the run's folder."""
    loop, inputs = plan.loop, _prepare(plan)
    place = _verbosity(plan, inputs.rated.names)
    if loop.overwrite:  # before the old run is deleted
        _refuse(plan, inputs)
    with Run.create(
        loop.out, plan.recipe, plan.config, sys.argv, paper=plan.paper, resume=loop.resume,
        overwrite=loop.overwrite, allow_changes=loop.allow_changes, report_to=loop.report_to,
    ) as run:  # fmt: skip
        write_data(run.folder, inputs.parts(), loop)
        _refuse(plan, inputs)
        _learn(plan, run, inputs, place)
    return run.folder


def _prepare(plan: AspectPlan) -> Inputs:
    chat, data, seed = reward_chat(plan.model), plan.data, plan.loop.seed
    opening = opening_length(chat)
    with counted("tokenising pairs") as progress:
        train = prepare(
            data.data, chat, data, seed=seed, held_out=data.eval_data, opening=opening,
            on_progress=progress,
        )  # fmt: skip
        apart = None
        if data.eval_data:
            apart = prepare(
                data.eval_data, chat, data, seed=seed, opening=opening, on_progress=progress
            )
    rated = prepare_rated(plan.ratings, chat, data, scales=plan.scales)
    reference = None
    if plan.reference:
        reference = prepare_reference(plan.reference, chat, data, seed=seed)
    inputs = Inputs(rated, train, apart, reference)
    for part in inputs.parts().values():
        part.refuse_beyond(n_positions(plan.model))
    return inputs


def _refuse(plan: AspectPlan, inputs: Inputs) -> None:
    for part in inputs.parts().values():
        part.refuse_errors(allowed=plan.data.allow_lint_errors)


def _verbosity(plan: AspectPlan, names: Sequence[str]) -> int | None:
    """Return the place of the objective that is taken off the others, if one is."""
    found = [name for name in names if name == VERBOSITY or name.endswith(f"-{VERBOSITY}")]
    if plan.verbosity == "none" or (plan.verbosity == "auto" and not found):
        return None
    if plan.verbosity == "auto" and len(found) > 1:
        raise ValueError(f"verbosity must be one objective; found {', '.join(found)}; name one")
    name = found[0] if plan.verbosity == "auto" else plan.verbosity
    if name not in names:
        raise ValueError(f"verbosity must be one of {', '.join(names)}, or none; found {name!r}")
    return list(names).index(name)


def _learn(plan: AspectPlan, run: Run, inputs: Inputs, verbosity: int | None) -> None:
    reward = load_reward_model(plan.model, trainable=False, seed=plan.loop.seed)
    if reward.padded_because:
        run.note(f"answers are computed one by one, under padding: {reward.padded_because}")
    refuse_disagreement(reward, ((one.origin, one.answers) for one in inputs.train.groups))
    features = KeptFeatures(reward, max_tokens=plan.loop.max_tokens)
    pairs, apart = _apart(plan, run, inputs)
    _look_for_shared(run, inputs, apart)
    regression = _regression(plan, run, inputs.rated, features)
    train, held_out = (
        _table(regression, features.of(own, title), own)
        for own, title in ((pairs, "pairs"), (apart, "held-out pairs"))
    )
    others = torch.cat([train.chosen, train.rejected])
    if inputs.reference:
        table = features.of(inputs.reference.groups, "reference answers")
        others = regression.rewards(table.answers)
    aspects = _aspects(plan, run, inputs.rated, others, verbosity)
    set_head(reward, regression.weights.float(), aspects.names)
    gate = _gate(plan, aspects, regression).to(reward.core.device)
    shas = {name: part.sha256 for name, part in inputs.parts().items()}
    about = {"options": config_to_dict(plan.config), "data": shas, "model": features.identity}
    what = GateRun(gate, aspects.transform, plan.optim, plan.loop, about)
    best = train_gate(what, run, train, held_out)
    model = AspectModel(reward, gate, aspects)
    model.save(run.folder / "model")
    found = verdict(model, regression, Tables(train, held_out, apart), seed=plan.loop.seed)
    chose = f"Static mixture and gate on held-out pairs, which chose step {best.step}"
    found["title"] = chose if apart else "No pairs were held out"
    write_json(run.folder / "evaluation.json", found)
    sources = plan.data.eval_data or plan.data.data
    rows = explained_pairs(model, sources, held_out, most=plan.data.n_samples)
    write_json_lines(run.folder / "samples.jsonl", rows)
    write_card(run.folder, base=plan.model.model)


def _apart(plan: AspectPlan, run: Run, inputs: Inputs) -> tuple[list[TokenGroup], list[TokenGroup]]:
    """Return the pairs to train on, and those held out to choose the best step."""
    if inputs.held_out:
        return inputs.train.groups, inputs.held_out.groups
    pairs, apart = hold_out(inputs.train.groups, plan.validation_share, seed=plan.loop.seed)
    if apart and not plan.loop.resume:
        run.note(
            f"{len(apart)} of {len(inputs.train.groups)} pairs are held out, by their prompts, to"
            " choose the best step"
        )
    return pairs, apart


def _regression(plan: AspectPlan, run: Run, rated: Rated, features: KeptFeatures) -> Regression:
    """Fit each objective, and say what its ratings are too few or too much alike for."""
    for name, column, is_constant in zip(
        rated.names, rated.ratings.T, rated.is_constant, strict=True
    ):
        count = int((~column.isnan()).sum())
        if count < LEAST_RATINGS:
            run.note(f"{name}: {count} ratings are few; its ridge is no weaker than 1")
        if is_constant and count:
            run.note(f"{name}: all {count} ratings are the same, so that its reward says nothing")
    if all(rated.is_constant):
        raise ValueError(
            f"{', '.join(plan.ratings)}: needs an objective with different ratings; found all the"
            f" same in {', '.join(rated.names)}"
        )
    table = features.of(rated.prepared.groups, "rated answers")
    _note_constant(plan, run, table, rated)
    return masked_ridge(
        table.answers, rated.ratings, names=rated.names, prompts=rated.prompts,
        generator=ops.generator(plan.loop.seed),
    )  # fmt: skip


def _note_constant(plan: AspectPlan, run: Run, table: FeatureTable, rated: Rated) -> None:
    """Say where no weights give the same number for all answers: ratings then miss their mean.

    A head of transformers has no intercept, so that none can be added to what is saved. Models'
    features mostly have a direction that hardly varies, which serves as one.
    """
    ones = torch.ones(len(table.answers), 1, dtype=torch.float64)
    found = masked_ridge(
        table.answers, ones, names=("a constant",), prompts=rated.prompts,
        generator=ops.generator(plan.loop.seed),
    )  # fmt: skip
    missed = float(found.errors[0].sqrt())
    if missed > MISSED:
        run.note(
            f"the features have no constant direction: 1 is missed by {missed:.2f} on average, and"
            " ratings by as large a share of their mean; differences of scores hardly suffer"
        )


def _table(regression: Regression, table: FeatureTable, pairs: Sequence[TokenGroup]) -> PairTable:
    """Return the rewards of pairs, whose answers stand chosen first, with the prompts' features."""
    rewards = regression.rewards(table.answers)
    weights = torch.tensor([pair.weight for pair in pairs], dtype=torch.float64)
    origins = tuple(pair.origin for pair in pairs)
    return PairTable(rewards[::2], rewards[1::2], table.prompts, weights, origins)


def _look_for_shared(run: Run, inputs: Inputs, apart: Sequence[TokenGroup]) -> None:
    """Refuse to measure correlations on what the verdict is spoken on; say what ratings know of it.

    Raises:
        ValueError: a reference answer is to a prompt of a held-out pair.
    """
    known = {pair.prompt for pair in apart}

    def shared(part: Prepared | None) -> list[str]:
        return [own.origin for own in part.groups if own.prompt in known] if part else []

    if found := shared(inputs.reference):
        raise ValueError(
            f"{found[0]}: the reference must have other prompts than the held-out pairs; found"
            f" {len(found)} of the same"
        )
    if found := shared(inputs.rated.prepared):
        run.note(
            f"{len(found)} prompts of held-out pairs have rated answers (first {found[0]}), so that"
            " the verdict is a little too kind"
        )


def _aspects(
    plan: AspectPlan, run: Run, rated: Rated, rewards: Float[Tensor, "n m"], place: int | None
) -> Aspects:
    """Measure what the objectives share with verbosity, and say where that cannot be."""
    penalties = [0.0] * len(rated.names)
    if place is not None and _is_flat(rated, rewards, place):
        run.note(
            f"{rated.names[place]} is the same for all answers, so that nothing can be taken off:"
            " scores keep what they share with length"
        )
        place = None
    if place is not None:
        found = decorrelation(rewards, place, target=plan.target, correlation=plan.correlation)
        own = zip(found.penalties.tolist(), rated.is_constant, strict=True)
        penalties = [0.0 if is_constant else penalty for penalty, is_constant in own]
        rows = zip(rated.names, penalties, found.reached, strict=True)
        if bound := [name for name, penalty, is_met in rows if penalty and not is_met]:
            run.note(f"no penalty takes verbosity off {', '.join(bound)}: it is 1 there")
    each = zip(rated.names, rated.scales, penalties, strict=True)
    return Aspects(tuple(Aspect(*one) for one in each), place)


def _is_flat(rated: Rated, rewards: Float[Tensor, "n m"], place: int) -> bool:
    verbose = rewards[:, place]
    return rated.is_constant[place] or bool(verbose.amin() == verbose.amax())


def _gate(plan: AspectPlan, aspects: Aspects, regression: Regression) -> AspectGate:
    own = plan.gate
    options = GateOptions(
        features=regression.weights.shape[1], aspects=len(aspects.each), hidden=own.hidden,
        layers=own.layers, dropout=own.dropout, temperature=own.temperature, scale=own.scale,
        null=aspects.verbosity if own.drop_null else None,
    )  # fmt: skip
    if options.null is not None and options.aspects == 1:
        raise ValueError(
            f"a mixture needs an objective besides {aspects.names[0]}; found none; rate by others,"
            " too, or give --verbosity none"
        )
    return AspectGate(options, seed=plan.loop.seed)
