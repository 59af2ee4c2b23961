"""An optimizer batch divided over processes that wait for each other."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from math import ceil

from melior.data.forest import Marked, size


def even_portions(
    groups: Sequence[Sequence[Marked]], max_tokens: int, processes: int
) -> list[list[list[int]]]:
    """Divide groups of answers evenly over processes, each share into as many portions.

    Each group goes, the largest first, to the portion that has least. What is computed at one time
    is of like size everywhere, as processes wait for each other. A portion may be empty, and one
    group alone may exceed the tokens.
    """
    sizes = [size(group) for group in groups]
    rounds = max(1, ceil(sum(sizes) / (max_tokens * processes)))
    while True:
        bins = _even(sizes, rounds * processes)
        filled = [sum(sizes[i] for i in one) for one in bins]
        if max(filled) <= max_tokens or max(map(len, bins)) == 1:
            break
        rounds += 1
    order = sorted(range(len(bins)), key=lambda number: -filled[number])
    return [[bins[number] for number in order[start::processes]] for start in range(processes)]


def _even(sizes: Sequence[int], n: int) -> list[list[int]]:
    """Put things, the largest first, each into the one of `n` bins that has least."""
    bins: list[list[int]] = [[] for _ in range(n)]
    least = [(0, number) for number in range(n)]
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        filled, number = heappop(least)
        bins[number].append(i)
        heappush(least, (filled + sizes[i], number))
    return bins
