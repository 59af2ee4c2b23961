"""Training of the gate on rewards that are known: batches, objective, and the best step.

Wang et al. 2024, arXiv 2406.12845, sec. 3.2. Neither the model nor the regression is touched, so a
step costs what the gate's perceptron costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from melior import ops
from melior.losses.aspects import gated_bradley_terry, gated_score
from melior.losses.reward import bradley_terry
from melior.models.gate import AspectGate
from melior.models.layout import evaluating
from melior.options import LoopOptions, OptimConfig
from melior.records import Metrics
from melior.training.best import Best, Weights
from melior.training.checkpoint import Checkpoints, Generators, Stateful
from melior.training.hooks import Progress, every
from melior.training.loop import Hook, descend, fit, scheduled_rate
from melior.training.run import Run
from melior.types import Objective, Pairwise


@dataclass(frozen=True)
class PairTable:
    """Rewards of both answers to prompts by objective, and the prompts' features."""

    chosen: Float[Tensor, "n m"]
    rejected: Float[Tensor, "n m"]
    prompts: Float[Tensor, "n d"]
    weights: Float[Tensor, " n"]
    """How much each pair counts."""
    origins: tuple[str, ...]

    def of(self, rows: Sequence[int]) -> PairTable:
        """Return some pairs, one several times where it is named so often."""
        places = torch.tensor(rows, device=self.prompts.device)
        return self._each(lambda own: own[places], tuple(self.origins[i] for i in rows))

    def to(self, device: torch.device) -> PairTable:
        """Return the same on a device."""
        return self._each(lambda own: own.to(device), self.origins)

    def _each(self, act: Callable[[Tensor], Tensor], origins: tuple[str, ...]) -> PairTable:
        sides = act(self.chosen), act(self.rejected)
        return PairTable(*sides, act(self.prompts), act(self.weights), origins)


@dataclass(frozen=True)
class GateRun:
    """What training a gate takes, as values."""

    gate: AspectGate
    transform: Float[Tensor, "m m"]
    """Of the rewards, which takes verbosity off."""
    optim: OptimConfig
    loop: LoopOptions
    """`max_steps` are taken, of `batch_size` pairs each, drawn with replacement."""
    about: Mapping[str, Any]
    """What the run belongs to: options, data and model."""


def train_gate(plan: GateRun, run: Run, train: PairTable, held_out: PairTable) -> Best:
    """Take the steps still to come, and end at the best on held-out pairs, the start included."""
    loop, gate, device = plan.loop, plan.gate.train(), plan.gate.log_scale.device
    train, held_out = train.to(device), held_out.to(device)
    total, start_scale = loop.max_steps, float(gate.log_scale.detach())
    step = descend(
        gate_objective(gate, plan.transform.to(device)), dict(gate.named_parameters()),
        plan.optim, total_steps=total,
    )  # fmt: skip
    torch.manual_seed(loop.seed)  # dropout draws from torch's own generator, and no other
    best = Best(run.folder / "checkpoints" / "best", patience=0)
    parts: dict[str, Stateful] = {"step": step, "generators": Generators(), "best": best}
    kept = Checkpoints(
        run.folder / "checkpoints", parts, about={"steps": total, **plan.about},
        keep=loop.save_total_limit,
    )  # fmt: skip
    start = _resume(loop, run, kept) if loop.resume else 0
    judge = _judge_hook(plan, run, held_out, best=best, weights=Weights(step))
    if start == 0 and len(held_out.origins):
        judge(0)
    with Progress(total, start=start) as progress:
        pause, last = (loop.eval_steps, total) if len(held_out.origins) else (0, 0)
        hooks: list[Hook] = [run.append, progress, every(pause, judge, last=last),
                             every(loop.save_steps, kept.save, last=total)]  # fmt: skip
        batches = drawn_batches(train, loop.batch_size, total, start=start, seed=loop.seed)
        fit(step, batches, hooks=hooks, start=start, save=kept.save)
    if len(held_out.origins):
        best.restore(Weights(step))
        run.note(f"step {best.step} is kept, the best on held-out pairs: loss {best.loss:.4f}")
    _note_scale(plan, run, start_scale)
    gate.eval()
    return best


