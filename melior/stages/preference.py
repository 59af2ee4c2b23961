"""Learning from comparisons: the objective of a method on portions of an optimizer batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior.data.batches import GroupBatch
from melior.data.forest import Forest
from melior.evaluation.preferences import ordered_share
from melior.models.language import LanguageModel
from melior.models.sharding import gathered
from melior.records import Metrics
from melior.stages.method import Answers, Method, arranged, join
from melior.training import processes
from melior.types import Objective


def group_objective(model: LanguageModel, method: Method) -> Objective[GroupBatch]:
    """Return the objective of a method in which each group has a loss of its own."""

    def objective(batch: GroupBatch) -> tuple[Float[Tensor, ""], Metrics]:
        answers = read_answers(model, batch, method.extras)
        if batch.is_idle:
            return 0 * answers.tokens.sum(), {}
        loss = _mean_loss(method, answers, batch.weights, batch.totals.groups)
        return _complete(loss, answers, method, batch)

    return objective


@dataclass(frozen=True)
class Coupled:
    """A portion of a batch whose loss is known as a whole: its share, and its slopes."""

    batch: GroupBatch
    loss: float
    slopes: Float[Tensor, " m"]
    """Of the batch's loss at each of the portion's tokens."""
    measured: Metrics
    """Of the whole batch, on one of its portions."""

    @property
    def origins(self) -> tuple[str, ...]:
        """Where the portion's rows were read."""
        return self.batch.origins


@dataclass(frozen=True)
class _Read:
    """What the loss of a whole batch reads of one portion."""

    answers: Answers
    weights: Float[Tensor, " n"]
    order: tuple[int, ...]


def couple(model: LanguageModel, method: Method) -> Callable[[Sequence[GroupBatch]], list[Coupled]]:
    """Return what makes portions of a coupled batch independent, at one forward pass more.

    The loss of the whole batch is a function of its tokens' log-probabilities. Its slope at each
    of them, found without the model's own graph, is all that a portion needs: the chain rule makes
    the accumulated gradient that of the whole batch. The method then takes note of the batch. Of
    processes that share the work each finds the same slopes, of the portions of all.
    """

    def split(batch: Sequence[GroupBatch]) -> list[Coupled]:
        with model.evaluating():
            parts = [read_answers(model, part, method.extras) for part in batch]
        read = [
            _Read(answers.to("cpu"), part.weights, part.order)
            for part, answers in zip(batch, parts, strict=True)
            if not part.is_idle
        ]
        whole, weights, tokens_at = _whole(processes.gather(read), model.device)
        tokens = whole.tokens.clone().requires_grad_()
        with torch.enable_grad():
            leaf = replace(whole, tokens=tokens)
            loss = _mean_loss(method, leaf, weights, batch[0].totals.groups)
            (slopes,) = torch.autograd.grad(loss, tokens)
        own = tokens_at[processes.place()]
        measured, is_counted = method.remember(whole), processes.is_first()
        each = float(loss.detach()) / len(read) if is_counted else 0.0
        found = []
        for part, answers in zip(batch, parts, strict=True):
            mine = torch.zeros_like(answers.tokens) if part.is_idle else slopes[own.pop(0)]
            found.append(Coupled(part, each, mine, measured if is_counted else {}))
            measured = {}
        return found

    return split


def _whole(
    read: Sequence[Sequence[_Read]], device: torch.device
) -> tuple[Answers, Float[Tensor, " n"], list[list[Int[Tensor, " m"]]]]:
    """Put portions of all processes together, as one process would take them.

    Returns:
        The batch, its groups' weights, and where the tokens of each portion stand in it.
    """
    portions = [part for parts in read for part in parts]
    order = torch.tensor([place for part in portions for place in part.order]).argsort()
    whole, tokens = arranged(join([part.answers for part in portions]), order)
    places = tokens.argsort().to(device).split([len(part.answers.tokens) for part in portions])
    each = iter(places)
    weights = torch.cat([part.weights for part in portions])[order]
    return whole.to(device), weights, [[next(each) for _ in parts] for parts in read]


