"""Before and after: held-out pairs, answers side by side, and how far the model has moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from melior.data.batches import TokenPair
from melior.data.forest import plant
from melior.evaluation.compare import compare, compare_by_subset
from melior.evaluation.preferences import Estimate, correct, kl_to_start, pair_metrics
from melior.models.generation import Completion
from melior.models.language import LanguageModel
from melior.ops import generator
from melior.options import Sampling
from melior.records import Metrics, Turns
from melior.stages.preference import Method, PairLogProbs, pair_log_probs
from melior.types import Pairwise


@dataclass(frozen=True)
class _Answer:
    tokens: tuple[int, ...]
    mask: tuple[bool, ...]


def held_out_log_probs(
    pairs: Sequence[TokenPair], policy: Pairwise, reference: Pairwise
) -> PairLogProbs:
    """Put together what a method's reward reads of held-out pairs."""
    chosen = torch.tensor([sum(pair.chosen.mask) for pair in pairs], dtype=torch.float64)
    rejected = torch.tensor([sum(pair.rejected.mask) for pair in pairs], dtype=torch.float64)
    margins = torch.tensor([pair.margin for pair in pairs], dtype=torch.float64)
    return PairLogProbs(policy, reference, Pairwise(chosen, rejected), margins)


def evaluate(
    model: LanguageModel,
    method: Method,
    pairs: Sequence[TokenPair],
    reference: Pairwise,
    *,
    max_tokens: int,
) -> tuple[Metrics, PairLogProbs]:
    """Score held-out pairs with the model as it is; metrics are named `eval_...`."""
    policy = pair_log_probs(model, pairs, max_tokens=max_tokens)
    found = held_out_log_probs(pairs, policy, reference)
    with torch.no_grad():
        loss = float(method.loss(found).mean())
        metrics = pair_metrics(method.reward(found), found.policy)
    return {"eval_loss": loss} | {f"eval_{name}": v for name, v in metrics.items()}, found


def compare_pairs(
    before: PairLogProbs, after: PairLogProbs, method: Method, subsets: Sequence[str], *, seed: int
) -> dict[str, Any]:
    """Compare held-out pairs before and after, as in a run's `evaluation.json`.

    Accuracy is by the average log-probability of a token, which both models have; a reward
    relative to the reference is 0 everywhere before training.
    """
    draw = generator(seed)
    old, new = before.per_token, after.per_token
    right = correct(old.margin), correct(new.margin)
    rewards = [correct(method.reward(side).margin) for side in (before, after)]
    comparisons = [
        compare(
            right[0], right[1], name="held-out pairs ranked right", unit="share", generator=draw
        ),
        compare(
            rewards[0], rewards[1],
            name="held-out pairs ranked right by the implicit reward", unit="share", generator=draw,
        ),
        compare(
            old.chosen, new.chosen,
            name="log-probability of a token of the chosen answers", unit="nats",
            higher_is_better=None, generator=draw,
        ),
    ]  # fmt: skip
    apart = []
    if len(set(subsets)) > 1:
        apart = compare_by_subset(right[0], right[1], list(subsets), generator=draw, unit="share")
    shown = ("name", "n", "before", "after", "low", "high")
    return {
        "title": "Held-out pairs",
        "comparisons": [one.to_json() for one in comparisons],
        "subsets": [{key: one.to_json()[key] for key in shown} for one in apart],
    }


def answers(
    model: LanguageModel, prompts: Sequence[Turns], *, max_new_tokens: int, seed: int
) -> list[Completion]:
    """Answer each prompt once, drawn from the model as it is: temperature 1, nothing cut off."""
    sampling = Sampling(k=1, max_new_tokens=max_new_tokens)
    return [one for (one,) in model.complete(prompts, sampling, generator=generator(seed))]


def kl(start: LanguageModel, prompts: Sequence[Turns], drawn: Sequence[Completion]) -> Estimate:
    """Estimate KL(model || start) per answer from answers that `answers` drew from the model."""
    reference = []
    for prompt, answer in zip(prompts, drawn, strict=True):
        asked = tuple(start.chat.prompt_tokens(prompt))
        mask = (False,) * len(asked) + (True,) * len(answer.tokens)
        forest = plant([_Answer(asked + answer.tokens, mask)])
        with start.evaluating():
            reference.append(start.log_probs(forest).double().cpu())
    policy = [torch.tensor(answer.log_probs, dtype=torch.float64) for answer in drawn]
    return kl_to_start(policy, reference)
