"""From a preference file to a better model: read, check, judge, train, judge again, save."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import torch

from melior.config import config_to_dict, read_config
from melior.data.batches import GroupBatch, GroupBatches, TokenGroup, TokenValues
from melior.data.files import turn_rows
from melior.models.card import Card
from melior.models.generation import Completion
from melior.models.language import LanguageModel
from melior.models.loading import device_of, load, load_chat, n_positions, save_model
from melior.models.names import KIND_FILE
from melior.models.trial import refuse_disagreement
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.records import Metrics, Turns
from melior.stages.data import Prepared, as_it_was_said, prepare, write_data
from melior.stages.health import of_answers, of_data, start_loss, watch
from melior.stages.inputs import held_out_data
from melior.stages.judge import (
    answers,
    compare_held_out,
    held_out_answers,
    held_out_metrics,
    kl,
    refuse_unranked,
)
from melior.stages.method import Method
from melior.stages.preference import couple, coupled_objective, group_objective
from melior.stages.reference import reference_log_probs, token_log_probs
from melior.training import processes
from melior.training.checkpoint import Checkpoints, Generators, Stateful
from melior.training.health import Health
from melior.training.hooks import Progress, counted, every
from melior.training.loop import Hook, descend, fit
from melior.training.run import Run, last_metrics, write_json, write_json_lines, write_text
from melior.training.symptoms import Setting

SAMPLE_TOKENS = 128
"""Of the answers shown side by side."""


@dataclass(frozen=True)
class Plan:
    """All that learning from comparisons needs to know, as values."""

    recipe: str
    paper: str
    method: Method
    model: ModelOptions
    data: DataOptions
    optim: OptimConfig
    loop: LoopOptions
    config: object
    """The recipe's dataclass, to be written down."""
    reference: str = ""
    """The model that losses are relative to, where that is not the one training starts from."""


def learn(plan: Plan) -> Path:
    """Learn and prove what came of it; return the run's folder, which holds it all."""
    loop = plan.loop
    processes.join(device_of(plan.model.device))
    train, held_out = prepare_data(plan)
    refuse_unfit(plan, train)
    _meet_over(train, held_out)
    if loop.overwrite:  # before the old run is deleted
        train.refuse_errors(allowed=plan.data.allow_lint_errors)
    with Run.create(
        loop.out, plan.recipe, plan.config, sys.argv, paper=plan.paper, resume=loop.resume,
        overwrite=loop.overwrite, allow_changes=loop.allow_changes, report_to=loop.report_to,
    ) as run:  # fmt: skip
        parts = {"train": train} | ({"held_out": held_out} if held_out else {})
        processes.from_first(lambda: write_data(run.folder, parts, loop))
        train.refuse_errors(allowed=plan.data.allow_lint_errors)
        if plan.method.needs_margins:
            ties = sum(group.margin == 0 for group in train.groups)
            run.note(
                "margins are those that the rows hold, of a reward model or differences of ratings;"
                f" {ties} of {len(train.groups)} rows have none, or 0, and count as ties"
            )
        _learn(plan, run, train, held_out)
    return run.folder


def _learn(plan: Plan, run: Run, train: Prepared, held_out: Prepared | None) -> None:
    model = load(plan.model, trainable=True, seed=plan.loop.seed)
    if model.padded_because:
        run.note(f"answers are computed one by one, under padding: {model.padded_because}")
    refuse_disagreement(model, ((group.origin, group.answers) for group in train.groups))
    bench = Bench(plan, model, held_out, (held_out or train).first_prompts)
    data = [train.sha256, held_out.sha256 if held_out else ""]
    about = {"data": data, "model": model.start_hash}
    about |= {"reference": plan.reference} if plan.reference else {}
    health = _train(plan, run, model, train, bench, about=about)
    save_model(model, run.folder / "model")
    evaluation = bench.verdict()
    write_json(run.folder / "evaluation.json", evaluation)
    budget = plan.loop.kl_budget
    said = bench.before, bench.after, train.groups, evaluation["facts"]
    health.add(*of_answers(*said, kl_budget=budget, options=_options(plan)))
    write_json_lines(run.folder / "samples.jsonl", bench.side_by_side())
    processes.from_first(lambda: write_card(run.folder, base=plan.model.model))


