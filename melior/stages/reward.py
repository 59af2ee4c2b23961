"""From pairs to a reward model: read, check, judge, train to the best checkpoint, judge, save."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from math import ceil
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from melior.config import config_to_dict
from melior.data.batches import GroupBatch, GroupBatches, TokenGroup, TokenValues
from melior.losses.reward import bradley_terry, centring_penalty
from melior.models.heads import (
    RewardModel,
    load_reward_model,
    reward_chat,
    rewards_of,
    save_reward_model,
)
from melior.models.loading import n_positions
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.records import Metrics
from melior.stages.data import Prepared, prepare
from melior.stages.judge_rewards import metrics_of, shown_pairs, verdict
from melior.stages.learn import write_card
from melior.training.best import Best, Weights
from melior.training.checkpoint import Checkpoints, Generators, Stateful
from melior.training.hooks import Progress, counted, every
from melior.training.loop import Hook, Step, descend, fit
from melior.training.run import Run, write_json, write_json_lines
from melior.types import Objective, Pairwise

PairLoss = Callable[[Pairwise, Float[Tensor, " n"]], Float[Tensor, " n"]]
"""Of the rewards of both answers and the data's own margins; one number per pair."""


@dataclass(frozen=True)
class RewardPlan:
    """All that training a reward model needs to know, as values."""

    recipe: str
    paper: str
    loss: PairLoss
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


def reward_loss(
    *, margin_weight: float, label_smoothing: float, center_rewards_coefficient: float
) -> PairLoss:
    """Return Bradley-Terry's loss that asks for the data's margins, plus the centring penalty."""

    def loss(rewards: Pairwise, margins: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        asked = margin_weight * margins
        likelihood = bradley_terry(rewards, margin=asked, label_smoothing=label_smoothing)
        return likelihood + center_rewards_coefficient * centring_penalty(rewards)

    return loss


def train_reward(plan: RewardPlan) -> Path:
    """Train a reward model and prove what came of it; return the run's folder."""
    loop = plan.loop
    train, apart = _prepare(plan)
    if loop.overwrite:  # before the old run is deleted
        train.refuse_errors(allowed=plan.data.allow_lint_errors)
    with Run.create(
        loop.out, plan.recipe, plan.config, sys.argv, paper=plan.paper, resume=loop.resume,
        overwrite=loop.overwrite, allow_changes=loop.allow_changes, report_to=loop.report_to,
    ) as run:  # fmt: skip
        record = {"train": train.record} | ({"held_out": apart.record} if apart else {})
        write_json(run.folder / "data.json", record)
        train.refuse_errors(allowed=plan.data.allow_lint_errors)
        pairs, held_out = train.groups, apart.groups if apart else []
        if not apart:
            pairs, held_out = split_by_prompt(pairs, plan.validation_share, seed=loop.seed)
            if held_out and not loop.resume:
                run.note(
                    f"{len(held_out)} of {len(train.groups)} pairs are held out, by their prompts,"
                    " to choose the best checkpoint"
                )
        hashes = [train.sha256, apart.sha256 if apart else ""]
        _learn(plan, run, pairs, held_out, hashes)
    return run.folder


def split_by_prompt(
    pairs: Sequence[TokenGroup], share: float, *, seed: int
) -> tuple[list[TokenGroup], list[TokenGroup]]:
    """Hold out a share of the prompts with all their pairs; keep at least one prompt to train on.

    Where the share is above 0 and there are two prompts or more, at least one is held out.
    """
    prompts = [_prompt(pair) for pair in pairs]
    known = list(dict.fromkeys(prompts))
    draw = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(known), generator=draw).tolist()
    count = min(ceil(share * len(known)), len(known) - 1)
    apart = {known[i] for i in order[:count]}
    kept = [pair for pair, prompt in zip(pairs, prompts, strict=True) if prompt not in apart]
    return kept, [pair for pair, prompt in zip(pairs, prompts, strict=True) if prompt in apart]


def reward_objective(
    model: RewardModel, loss: PairLoss, seen: list[Float[Tensor, " _"]]
) -> Objective[GroupBatch]:
    """Return the objective of portions of an optimizer batch; the rewards go to `seen`, too."""

    def objective(batch: GroupBatch) -> tuple[Float[Tensor, ""], Metrics]:
        given = model.rewards(batch.forest)
        rewards = Pairwise(given[batch.members[:, 0]], given[batch.members[:, 1]])
        losses = loss(rewards, batch.margins.to(given))
        seen.append(given.detach().double().cpu())
        shares = {
            "accuracy": (rewards.margin.sign().sum() + len(losses)) / 2,
            "margin": rewards.margin.sum(),
            "mean_reward": (rewards.chosen + rewards.rejected).sum() / 2,
        }
        n = batch.totals.groups
        metrics = {name: float(total.detach()) / n for name, total in shares.items()}
        metrics["num_tokens"] = float(len(batch.forest.tokens))
        return (batch.weights.to(losses) * losses).sum() / n, metrics

    return objective


def _learn(
    plan: RewardPlan,
    run: Run,
    pairs: Sequence[TokenGroup],
    held_out: Sequence[TokenGroup],
    hashes: list[str],
) -> None:
    model = load_reward_model(plan.model, trainable=True, seed=plan.loop.seed)
    if model.padded_because:
        run.note(f"answers are computed one by one, under padding: {model.padded_because}")
    before = _judge(plan, model, held_out)
    best = Best(run.folder / "checkpoints" / "best", plan.patience)
    about = {"data": hashes, "model": model.start_hash}
    _train(plan, run, model, pairs, held_out, best=best, about=about)
    save_reward_model(model, run.folder / "model")
    found: dict[str, Any] = {"title": "Before and after", "comparisons": [], "facts": {}}
    if held_out:
        after = _judge(plan, model, held_out)
        found = verdict(before, after, held_out, seed=plan.loop.seed)
        found["title"] = f"Held-out pairs, which chose step {best.step}"
        rows = shown_pairs(
            plan.data.eval_data or plan.data.data, held_out, before, after,
            most=plan.data.n_samples,
        )  # fmt: skip
        write_json_lines(run.folder / "samples.jsonl", rows)
    write_json(run.folder / "evaluation.json", found)
    write_card(run.folder, base=plan.model.model)


