"""Log-probabilities of a whole data set, token by token, in portions under a token budget."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from melior.data.batches import TokenGroup, TokenValues, plant_groups, scored_lengths
from melior.data.portions import portions
from melior.models.language import LanguageModel
from melior.training import processes


def token_log_probs(
    model: LanguageModel,
    groups: Sequence[TokenGroup],
    *,
    max_tokens: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> TokenValues:
    """Return the log-probability of each scored token of all groups, in their order, on the CPU.

    Processes that share the work compute a share each, and all have the whole in the end.
    """
    lengths = scored_lengths(groups)
    sizes = list(map(sum, lengths))
    found: dict[int, Tensor] = {}
    values = torch.empty(0)
    for part, is_own in processes.turns(portions([g.answers for g in groups], max_tokens)):
        forest, _ = plant_groups([groups[i] for i in part])
        with model.evaluating():
            values = model.log_probs(forest).cpu()[forest.entries]
        if is_own:
            found |= zip(part, values.split([sizes[i] for i in part]), strict=True)
            on_progress(min(len(groups), len(found) * processes.count()))
    missing = (torch.zeros(n, dtype=values.dtype) for n in sizes)
    whole = [found.get(i, zeros) for i, zeros in enumerate(missing)]
    return TokenValues(processes.total(torch.cat([values[:0], *whole])), lengths)
