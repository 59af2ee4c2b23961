"""Symptoms that are looked for once, in what a run read and in what its model then says.

Those in the curves of a run on its way are found by `symptoms`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from melior.training.health import SURE, Finding
from melior.training.symptoms import REMEDIES, remedy

LENGTH_DRIFT = 1.25
"""Factor by which answers may grow or shrink."""
DUPLICATES = 0.1
"""Share of repeated rows that is worth a word."""


def over_budget(
    kl: float, error: float | None, budget: float, options: frozenset[str] = REMEDIES
) -> Finding | None:
    """Find a model that went further from its start than was allowed.

    Rule: the KL is above the budget; a note only, while the budget is within two standard errors.
    """
    if not budget or kl <= budget:
        return None
    is_sure = error is not None and kl - 2 * error > budget
    spread = f" (standard error {error:.2g})" if error is not None else ""
    return Finding(
        "kl-budget", "warning" if is_sure else "note",
        f"the model left its budget: KL to the start is {kl:.3g} nats an answer{spread}, allowed"
        f" were {budget:g}",
        remedy(
            options, "lower --learning-rate", "raise --beta", "stop earlier with --max-steps"
        ),
    )  # fmt: skip


def answer_lengths(
    before: Sequence[int], after: Sequence[int], chosen: Sequence[int]
) -> Finding | None:
    """Find sampled answers whose length went where the data does not point.

    Rule: over the same prompts, the mean log-ratio of lengths is beyond a factor 1.25 either way
    and beyond three standard errors, and the new mean is not between the old one and the chosen
    answers'.
    """
    ratios = [math.log(max(1, new) / max(1, old)) for old, new in zip(before, after, strict=True)]
    if len(ratios) < 2 or not chosen:
        return None
    drift, error = statistics.fmean(ratios), statistics.stdev(ratios) / math.sqrt(len(ratios))
    old, new, data = (statistics.fmean(lengths) for lengths in (before, after, chosen))
    is_toward_data = min(old, data) <= new <= max(old, data)
    if abs(drift) <= max(math.log(LENGTH_DRIFT), SURE * error) or is_toward_data:
        return None
    return Finding(
        "answer-lengths", "warning",
        f"answers {'grew' if drift > 0 else 'shrank'} from {old:.3g} to {new:.3g} tokens on"
        f" average, though the chosen ones of the data have {data:.3g}",
        "use a loss that divides or corrects by length (melior simpo, melior r-dpo), balance the"
        " lengths in the data, or lower --learning-rate",
    )  # fmt: skip


def repeated_rows(share: float, epochs: float) -> Finding | None:
    """Find data in which repetitions weigh on the loss.

    Rule: a tenth of the rows or more repeat an earlier one.
    """
    if share < DUPLICATES:
        return None
    return Finding(
        "repeated-rows", "warning",
        f"{share:.0%} of the rows repeat an earlier one: they count twice or more in the loss, and"
        f" in {epochs:g} epoch{'' if epochs == 1 else 's'} are learned by heart first",
        "leave them out; melior data check names them",
    )  # fmt: skip
