"""Log-probabilities of a whole data set, token by token, in portions under a token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from melior.data.batches import TokenGroup, TokenValues, plant_groups, portions, scored_lengths
from melior.models.language import LanguageModel


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
    for part in portions([group.answers for group in groups], max_tokens):
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