def _train(
    plan: RewardPlan,
    run: Run,
    model: RewardModel,
    pairs: Sequence[TokenGroup],
    held_out: Sequence[TokenGroup],
    *,
    best: Best,
    about: dict[str, Any],
) -> None:
    """Take the steps still to come, until they are done or no longer help; end at the best."""
    loop, seen = plan.loop, list[Tensor]()
    batches = GroupBatches(
        pairs, TokenValues.zeros(pairs),
        batch_size=loop.batch_size, max_tokens=loop.max_tokens, seed=loop.seed,
    )  # fmt: skip
    total = loop.max_steps or ceil(loop.epochs * batches.steps_per_epoch)
    if loop.gradient_checkpointing:
        model.checkpoint_activations()
    step = descend(
        reward_objective(model, plan.loss, seen), model.trainable(), plan.optim,
        total_steps=total, masters=model.masters,
    )  # fmt: skip
    torch.manual_seed(loop.seed)  # dropout draws from torch's own generator, and no other
    parts: dict[str, Stateful] = {"step": step, "generators": Generators(), "best": best}
    kept = _checkpoints(plan, run, parts, about={"steps": total, **about})
    start = _resume(plan, run, kept) if loop.resume else 0
    judge = _judge_hook(plan, run, model, held_out, best=best, weights=Weights(step))

    def note(number: int, metrics: Metrics) -> None:
        run.append(number, {"epoch": number / batches.steps_per_epoch} | metrics)

    if start == 0 and held_out and not model.is_fresh:
        judge(0)  # a reward model that comes in may be the best there will be
    with Progress(total, start=start) as progress:
        pause = (loop.eval_steps or batches.steps_per_epoch) if held_out else 0
        judging = every(pause, judge, last=total if held_out else 0)
        hooks: list[Hook] = [note, progress, judging, every(loop.save_steps, kept.save, last=total)]
        todo = takewhile(lambda _: not best.is_over, batches.iterate(total, start=start))
        fit(_with_range(step, seen), todo, hooks=hooks, start=start, save=kept.save)
    if held_out:
        best.restore(Weights(step))
        run.note(f"step {best.step} is kept, the best on held-out pairs: loss {best.loss:.4f}")


def _checkpoints(
    plan: RewardPlan, run: Run, parts: Mapping[str, Stateful], *, about: dict[str, Any]
) -> Checkpoints:
    return Checkpoints(
        run.folder / "checkpoints",
        parts,
        about={"options": config_to_dict(plan.config), **about},
        keep=plan.loop.save_total_limit,
    )


def _resume(plan: RewardPlan, run: Run, kept: Checkpoints) -> int:
    """Go back to the newest whole checkpoint and return its step."""
    start, remark = kept.restore(allow_changes=plan.loop.allow_changes)
    if remark:
        run.note(remark)
    run.rewind(start)
    return start


def _judge_hook(
    plan: RewardPlan,
    run: Run,
    model: RewardModel,
    held_out: Sequence[TokenGroup],
    *,
    best: Best,
    weights: Weights,
) -> Callable[[int], None]:
    """Return what judges the model after a step and keeps it where it is the best."""

    def judge(number: int) -> None:
        found = metrics_of(_judge(plan, model, held_out), held_out, plan.loss)
        run.append(number, {f"eval_{name}": value for name, value in found.items()})
        best.note(number, found["loss"], weights)

    return judge


def _with_range(
    step: Step[GroupBatch], seen: list[Tensor]
) -> Callable[[Sequence[GroupBatch]], Metrics]:
    """Add the least and the greatest reward of a batch, which no sum over its parts can give."""

    def take(batch: Sequence[GroupBatch]) -> Metrics:
        seen.clear()
        metrics = step(batch)
        rewards = torch.cat(seen)
        return metrics | {"min_reward": float(rewards.min()), "max_reward": float(rewards.max())}

    return take


def _judge(plan: RewardPlan, model: RewardModel, pairs: Sequence[TokenGroup]) -> Pairwise:
    """Return the rewards of pairs with the model as it is."""
    if not pairs:
        return Pairwise(torch.zeros(0), torch.zeros(0))
    sides = [pair.answers for pair in pairs]
    with counted("judging held-out pairs", len(pairs)) as progress:
        found = rewards_of(model, sides, max_tokens=plan.loop.max_tokens, on_progress=progress)
    both = torch.stack(found)
    return Pairwise(both[:, 0], both[:, 1])


def _prepare(plan: RewardPlan) -> tuple[Prepared, Prepared | None]:
    """Read and check the data before any weights are loaded."""
    chat, data, seed = reward_chat(plan.model), plan.data, plan.loop.seed
    with counted("tokenising pairs") as progress:
        train = prepare(
            data.data, chat, data, seed=seed, held_out=data.eval_data, on_progress=progress
        )
        apart = None
        if data.eval_data:
            apart = prepare(data.eval_data, chat, data, seed=seed, on_progress=progress)
    for part in (train, apart):
        if part:
            part.refuse_beyond(n_positions(plan.model))
    return train, apart


def _prompt(pair: TokenGroup) -> bytes:
    return pair.answers[0].tokens[: pair.answers[0].n_prompt].tobytes()
