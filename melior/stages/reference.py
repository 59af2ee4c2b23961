"""Log-probabilities of a whole data set, token by token, and those of the start model, kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor

from melior.data.batches import TokenGroup, TokenValues, plant_groups, portions, scored_lengths
from melior.models.language import LanguageModel
from melior.training.cache import cached


def token_log_probs(
    model: LanguageModel,
    groups: Sequence[TokenGroup],
    *,
    max_tokens: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> TokenValues:
    """Return the log-probability of each scored token of all groups, in their order, on the CPU."""
    found: list[Tensor] = [torch.empty(0)] * len(groups)
    done = 0
    for part in portions(groups, max_tokens):
        own = [groups[i] for i in part]
        forest, _ = plant_groups(own)
        with model.evaluating():
            values = model.log_probs(forest).cpu()[forest.entries]
        sizes = [sum(lengths) for lengths in scored_lengths(own)]
        for place, piece in zip(part, values.split(sizes), strict=True):
            found[place] = piece
        done += len(part)
        on_progress(done)
    values = torch.cat(found) if found else torch.empty(0)
    return TokenValues(values, scored_lengths(groups))


def reference_log_probs(
    model: LanguageModel,
    groups: Sequence[TokenGroup],
    *,
    max_tokens: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> TokenValues:
    """Return the start model's log-probabilities, from the cache where they are known.

    The key is made of the weights, the chat format and the tokens, so that a hit can only be the
    same computation. A model with an adapter answers without it.
    """

    def compute() -> dict[str, Tensor]:
        with model.reference() if model.has_adapter else nullcontext():
            found = token_log_probs(model, groups, max_tokens=max_tokens, on_progress=on_progress)
        return {"tokens": found.values}

    tensors, _ = cached("reference", _key(model, groups), compute)
    on_progress(len(groups))
    return TokenValues(tensors["tokens"], scored_lengths(groups))


def _key(model: LanguageModel, groups: Sequence[TokenGroup]) -> str:
    digest = hashlib.sha256(f"3 {model.chat.hash} {bool(model.padded_because)}".encode())
    digest.update(model.start_hash.encode())
    for group in groups:
        for answer in group.answers:
            digest.update(answer.tokens.tobytes() + b"|" + answer.mask + b"\n")
    return digest.hexdigest()
