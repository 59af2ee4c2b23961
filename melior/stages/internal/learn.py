"""From labelled and unlabelled pairs to a model whose own judges agree: one round of SCIR.

Zhou et al. 2025, arXiv 2502.08922. Read, ask about, judge, train, judge again, save.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

from melior.config import config_to_dict
from melior.data.batches import GroupBatches, TokenValues, scored_lengths
from melior.losses.preference import dpo
from melior.models.language import LanguageModel
from melior.models.loading import load, load_chat, save_model
from melior.models.trial import refuse_disagreement
from melior.records import Metrics
from melior.stages.data import write_data
from melior.stages.health import of_answers
from melior.stages.internal.consistency import (
    Portion,
    choose,
    consistent_objective,
    n_warm_up_steps,
)
from melior.stages.internal.judge import (
    Opinions,
    at_start,
    comparisons,
    facts,
    opinions,
    parted,
    see,
    shortcut,
)
from melior.stages.internal.material import Material, Pairs, read_material
from melior.stages.internal.opinions import SelfJudge
from melior.stages.internal.options import ConsistencyOptions, ConsistencyPlan
from melior.stages.internal.watch import stops_of
from melior.stages.learn import Bench, Plan, write_card
from melior.stages.method import Method, log_ratio_method
from melior.stages.reference import reference_log_probs
from melior.training.checkpoint import Checkpoints, Generators
from melior.training.health import Health
from melior.training.hooks import Progress, counted, every
from melior.training.loop import Hook, descend, fit
from melior.training.run import Run, read_rows, write_json, write_json_lines
from melior.training.symptoms import Setting, detectors


def learn_consistently(plan: ConsistencyPlan) -> Path:
    """Learn, and prove what came of it; return the run's folder, which holds it all."""
    loop, judge = plan.loop, SelfJudge(load_chat(plan.model))
    material = read_material(plan, judge)
    with Run.create(
        loop.out, plan.recipe, plan.config, sys.argv, paper=plan.paper, resume=loop.resume,
        overwrite=loop.overwrite, allow_changes=loop.allow_changes, report_to=loop.report_to,
    ) as run:  # fmt: skip
        parts = {"train": material.seed, "unlabelled": material.free}
        parts |= {"held_out": material.held_out} if material.held_out else {}
        write_data(run.folder, {name: one.prepared for name, one in parts.items()}, loop)
        for name, one in parts.items():
            for remark in one.said_of(name.replace("_", "-")):
                run.note(remark)
        _learn(plan, run, judge, material)
    return run.folder


class Examiner:
    """Holds both internal reward models against held-out labels; made of the start model."""

    def __init__(
        self, plan: ConsistencyPlan, model: LanguageModel, judge: SelfJudge, pairs: Pairs
    ) -> None:
        self.plan = plan
        self.model = model
        self.labels = judge.labels
        self.groups = pairs.groups
        self.reference = start_values(model, pairs, max_tokens=plan.loop.max_tokens)
        seen = see(model, self.groups, self.reference, self.labels, max_tokens=self._limit)
        self.before = opinions(at_start(seen), plan.options)

    def now(self) -> Opinions:
        """Examine the model as it is."""
        seen = see(self.model, self.groups, self.reference, self.labels, max_tokens=self._limit)
        return opinions(seen, self.plan.options)

    def metrics(self) -> Metrics:
        """Return what the model as it is comes to, as numbers of a step."""
        return {f"eval_{name}": value for name, value in self.now().numbers().items()}

    @property
    def _limit(self) -> int:
        return self.plan.loop.max_tokens


def start_values(model: LanguageModel, pairs: Pairs, *, max_tokens: int) -> TokenValues:
    """Return the start model's log-probabilities of pairs with questions, which have none."""
    with counted("log-probabilities of the reference", len(pairs.groups)) as progress:
        found = reference_log_probs(model, pairs.plain, max_tokens=max_tokens, on_progress=progress)
    return TokenValues(found.values, scored_lengths(pairs.groups))


def together(
    free: GroupBatches, seed: GroupBatches, total: int, *, start: int
) -> Iterator[list[Portion]]:
    """Yield the portions of each step: unlabelled ones, then labelled ones."""
    both = (batches.iterate(total, start=start) for batches in (free, seed))
    for loose, held in zip(*both, strict=True):
        yield [*(Portion(one, False) for one in loose), *(Portion(one, True) for one in held)]


def _learn(plan: ConsistencyPlan, run: Run, judge: SelfJudge, material: Material) -> None:
    model = load(plan.model, trainable=True, seed=plan.loop.seed)
    if model.padded_because:
        run.note(f"answers are computed one by one, under padding: {model.padded_because}")
    refuse_disagreement(model, ((one.origin, one.answers) for one in material.seed.groups))
    held_out = material.held_out
    source = (held_out or material.seed).prepared
    bench = Bench(_as_plan(plan), model, source if held_out else None, source.first_prompts)
    examiner = Examiner(plan, model, judge, held_out) if held_out else None
    health = _train(plan, run, model, judge, material, examiner)
    save_model(model, run.folder / "model")
    evaluation = bench.verdict()
    if examiner:
        after = examiner.now()
        evaluation["comparisons"] += comparisons(examiner.before, after, seed=plan.loop.seed)
        evaluation["facts"] |= facts(examiner.before, after)
        health.add(parted(examiner.before, after, seed=plan.loop.seed))
    write_json(run.folder / "evaluation.json", evaluation)
    said = bench.before, bench.after, material.seed.plain, evaluation["facts"]
    names = frozenset(config_to_dict(plan.config))
    health.add(*of_answers(*said, kl_budget=plan.loop.kl_budget, options=names))
    write_json_lines(run.folder / "samples.jsonl", bench.side_by_side())
    write_card(run.folder, base=plan.model.model)