def drawn_batches(
    pairs: PairTable, batch_size: int, total: int, *, start: int = 0, seed: int
) -> Iterator[list[PairTable]]:
    """Yield the batches of steps `start` to `total`, each drawn by the seed and its own number."""
    for number in range(start, total):
        draw = ops.generator((seed + 1_000_003 * number) % 2**63)
        yield [pairs.of(torch.randint(len(pairs.origins), (batch_size,), generator=draw).tolist())]


def gate_objective(gate: AspectGate, transform: Float[Tensor, "m m"]) -> Objective[PairTable]:
    """Return the objective of a batch of pairs: the likelihood of their labels under the gate."""

    def objective(batch: PairTable) -> tuple[Float[Tensor, ""], Metrics]:
        weights = gate(batch.prompts)
        losses = gated_bradley_terry(batch.chosen, batch.rejected, weights, transform)
        margin = gated_score(batch.chosen - batch.rejected, weights, transform).detach()
        shares = (weights / weights.sum(-1, keepdim=True)).detach()
        metrics = {
            "accuracy": float((margin.sign() + 1).mean() / 2),
            "margin": float(margin.mean()),
            "entropy": float(torch.special.entr(shares).sum(-1).mean()),
            "scale": float(gate.log_scale.detach().exp()),
        }
        return (batch.weights * losses).mean(), metrics

    return objective


def gated_scores(gate: AspectGate, transform: Float[Tensor, "m m"], pairs: PairTable) -> Pairwise:
    """Return the scores of both answers of pairs, on the CPU, nothing dropped out."""
    transform = transform.to(pairs.prompts.device)
    with evaluating(gate):
        weights = gate(pairs.prompts)
        sides = (gated_score(own, weights, transform) for own in (pairs.chosen, pairs.rejected))
        return Pairwise(*(own.double().cpu() for own in sides))


def _judge_hook(
    plan: GateRun, run: Run, held_out: PairTable, *, best: Best, weights: Weights
) -> Callable[[int], None]:
    """Return what judges the gate after a step and keeps it where it is the best."""

    def judge(number: int) -> None:
        scores = gated_scores(plan.gate, plan.transform, held_out)
        counted = held_out.weights.cpu() / held_out.weights.mean().cpu()
        found = {
            "loss": float((counted * bradley_terry(scores)).mean()),
            "accuracy": float((scores.margin.sign() + 1).mean() / 2),
            "margin": float(scores.margin.mean()),
        }
        run.append(number, {f"eval_{name}": value for name, value in found.items()})
        best.note(number, found["loss"], weights)

    return judge


def _resume(loop: LoopOptions, run: Run, kept: Checkpoints) -> int:
    """Go back to the newest whole checkpoint and return its step."""
    start, remark = kept.restore(allow_changes=loop.allow_changes)
    if remark:
        run.note(remark)
    run.rewind(start or -1)  # without a checkpoint the start is judged again, too
    return start


def _note_scale(plan: GateRun, run: Run, start: float) -> None:
    """Say where the scale went as far as the optimizer lets it: then its place says nothing.

    Adam moves a weight by about the learning rate a step.
    """
    total = plan.loop.max_steps
    reach = sum(scheduled_rate(plan.optim, number, total) for number in range(total))
    now = float(plan.gate.log_scale.detach())
    better = math.exp(start) * (10 if now > start else 0.1)
    if abs(now - start) > 0.8 * reach:
        run.note(
            f"the gate's scale went from {math.exp(start):.3g} to {math.exp(now):.3g}, about as far"
            " as so many steps at this rate can take it: scores are on no scale of log-odds yet;"
            f" start it elsewhere (--logit-scale {better:.3g}), or take more steps"
        )
