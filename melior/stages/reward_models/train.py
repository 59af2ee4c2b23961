"""From pairs to a reward model of any kind: check, judge, train to the best step, judge, save."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from math import ceil
from pathlib import Path
from typing import Any, Generic

import torch
from jaxtyping import Float
from torch import Tensor

from melior.config import config_to_dict
from melior.data.batches import GroupBatch, GroupBatches, TokenGroup, TokenValues
from melior.data.duels import duels
from melior.evaluation.preferences import correct
from melior.models.loading import n_positions
from melior.models.trial import refuse_disagreement
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.records import Metrics
from melior.stages.data import Prepared, hold_out, prepare, write_data
from melior.stages.learn import write_card
from melior.stages.reward_models.judge import (
    Judgement,
    judgement,
    metrics_of,
    ranges,
    shown_groups,
    verdict,
)
from melior.stages.reward_models.kinds import Kind, M
from melior.training.best import Best, Weights
from melior.training.checkpoint import Checkpoints, Generators, Stateful
from melior.training.hooks import Progress, counted, every
from melior.training.loop import Hook, Step, descend, fit
from melior.training.run import Run, write_json, write_json_lines
from melior.types import Objective


@dataclass(frozen=True)
class RewardPlan(Generic[M]):
    """All that training a reward model needs to know, as values."""

    recipe: str
    paper: str
    kind: Kind[M]
    validation_share: float
    """Of the prompts, held out where no held-out data is given."""
    patience: int
    """Judgements in a row without a better one, after which training stops; 0 never stops."""
    model: ModelOptions
    data: DataOptions
    optim: OptimConfig
    loop: LoopOptions
    config: object
    """The recipe's dataclass, to be written down."""


def train_reward(plan: RewardPlan[M]) -> Path:
    """Train a reward model and prove what came of it; return the run's folder."""
    loop = plan.loop
    train, apart = _prepare(plan)
    if loop.overwrite:  # before the old run is deleted
        train.refuse_errors(allowed=plan.data.allow_lint_errors)
    with Run.create(
        loop.out, plan.recipe, plan.config, sys.argv, paper=plan.paper, resume=loop.resume,
        overwrite=loop.overwrite, allow_changes=loop.allow_changes, report_to=loop.report_to,
    ) as run:  # fmt: skip
        parts = {"train": train} | ({"held_out": apart} if apart else {})
        write_data(run.folder, parts, loop)
        train.refuse_errors(allowed=plan.data.allow_lint_errors)
        for note in plan.kind.notes():
            run.note(note)
        groups, held_out = train.groups, apart.groups if apart else []
        if not apart:
            groups, held_out = hold_out(groups, plan.validation_share, seed=loop.seed)
            if held_out:
                run.note(
                    f"{len(held_out)} of {len(train.groups)} rows are held out, by their prompts,"
                    " to choose the best checkpoint"
                )
        hashes = [train.sha256, apart.sha256 if apart else ""]
        _learn(plan, run, plan.kind.learned(groups, loop.seed), held_out, hashes)
    return run.folder


def reward_objective(
    kind: Kind[M], model: M, seen: list[Mapping[str, Tensor]]
) -> Objective[GroupBatch]:
    """Return the objective of portions of an optimizer batch; what is seen goes to `seen`, too.

    A group counts once, however many pairs it holds.
    """

    def objective(batch: GroupBatch) -> tuple[Float[Tensor, ""], Metrics]:
        pairs, totals = duels(batch), batch.totals
        found = kind.judged(model, batch, pairs)
        seen.append({name: values.detach() for name, values in found.seen.items()})
        margins = found.margins.detach().double().cpu()
        right = torch.as_tensor(correct(margins))
        metrics = {
            "accuracy": float((pairs.decided * right).sum()) / max(1, totals.ordered),
            "margin": float((pairs.each * margins).sum()) / totals.groups,
            "num_tokens": float(len(batch.forest.tokens)),
        }
        weights = (batch.weights[pairs.groups] * pairs.each).to(found.losses)
        return (weights * found.losses).sum() / totals.groups, metrics

    return objective


def _learn(
    plan: RewardPlan[M],
    run: Run,
    groups: Sequence[TokenGroup],
    held_out: Sequence[TokenGroup],
    hashes: list[str],
) -> None:
    kind = plan.kind
    model = kind.load(plan.model, plan.loop.seed)
    if model.padded_because:
        run.note(f"answers are computed one by one, under padding: {model.padded_because}")
    refuse_disagreement(model, ((group.origin, group.answers) for group in groups))
    bench = Bench(plan, model, held_out)
    best = Best(run.folder / "checkpoints" / "best", plan.patience)
    about = {"data": hashes, "model": model.start_hash}
    _train(plan, run, model, groups, bench, best=best, about=about)
    kind.save(model, run.folder / "model")
    found: dict[str, Any] = {"title": "Before and after", "comparisons": [], "facts": {}}
    if held_out:
        found, rows = bench.verdict()
        found["title"] = f"Held-out pairs, which chose step {best.step}"
        if not bench.before.is_decided.any():
            run.note("all held-out pairs are ties, so that none can be ranked right")
        write_json_lines(run.folder / "samples.jsonl", rows)
    write_json(run.folder / "evaluation.json", found)
    write_card(run.folder, base=plan.model.model)


