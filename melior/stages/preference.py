"""Learning from pairs: what a method needs of them, its objective, its evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from melior.data.batches import PairBatch, TokenPair, plant_pairs, portions
from melior.models.language import LanguageModel
from melior.records import Metrics
from melior.training.cache import cached
from melior.types import Objective, Pairwise


@dataclass(frozen=True)
class PairLogProbs:
    """What a loss may read of `n` pairs."""

    policy: Pairwise
    """Log-probabilities of the answers under the model, summed over their tokens."""
    reference: Pairwise
    """The same under the start model; zeros for a reference-free method."""
    lengths: Pairwise
    """Scored tokens of each answer."""
    margins: Float[Tensor, " n"]
    """The data's own margins."""

    @property
    def per_token(self) -> Pairwise:
        """Log-probabilities averaged over the answer's tokens."""
        sides = zip(_sides(self.policy), _sides(self.lengths), strict=True)
        return Pairwise(*(total / length.clamp(min=1) for total, length in sides))

    @property
    def log_ratio(self) -> Pairwise:
        """Log-probabilities relative to the reference."""
        chosen = self.policy.chosen - self.reference.chosen
        return Pairwise(chosen, self.policy.rejected - self.reference.rejected)


@dataclass(frozen=True)
class Method:
    """A way to learn from pairs."""

    loss: Callable[[PairLogProbs], Float[Tensor, " n"]]
    reward: Callable[[PairLogProbs], Pairwise]
    """The implicit reward that the loss compares, as the metrics report it."""
    has_reference: bool
    sft_weight: float = 0.0
    """Of the chosen answers' negative log-likelihood, averaged over the batch's tokens."""


def per_token_method(
    loss: Callable[[Pairwise], Float[Tensor, " n"]], *, beta: float, sft_weight: float = 0.0
) -> Method:
    """Return the method of a reference-free loss on log-probabilities averaged over tokens."""

    def reward(pairs: PairLogProbs) -> Pairwise:
        return Pairwise(beta * pairs.per_token.chosen, beta * pairs.per_token.rejected)

    return Method(lambda pairs: loss(pairs.per_token), reward, False, sft_weight)


def log_ratio_method(
    loss: Callable[[Pairwise, Pairwise], Float[Tensor, " n"]],
    *,
    beta: float,
    sft_weight: float = 0.0,
) -> Method:
    """Return the method of a loss on summed log-probabilities of policy and reference."""

    def reward(pairs: PairLogProbs) -> Pairwise:
        return Pairwise(beta * pairs.log_ratio.chosen, beta * pairs.log_ratio.rejected)

    return Method(lambda pairs: loss(pairs.policy, pairs.reference), reward, True, sft_weight)


def pair_objective(model: LanguageModel, method: Method) -> Objective[PairBatch]:
    """Return the objective of a method on portions of an optimizer batch."""

    def objective(batch: PairBatch) -> tuple[Float[Tensor, ""], Metrics]:
        scores = pair_scores(model, batch)
        weights = batch.weights.to(scores.policy.chosen)
        nll = -(weights * scores.policy.chosen).sum() / max(1, batch.n_chosen_tokens)
        loss = (weights * method.loss(scores)).sum() / batch.n_total
        if method.sft_weight:
            loss = loss + method.sft_weight * nll
        return loss, _metrics(scores, method.reward(scores), batch, nll)

    return objective


def pair_scores(model: LanguageModel, batch: PairBatch) -> PairLogProbs:
    """Run the model over a portion."""
    totals = batch.forest.totals(model.log_probs(batch.forest))
    lengths = batch.forest.lengths.to(totals)
    return PairLogProbs(
        policy=Pairwise(totals[batch.chosen], totals[batch.rejected]),
        reference=Pairwise(*(side.to(totals) for side in _sides(batch.reference))),
        lengths=Pairwise(lengths[batch.chosen], lengths[batch.rejected]),
        margins=batch.margins.to(totals),
    )


@torch.no_grad()
def _metrics(
    scores: PairLogProbs, rewards: Pairwise, batch: PairBatch, nll: Float[Tensor, ""]
) -> Metrics:
    """Shares of the optimizer batch's averages, under the names of TRL's trainers."""
    margin = rewards.margin
    right = (margin > 0).to(margin) + 0.5 * (margin == 0).to(margin)
    means = {
        "rewards/chosen": rewards.chosen,
        "rewards/rejected": rewards.rejected,
        "rewards/margins": margin,
        "rewards/accuracies": right,
        "logps/chosen": scores.policy.chosen,
        "logps/rejected": scores.policy.rejected,
        "lengths/chosen": scores.lengths.chosen,
        "lengths/rejected": scores.lengths.rejected,
    }
    shares = {name: float(values.sum()) / batch.n_total for name, values in means.items()}
    return shares | {"nll_loss": float(nll), "num_tokens": float(len(batch.forest.tokens))}


def pair_log_probs(
    model: LanguageModel,
    pairs: Sequence[TokenPair],
    *,
    max_tokens: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Pairwise:
    """Return summed log-probabilities of all pairs, in their order, on the CPU in float64."""
    chosen = torch.zeros(len(pairs), dtype=torch.float64)
    rejected = torch.zeros_like(chosen)
    done = 0
    for part in portions(pairs, max_tokens):
        forest, left, right = plant_pairs([pairs[i] for i in part])
        with model.evaluating():
            totals = forest.totals(model.log_probs(forest)).double().cpu()
        chosen[part], rejected[part] = totals[left], totals[right]
        done += len(part)
        on_progress(done)
    return Pairwise(chosen, rejected)


def reference_log_probs(
    model: LanguageModel,
    pairs: Sequence[TokenPair],
    *,
    max_tokens: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Pairwise:
    """Return the start model's log-probabilities, from the cache where they are known.

    The key is made of the weights, the chat format and the tokens, so that a hit can only be the
    same computation. A model with an adapter answers without it.
    """

    def compute() -> dict[str, Tensor]:
        with model.reference() if model.has_adapter else nullcontext():
            found = pair_log_probs(model, pairs, max_tokens=max_tokens, on_progress=on_progress)
        return {"chosen": found.chosen, "rejected": found.rejected}

    tensors, _ = cached("reference", _reference_key(model, pairs), compute)
    on_progress(len(pairs))
    return Pairwise(tensors["chosen"], tensors["rejected"])


def zeros(pairs: Sequence[TokenPair]) -> Pairwise:
    """Return the reference of a reference-free method."""
    nothing = torch.zeros(len(pairs), dtype=torch.float64)
    return Pairwise(nothing, nothing)


def _reference_key(model: LanguageModel, pairs: Sequence[TokenPair]) -> str:
    digest = hashlib.sha256(f"2 {model.chat.hash} {bool(model.padded_because)}".encode())
    digest.update(model.start_hash.encode())
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            digest.update(side.tokens.tobytes() + b"|" + side.mask + b"\n")
    return digest.hexdigest()


def _sides(pairwise: Pairwise) -> Iterator[Tensor]:
    return iter((pairwise.chosen, pairwise.rejected))