class Bench:
    """The same held-out rows and prompts, put to the model before and after.

    Made while the model is still the start model.
    """

    def __init__(
        self, plan: Plan, model: LanguageModel, held_out: Prepared | None, prompts: Sequence[Turns]
    ) -> None:
        self.plan = plan
        self.model = model
        self.groups = held_out.groups if held_out else []
        self.data = held_out.data if held_out else plan.method.data
        self.prompts = list(prompts)[: plan.data.n_samples]
        self.before = self._answers()
        self.reference = TokenValues.zeros(self.groups)
        if self.groups:
            with counted("judging held-out rows", len(self.groups)) as progress:
                self.start = reference_log_probs(
                    model, self.groups, max_tokens=plan.loop.max_tokens, on_progress=progress
                )
            if plan.method.has_reference:
                self.reference = _reference(plan, model, self.groups) or self.start

    def metrics(self) -> Metrics:
        """Evaluate the model as it is now."""
        limit = self.plan.loop.max_tokens
        policy = token_log_probs(self.model, self.groups, max_tokens=limit)
        self.now = held_out_answers(self.groups, policy, self.reference)
        return held_out_metrics(self.now, self.plan.method, self.data)

    def verdict(self) -> dict[str, Any]:
        """Compare now with before, as in a run's `evaluation.json`."""
        self.after = self._answers()
        found: dict[str, Any] = {"title": "Before and after", "comparisons": [], "facts": {}}
        if self.groups:
            self.metrics()
            before = held_out_answers(self.groups, self.start, self.reference)
            found |= compare_held_out(
                before, self.now, self.plan.method, self.groups, self.data,
                seed=self.plan.loop.seed,
            )  # fmt: skip
        if self.prompts:
            found["facts"] = self._moved()
        return found

    def side_by_side(self) -> list[dict[str, Any]]:
        """Return the answers to each prompt, as rows of a run's `samples.jsonl`."""
        rows = zip(self.prompts, self.before, self.after, strict=True)
        return [
            {"prompt": turn_rows(prompt), "before": old.text, "after": new.text}
            for prompt, old, new in rows
        ]

    def _answers(self) -> list[Completion]:
        if not self.prompts:
            return []
        seed = self.plan.loop.seed
        return answers(self.model, self.prompts, max_new_tokens=SAMPLE_TOKENS, seed=seed)

    def _moved(self) -> dict[str, Any]:
        """Say how far the answers are from the start model's, and how long they are."""
        if self.model.has_adapter:
            with self.model.reference():
                moved = kl(self.model, self.prompts, self.after)
        else:
            start = load(self.plan.model, trainable=False)
            moved = kl(start, self.prompts, self.after)
        mean = [sum(len(a.tokens) for a in side) / len(side) for side in (self.before, self.after)]
        return {
            "KL to the start, nats per answer": moved.value,
            "its standard error": moved.error,
            "tokens per answer before": mean[0],
            "tokens per answer after": mean[1],
            "sampled answers": moved.n,
        }


def prepare_data(plan: Plan) -> tuple[Prepared, Prepared | None]:
    """Read and check the data before any weights are loaded."""
    chat, data, seed = load_chat(plan.model), plan.data, plan.loop.seed
    positions = n_positions(plan.model)
    room = positions - SAMPLE_TOKENS
    with counted("tokenising rows") as progress:
        train = prepare(
            data.data, chat, data, data=plan.method.data, has_strangers=plan.method.has_strangers,
            encode=as_it_was_said, seed=seed, held_out=data.eval_data, longest_prompt=room,
            on_progress=progress,
        )  # fmt: skip
        held_out = None
        if data.eval_data:
            apart = held_out_data(plan.method.data, data.eval_data)
            held_out = prepare(
                data.eval_data, chat, data, data=apart, encode=as_it_was_said, seed=seed,
                longest_prompt=room, on_progress=progress,
            )  # fmt: skip
            refuse_unranked(held_out.groups, data.eval_data)
    for part in (train, held_out):
        if part:
            part.refuse_beyond(positions)
    return train, held_out


def _meet_over(train: Prepared, held_out: Prepared | None) -> None:
    """See that all processes have read the same, before the folder is touched."""
    read = processes.gather((train.sha256, held_out.sha256 if held_out else ""))
    if len(set(read)) > 1:
        raise ValueError(
            "data: all processes must read the same rows; found other ones in process"
            f" {next(i for i, one in enumerate(read) if one != read[0])} than in 0"
        )


def refuse_unfit(plan: Plan, train: Prepared) -> None:
    """Refuse rows without what the method reads of them."""
    sources, (low, high) = ", ".join(plan.data.data), plan.method.score_range
    if plan.method.needs_margins and all(group.margin == 0 for group in train.groups):
        raise ValueError(
            f"{sources}: {plan.recipe} needs a 'margin' in its rows; found none but 0;"
            " `melior margins` adds those of a reward model"
        )
    for group in train.groups:
        if any(score < low or score > high for score in group.scores):
            raise ValueError(
                f"{group.origin}: scores must lie from score_low {low:g} to score_high {high:g};"
                f" found {min(group.scores):g} to {max(group.scores):g}"
            )


