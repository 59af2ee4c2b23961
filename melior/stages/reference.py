"""Log-probabilities of the start model, token by token, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from torch import Tensor

from melior.data.batches import TokenGroup, TokenValues, scored_lengths
from melior.models.language import LanguageModel
from melior.models.likelihood import token_log_probs
from melior.training.cache import cached

__all__ = ["reference_log_probs", "token_log_probs"]


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
