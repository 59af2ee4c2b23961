"""Features of a frozen model, computed once and kept: a run that was killed goes on with them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from melior.data.batches import TokenGroup
from melior.models.aspects import features_of, opening_length
from melior.models.heads import RewardModel
from melior.models.language import fingerprint
from melior.training.cache import cached
from melior.training.hooks import counted

SHARD = 256
"""Groups of answers in one file of the cache, which is written as soon as they are computed."""


@dataclass(frozen=True)
class FeatureTable:
    """The last hidden states of all answers of a data set, group by group, and of its prompts."""

    answers: Float[Tensor, "n d"]
    prompts: Float[Tensor, "g d"]


class KeptFeatures:
    """What computes features, or finds them in the cache.

    The key is made of the weights below the head, the chat format and the tokens, so that a hit can
    only be the same computation.

    Args:
        model: the frozen model.
        max_tokens: computed at once; a prompt counts once for all its answers.
    """

    def __init__(self, model: RewardModel, *, max_tokens: int) -> None:
        self.model = model
        self.opening = opening_length(model.chat)
        self.max_tokens = max_tokens

    def of(self, groups: Sequence[TokenGroup], title: str) -> FeatureTable:
        """Return the features of groups, showing how far it is under a title."""
        shards = [groups[start : start + SHARD] for start in range(0, len(groups), SHARD)]
        found, done = [], 0
        with counted(f"features of {title}", len(groups)) as progress:
            for shard in shards:
                found.append(self._shard(shard))
                done += len(shard)
                progress(done)
        if not found:
            width = self.model.core.score.in_features
            return FeatureTable(torch.zeros(0, width), torch.zeros(0, width))
        parts = (torch.cat([tensors[name] for tensors in found]) for name in ("answers", "prompts"))
        return FeatureTable(*parts)

    def _shard(self, groups: Sequence[TokenGroup]) -> dict[str, Tensor]:
        def compute() -> dict[str, Tensor]:
            found = features_of(
                self.model, [group.answers for group in groups],
                opening=self.opening, max_tokens=self.max_tokens,
            )  # fmt: skip
            answers = torch.cat([one.answers for one in found])
            return {"answers": answers, "prompts": torch.stack([one.prompt for one in found])}

        tensors, _ = cached("features", self._key(groups), compute)
        return tensors

    def _key(self, groups: Sequence[TokenGroup]) -> str:
        digest = hashlib.sha256(f"1 {self.identity}".encode())
        for group in groups:
            digest.update(b"group\n")
            for answer in group.answers:
                digest.update(f"{answer.n_prompt} ".encode() + answer.tokens.tobytes() + b"\n")
        return digest.hexdigest()

    @cached_property
    def identity(self) -> str:
        """What features depend on besides the tokens."""
        weights = fingerprint(self.model.core.base_model, self.model.core.config)
        padded = bool(self.model.padded_because)
        return f"{weights} {self.model.chat.hash} {padded} {self.opening}"