def coupled_objective(model: LanguageModel, method: Method) -> Objective[Coupled]:
    """Return the objective of a method's portions after `couple`."""

    def objective(part: Coupled) -> tuple[Float[Tensor, ""], Metrics]:
        answers = read_answers(model, part.batch, method.extras)
        if part.batch.is_idle:
            return 0 * answers.tokens.sum(), {}
        moved = answers.tokens - answers.tokens.detach()
        loss = part.loss + (part.slopes * moved).sum()
        whole, metrics = _complete(loss, answers, method, part.batch)
        return whole, metrics | part.measured

    return objective


def read_answers(
    model: LanguageModel, batch: GroupBatch, extras: frozenset[str] = frozenset()
) -> Answers:
    """Run the model over a portion."""
    forest, device = batch.forest, model.device
    found = gathered(model.core, lambda: _read_tokens(model, forest, extras))
    tokens = found.pop("tokens")
    is_there = batch.members >= 0
    place = torch.empty(forest.n, dtype=torch.long)
    place[batch.members[is_there]] = torch.arange(is_there.numel()).view_as(is_there)[is_there]
    wide = tokens.dtype if device.type == "mps" else torch.float64
    return Answers(
        tokens=tokens,
        reference_tokens=batch.reference.to(device),
        places=place[forest.owners].to(device),
        steps=batch.steps.to(device),
        scores=batch.scores.to(device, wide),
        margins=batch.margins.to(device, wide),
        is_there=is_there.to(device),
        extras=found,
    )


def _read_tokens(model: LanguageModel, forest: Forest, extras: frozenset[str]) -> dict[str, Tensor]:
    """Return what is read of each scored token: its log-probability as `tokens`, and extras."""
    n_before, entries = len(forest.before), forest.entries.to(model.device)
    wanted = [forest.before, forest.scored] if "states" in extras else [forest.before]
    hidden = model.hidden(forest, torch.cat(wanted))
    before, at = hidden[:n_before], hidden[n_before:].detach()
    found = {}
    if "collision" in extras:
        found["collision"] = model.output.log_collision(before)[entries]
    if "states" in extras:
        found["states"] = at[entries]
    targets = forest.targets.to(model.device)
    return found | {"tokens": model.output.log_probs(before, targets)[entries]}


def _mean_loss(
    method: Method, answers: Answers, weights: Float[Tensor, " n"], n_total: int
) -> Float[Tensor, ""]:
    losses = method.loss(answers)
    return (weights.to(losses) * losses).sum() / n_total


def _complete(
    loss: Float[Tensor, ""], answers: Answers, method: Method, batch: GroupBatch
) -> tuple[Float[Tensor, ""], Metrics]:
    """Add the likelihood term, and measure."""
    said = batch.better.to(answers.policy) * answers.policy  # shares of the mean over the batch
    per_answer = -(batch.weights.to(said)[:, None] * said).sum()
    nll = per_answer * batch.totals.better / max(1, batch.totals.better_tokens)
    if method.sft_weight:
        loss = (
            loss + method.sft_weight * {"mean_token": nll, "sum": per_answer}[method.nll_reduction]
        )
    return loss, _metrics(answers, method, batch, nll)


@torch.no_grad()
def _metrics(
    answers: Answers, method: Method, batch: GroupBatch, nll: Float[Tensor, ""]
) -> Metrics:
    """Shares of the optimizer batch's averages, under the names of TRL's trainers.

    `chosen` averages over the best answer of each group, `rejected` over the worst; what no group
    of the batch has is left out.
    """
    totals, rewards = batch.totals, method.reward(answers)
    found: Metrics = {}
    for name, values in (
        ("rewards", rewards), ("logps", answers.policy), ("lengths", answers.lengths)
    ):  # fmt: skip
        for side, shares, count in (
            ("chosen", batch.better, totals.better), ("rejected", batch.worse, totals.worse)
        ):  # fmt: skip
            if count:
                found[f"{name}/{side}"] = float((shares.to(values) * values).sum())
    if totals.better and totals.worse:
        found["rewards/margins"] = found["rewards/chosen"] - found["rewards/rejected"]
    if totals.ordered:
        right = ordered_share(answers.known_scores, method.direction * rewards)
        found["rewards/accuracies"] = float(right.nansum()) / totals.ordered
    if totals.better:
        found["nll_loss"] = float(nll)
    return found | {"num_tokens": float(len(batch.forest.tokens))}
