"""Before and after: held-out rows, answers side by side, and how far the model has moved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from melior.data.batches import TokenGroup, TokenValues, ends
from melior.data.examples import Data
from melior.data.forest import plant
from melior.evaluation.compare import compare, compare_by_subset
from melior.evaluation.preferences import Estimate, kl_to_start, ordered_share
from melior.models.generation import Completion
from melior.models.language import LanguageModel
from melior.ops import generator
from melior.options import Sampling
from melior.records import Metrics, Turns
from melior.stages.method import Answers, Method

KINDS: dict[Data, str] = {
    "pairs": "held-out pairs ranked right",
    "lists": "held-out answers ranked right within their list",
    "answers": "held-out good answers ranked above bad ones",
}


@dataclass(frozen=True)
class _Answer:
    tokens: tuple[int, ...]
    mask: tuple[bool, ...]


def refuse_unranked(groups: Sequence[TokenGroup], sources: Sequence[str]) -> None:
    """Refuse held-out rows of which nobody can say which answers are the better ones.

    Raises:
        ValueError: no row has answers of different scores, and no two have a good and a bad one.
    """
    kinds = {group.scores[0] > 0 for group in groups if len(group.scores) == 1}
    if len(kinds) < 2 and not any(len(set(group.scores)) > 1 for group in groups):
        raise ValueError(
            f"{', '.join(sources)}: held-out rows need better and worse answers, to be told apart;"
            f" found {len(groups)} rows without"
        )


def held_out_answers(
    groups: Sequence[TokenGroup], policy: TokenValues, reference: TokenValues
) -> Answers:
    """Put together what a method's reward reads of held-out rows."""
    width = max(len(group.answers) for group in groups)
    counts = [
        [answer.n_scored for answer in group.answers] + [0] * (width - len(group.answers))
        for group in groups
    ]
    lengths = torch.tensor(counts)
    scores = [[*group.scores, *[0.0] * (width - len(group.scores))] for group in groups]
    steps = [answer.steps.tolist() or [0] * answer.n_scored for g in groups for answer in g.answers]
    return Answers(
        tokens=policy.values.double(),
        reference_tokens=reference.values.double(),
        places=torch.arange(lengths.numel()).repeat_interleave(lengths.flatten()),
        steps=torch.tensor([step for one in steps for step in one]),
        scores=torch.tensor(scores, dtype=torch.float64),
        margins=torch.tensor([group.margin for group in groups], dtype=torch.float64),
        is_there=lengths > 0,
    )


def held_out_metrics(answers: Answers, method: Method, data: Data) -> Metrics:
    """Score held-out rows with a model; the metrics are named `eval_...`."""
    found: Metrics = {}
    with torch.no_grad():
        is_alone = not (method.extras or method.memory or method.has_strangers)
        if method.data == data and is_alone:
            found["eval_loss"] = float(method.loss(answers).mean())
        rewards = method.reward(answers)
    better, worse = _ends(answers)
    for name, values in (("rewards", rewards), ("logps", answers.policy)):
        for side, rows in (("chosen", better), ("rejected", worse)):
            found[f"eval_{name}/{side}"] = float(values[rows].mean())
        margin = found[f"eval_{name}/chosen"] - found[f"eval_{name}/rejected"]
        right = ranked_right(answers, method.direction * values if name == "rewards" else values)
        found |= {f"eval_{name}/margins": margin, f"eval_{name}/accuracies": float(right.mean())}
    return found


def ranked_right(answers: Answers, values: Float[Tensor, "n k"]) -> Float[Tensor, " r"]:
    """Return what share of their ordered pairs groups rank right, those that have any.

    Answers that are judged alone have no group: of each good one it is the share of all bad ones
    that it is above.
    """
    found = ordered_share(answers.known_scores, values)
    if found.isfinite().any():
        return found[found.isfinite()]
    better, worse = _ends(answers)
    return ordered_share(
        torch.tensor([1.0] + [0.0] * int(worse.sum())).expand(int(better.sum()), -1),
        torch.cat([values[better][:, None], values[worse].expand(int(better.sum()), -1)], 1),
    )


def compare_held_out(
    before: Answers,
    after: Answers,
    method: Method,
    groups: Sequence[TokenGroup],
    data: Data,
    *,
    seed: int,
) -> dict[str, Any]:
    """Compare held-out rows before and after, as in a run's `evaluation.json`.

    Accuracy is by the average log-probability of a token, which both models have; a reward
    relative to the reference is 0 everywhere before training.
    """
    draw, name = generator(seed), KINDS[data]
    right = [ranked_right(side, side.per_token) for side in (before, after)]
    rewards = [
        ranked_right(side, method.direction * method.reward(side)) for side in (before, after)
    ]
    better, _ = _ends(after)
    comparisons = [
        compare(right[0], right[1], name=name, unit="share", generator=draw),
        compare(
            rewards[0], rewards[1],
            name=f"{name} by the implicit reward", unit="share", generator=draw,
        ),
        compare(
            before.per_token[better], after.per_token[better],
            name="log-probability of a token of the better answers", unit="nats",
            higher_is_better=None, generator=draw,
        ),
    ]  # fmt: skip
    apart, subsets = [], _subsets(groups, len(right[0]))
    if len(set(subsets)) > 1:
        apart = compare_by_subset(right[0], right[1], subsets, generator=draw, unit="share")
    shown = ("name", "n", "before", "after", "low", "high")
    return {
        "title": f"Held-out {data}",
        "comparisons": [one.to_json() for one in comparisons],
        "subsets": [{key: one.to_json()[key] for key in shown} for one in apart],
    }


def _ends(answers: Answers) -> tuple[Tensor, Tensor]:
    """Return masks of each group's better and worse answer, as `batches.ends` has it."""
    masks = torch.zeros_like(answers.is_there), torch.zeros_like(answers.is_there)
    for row, (scores, there) in enumerate(zip(answers.scores, answers.is_there, strict=True)):
        for mask, place in zip(masks, ends(scores[there].tolist()), strict=True):
            if place >= 0:
                mask[row, place] = True
    return masks


def _subsets(groups: Sequence[TokenGroup], n: int) -> list[str]:
    """Return the subsets of the rows that `ranked_right` speaks of."""
    ordered = [group.subset for group in groups if len(set(group.scores)) > 1]
    found = ordered or [group.subset for group in groups if ends(group.scores)[0] >= 0]
    assert len(found) == n
    return found


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