def _train(
    plan: ConsistencyPlan,
    run: Run,
    model: LanguageModel,
    judge: SelfJudge,
    material: Material,
    examiner: Examiner | None,
) -> Health:
    """Take all steps, or those still to come; return what watched them."""
    loop, (free, seed) = plan.loop, _batches(plan, model, judge, material)
    total = loop.max_steps or ceil(loop.epochs * free.steps_per_epoch)
    if loop.gradient_checkpointing:
        model.checkpoint_activations()
    step = descend(
        consistent_objective(model, judge.labels, plan.options), model.trainable(), plan.optim,
        total_steps=total, masters=model.masters,
    )  # fmt: skip
    chosen = choose(model, judge.labels, plan.options)
    kept = Checkpoints(
        run.folder / "checkpoints", {"step": step, "generators": Generators()},
        about=_about(plan, model, material, total), keep=loop.save_total_limit,
    )  # fmt: skip
    start = _resume(plan, run, kept) if loop.resume else 0
    health = _watch(plan, run, total)

    def note(number: int, metrics: dict[str, float]) -> None:
        run.append(number, {"epoch": number / free.steps_per_epoch} | metrics)

    def examine(number: int) -> None:
        if examiner:
            run.append(number, examiner.metrics())

    with Progress(total, start=start) as progress:
        hooks: list[Hook] = [
            note, progress, health, every(loop.eval_steps, examine),
            every(loop.save_steps, kept.save, last=total), *_stops(plan, run, health, total),
        ]  # fmt: skip
        todo = together(free, seed, total, start=start)
        fit(lambda parts: step(chosen(parts)), todo, hooks=hooks, start=start, save=kept.save)
    return health


def _watch(plan: ConsistencyPlan, run: Run, total: int) -> Health:
    options = frozenset(config_to_dict(plan.config))
    setting = Setting(total, plan.optim.max_grad_norm, None, options)
    past = read_rows(run.folder) if plan.loop.resume else []
    watch = (*detectors(setting), shortcut)
    return Health(run.folder, watch, total_steps=total, note=run.note, past=past)


def _stops(plan: ConsistencyPlan, run: Run, health: Health, total: int) -> list[Hook]:
    n_warm_up = n_warm_up_steps(total, plan.options)
    return stops_of(plan.stops, health, read_rows(run.folder), n_warm_up=n_warm_up)


def _about(
    plan: ConsistencyPlan, model: LanguageModel, material: Material, total: int
) -> dict[str, Any]:
    """Return all that a checkpoint must have been made with."""
    parts = (material.seed, material.free, material.held_out)
    data = [one.prepared.sha256 if one else "" for one in parts]
    options = config_to_dict(plan.config)
    return {"options": options, "steps": total, "data": data, "model": model.start_hash}


def _resume(plan: ConsistencyPlan, run: Run, kept: Checkpoints) -> int:
    """Go back to the newest whole checkpoint and return its step."""
    start, remark = kept.restore(allow_changes=plan.loop.allow_changes)
    if remark:
        run.note(remark)
    run.rewind(start)
    return start


def _batches(
    plan: ConsistencyPlan, model: LanguageModel, judge: SelfJudge, material: Material
) -> tuple[GroupBatches, GroupBatches]:
    """Return batches of unlabelled and of labelled pairs; the model still is the start model."""
    loop, found = plan.loop, []
    n_seed = max(1, round(plan.options.seed_ratio * loop.batch_size))
    for pairs, size in ((material.free, loop.batch_size), (material.seed, n_seed)):
        reference = start_values(model, pairs, max_tokens=loop.max_tokens)
        groups = pairs.groups
        if pairs is material.free and plan.options.labels == "judge":
            seen = see(model, groups, reference, judge.labels, max_tokens=loop.max_tokens)
            logits = seen.judge.double().logit().tolist()
            groups = [replace(g, margin=own) for g, own in zip(groups, logits, strict=True)]
        found.append(
            GroupBatches(
                groups, reference, batch_size=size, max_tokens=loop.max_tokens, seed=loop.seed
            )
        )
    return found[0], found[1]


def _as_plan(plan: ConsistencyPlan) -> Plan:
    """Return the plan by which held-out pairs and answers are judged as after any other run."""
    return Plan(
        plan.recipe, plan.paper, _method(plan.options), plan.model, plan.data, plan.optim,
        plan.loop, plan.config,
    )  # fmt: skip


def _method(options: ConsistencyOptions) -> Method:
    def loss(policy: Any, reference: Any) -> Any:
        return dpo(policy, reference, beta=options.beta)

    return log_ratio_method(loss, beta=options.beta)