class Bench(Generic[M]):
    """The same held-out rows, put to the model before, while it learns, and after."""

    def __init__(self, plan: RewardPlan[M], model: M, groups: Sequence[TokenGroup]) -> None:
        self.plan = plan
        self.model = model
        self.groups = groups
        if groups:
            self.before = self.now()

    def now(self) -> Judgement:
        """Judge the model as it is."""
        with counted("judging held-out rows", len(self.groups)) as progress:
            return judgement(
                self.plan.kind, self.model, self.groups,
                max_tokens=self.plan.loop.max_tokens, on_progress=progress,
            )  # fmt: skip

    def verdict(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Compare now with before, and show the first rows."""
        data, after = self.plan.data, self.now()
        found = verdict(self.before, after, self.groups, seed=self.plan.loop.seed)
        sources = data.eval_data or data.data
        both = self.before, after
        return found, shown_groups(sources, self.groups, *both, most=data.n_samples)


def _train(
    plan: RewardPlan[M],
    run: Run,
    model: M,
    groups: Sequence[TokenGroup],
    bench: Bench[M],
    *,
    best: Best,
    about: dict[str, Any],
) -> None:
    """Take the steps still to come, until they are done or no longer help; end at the best."""
    loop, seen = plan.loop, list[Mapping[str, Tensor]]()
    batches = _batches(groups, loop)
    total = loop.max_steps or ceil(loop.epochs * batches.steps_per_epoch)
    if loop.gradient_checkpointing:
        model.checkpoint_activations()
    step = descend(
        reward_objective(plan.kind, model, seen), model.trainable(), plan.optim,
        total_steps=total, masters=model.masters,
    )  # fmt: skip
    torch.manual_seed(loop.seed)  # dropout draws from torch's own generator, and no other
    parts: dict[str, Stateful] = {"step": step, "generators": Generators(), "best": best}
    kept = _checkpoints(plan, run, parts, about={"steps": total, **about})
    start = _resume(plan, run, kept) if loop.resume else 0
    is_judged, weights = bool(bench.groups), Weights(step)

    def judge(number: int) -> None:
        found = metrics_of(bench.now())
        run.append(number, {f"eval_{name}": value for name, value in found.items()})
        best.note(number, found["loss"], weights)

    def note(number: int, metrics: Metrics) -> None:
        run.append(number, {"epoch": number / batches.steps_per_epoch} | metrics)

    if start == 0 and is_judged and not plan.kind.is_fresh(model):
        judge(0)  # a reward model that comes in may be the best there will be
    pause = loop.eval_steps or batches.steps_per_epoch
    with Progress(total, start=start) as progress:
        judging = every(pause, judge, last=total) if is_judged else every(0, judge)
        hooks: list[Hook] = [note, progress, judging, every(loop.save_steps, kept.save, last=total)]
        todo = takewhile(lambda _: not best.is_over, batches.iterate(total, start=start))
        fit(_with_range(step, seen), todo, hooks=hooks, start=start, save=kept.save)
    if is_judged:
        best.restore(weights)
        run.note(f"step {best.step} is kept, the best on held-out pairs: loss {best.loss:.4f}")


def _batches(groups: Sequence[TokenGroup], loop: LoopOptions) -> GroupBatches:
    return GroupBatches(
        groups, TokenValues.zeros(groups),
        batch_size=loop.batch_size, max_tokens=loop.max_tokens, seed=loop.seed,
    )  # fmt: skip


def _checkpoints(
    plan: RewardPlan[M], run: Run, parts: Mapping[str, Stateful], *, about: dict[str, Any]
) -> Checkpoints:
    return Checkpoints(
        run.folder / "checkpoints",
        parts,
        about={"options": config_to_dict(plan.config), **about},
        keep=plan.loop.save_total_limit,
    )


def _resume(plan: RewardPlan[M], run: Run, kept: Checkpoints) -> int:
    """Go back to the newest whole checkpoint and return its step."""
    start, remark = kept.restore(allow_changes=plan.loop.allow_changes)
    if remark:
        run.note(remark)
    run.rewind(start)
    return start


def _with_range(
    step: Step[GroupBatch], seen: list[Mapping[str, Tensor]]
) -> Callable[[Sequence[GroupBatch]], Metrics]:
    """Add the least, mean and greatest of what is seen in a batch, of all its parts."""

    def take(batch: Sequence[GroupBatch]) -> Metrics:
        seen.clear()
        return step(batch) | ranges(seen)

    return take


def _prepare(plan: RewardPlan[M]) -> tuple[Prepared, Prepared | None]:
    """Read and check the data before any weights are loaded."""
    chat, data, kind = plan.kind.chat(plan.model), plan.data, plan.kind
    with counted("tokenising rows") as progress:
        ready = partial(
            prepare, chat=chat, options=data, data=kind.data, encode=kind.encode,
            tolerated=kind.tolerated, seed=plan.loop.seed, on_progress=progress,
        )  # fmt: skip
        train = ready(data.data, held_out=data.eval_data)
        apart = ready(data.eval_data) if data.eval_data else None
    for part in (train, apart):
        if part:
            part.refuse_beyond(n_positions(plan.model))
    return train, apart