def _train(
    plan: Plan,
    run: Run,
    model: LanguageModel,
    train: Prepared,
    bench: Bench,
    *,
    about: dict[str, Any],
) -> Health:
    """Take all steps, or those still to come; return what watched them."""
    loop, batches = plan.loop, _batches(plan, model, train)
    total = loop.max_steps or ceil(loop.epochs * batches.steps_per_epoch)
    if loop.gradient_checkpointing:
        model.checkpoint_activations()
    step, parts = _step(plan, model, total)
    # Dropout draws from torch's own generator, and no other.
    torch.manual_seed(loop.seed + processes.place())
    kept = Checkpoints(
        run.folder / "checkpoints",
        {**parts, "generators": Generators()},
        about={"options": config_to_dict(plan.config), "steps": total, **about},
        keep=loop.save_total_limit,
    )
    start = _resume(plan, run, kept) if loop.resume else 0
    first = None if plan.reference else start_loss(plan.method, train.groups)
    setting = Setting(total, plan.optim.max_grad_norm, first, _options(plan))
    health = watch(run, setting, is_resumed=loop.resume)
    health.add(of_data(train.findings, loop.epochs))

    def note(number: int, metrics: Metrics) -> None:
        run.append(number, {"epoch": number / batches.steps_per_epoch} | metrics)

    def judge(number: int) -> None:
        metrics = bench.metrics()
        run.append(number, metrics)
        health(number, metrics)

    with Progress(total, start=start) as progress_bar:
        evaluating = every(loop.eval_steps if bench.groups else 0, judge)
        saving = every(loop.save_steps, kept.save, last=total)
        hooks: list[Hook] = [note, progress_bar, health, evaluating, saving]
        todo = batches.iterate(total, start=start)
        fit(step, todo, hooks=hooks, start=start, save=kept.save)
    return health


def _batches(plan: Plan, model: LanguageModel, train: Prepared) -> GroupBatches:
    """Return the batches of the run, with what the reference says of them."""
    loop = plan.loop
    reference = TokenValues.zeros(train.groups)
    if plan.method.has_reference:
        with counted("log-probabilities of the reference", len(train.groups)) as progress:
            reference = _reference(plan, model, train.groups) or reference_log_probs(
                model, train.groups, max_tokens=loop.max_tokens, on_progress=progress
            )
    return GroupBatches(
        train.groups, reference,
        batch_size=loop.batch_size, max_tokens=loop.max_tokens, seed=loop.seed,
        process=processes.place(), processes=processes.count(),
    )  # fmt: skip


def _reference(
    plan: Plan, model: LanguageModel, groups: Sequence[TokenGroup]
) -> TokenValues | None:
    """Return what a reference says that is not the start model; None where it is."""
    if not plan.reference:
        return None
    other = load(whole(plan.model, plan.reference), trainable=False)
    if other.chat.tokenizer.get_vocab() != model.chat.tokenizer.get_vocab():
        raise ValueError(
            f"{plan.reference}: a reference needs the vocabulary of the model that is trained,"
            f" {plan.model.model}; found another one"
        )
    refuse_disagreement(other, ((group.origin, group.answers) for group in groups))
    return reference_log_probs(other, groups, max_tokens=plan.loop.max_tokens)


def whole(options: ModelOptions, name: str) -> ModelOptions:
    """Return how another model is held: as the trained one, but without an adapter of its own."""
    return replace(
        options, model=name,
        lora_r=0, lora_alpha=0.0, lora_dropout=0.0, lora_target_modules=(),
    )  # fmt: skip


def _options(plan: Plan) -> frozenset[str]:
    return frozenset(config_to_dict(plan.config))


def _step(
    plan: Plan, model: LanguageModel, total: int
) -> tuple[Callable[[Sequence[GroupBatch]], Metrics], dict[str, Stateful]]:
    """Return what takes an optimizer step, and what of it goes into a checkpoint."""
    taking = partial(
        descend, parameters=model.trainable(), config=plan.optim, total_steps=total,
        masters=model.masters,
    )  # fmt: skip
    memory: dict[str, Stateful] = {}
    if plan.method.memory:
        plan.method.memory.generator.manual_seed(plan.loop.seed)
        memory["method"] = plan.method.memory
    if not plan.method.is_coupled:
        alone = taking(group_objective(model, plan.method))
        return alone, {"step": alone, **memory}
    split, joint = couple(model, plan.method), taking(coupled_objective(model, plan.method))
    return lambda batch: joint(split(batch)), {"step": joint, **memory}


def _resume(plan: Plan, run: Run, kept: Checkpoints) -> int:
    """Go back to the newest whole checkpoint and return its step."""
    start, note = kept.restore(allow_changes=plan.loop.allow_changes)
    if note:
        run.note(note)
    run.rewind(start)
    return start


def write_card(folder: Path, *, base: str) -> None:
    """Write the model card of a run from what lies in its folder."""

    def read(name: str) -> Any:
        path = folder / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    about, options = read("run.json"), read_config(folder / "config.yaml")
    card = Card(
        name=folder.resolve().name,
        base=base,
        method=about["recipe"],
        paper=about["paper"],
        data=[source for part in read("data.json").values() for source in part["sources"]],
        options=options,
        evaluation=read("evaluation.json"),
        metrics=last_metrics(folder),
        versions=about["versions"],
        command=" ".join(about["command"]),
        is_adapter=(folder / "model" / "adapter_config.json").exists(),
        is_reward_model=read("model/config.json").get("problem_type") == "regression",
        kind=read(f"model/{KIND_FILE}").get("kind", ""),
    )
    write_text(folder / "model" / "README.md", card.text())
