"""Rows held apart by their prompts, so that no prompt stands on both sides; no torch."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterable, Sequence
from operator import attrgetter
from typing import TypeVar

from melior.records import Group, Pair

R = TypeVar("R")


def split_by_prompt(
    records: Iterable[R],
    *,
    share: float,
    seed: int,
    prompt: Callable[[R], Hashable] = attrgetter("prompt"),
) -> tuple[list[R], list[R]]:
    """Hold a share of the prompts apart, at least one, with all their rows.

    Args:
        records: rows with prompts; several may have the same.
        share: of the distinct prompts.
        seed: decides which.
        prompt: of a row.

    Returns:
        The rows that stay and those that are held apart, both in their order.

    Raises:
        ValueError: there is only one prompt, or none.
    """
    rows = list(records)
    prompts = list(dict.fromkeys(map(prompt, rows)))
    if len(prompts) < 2:
        origin = getattr(rows[0], "origin", "data") if rows else "data"
        raise ValueError(f"{origin}: holding prompts apart needs two or more; found {len(prompts)}")
    n_apart = min(max(1, round(share * len(prompts))), len(prompts) - 1)
    apart = set(random.Random(seed).sample(prompts, n_apart))
    kept = [record for record in rows if prompt(record) not in apart]
    return kept, [record for record in rows if prompt(record) in apart]


def shared_prompts(left: Sequence[Pair | Group], right: Iterable[Pair | Group]) -> int:
    """Count the rows on the right whose prompt also stands on the left."""
    known = {record.prompt for record in left}
    return sum(record.prompt in known for record in right)
