"""Groups of answers in portions of so many tokens, for one process or evenly over several."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import count
from math import ceil
from typing import TypeVar

from melior.data.forest import Marked, size

M = TypeVar("M", bound=Marked)


def portions(groups: Sequence[Sequence[Marked]], max_tokens: int) -> list[list[int]]:
    """Divide groups of answers, those of like length together, into parts of so many tokens.

    One group alone may exceed them, and one without answers is in no part.
    """
    longest = [max((len(answer.tokens) for answer in group), default=0) for group in groups]
    order = sorted((i for i, group in enumerate(groups) if group), key=lambda i: (-longest[i], i))
    parts: list[list[int]] = []
    room = 0
    for i in order:
        need = size(groups[i])
        if not parts or need > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(i)
        room -= need
    return parts


def even_portions(
    groups: Sequence[Sequence[Marked]], max_tokens: int, processes: int
) -> list[list[list[int]]]:
    """Divide groups of answers evenly over processes, each share into as many portions.

    Each group goes, the largest first, to the portion that has least. What is computed at one time
    is of like size everywhere, as processes wait for each other. A portion may be empty, and one
    group alone may exceed the tokens.
    """
    sizes = [size(group) for group in groups]

    def filled(part: Sequence[int]) -> int:
        return sum(sizes[i] for i in part)

    fewest = ceil(sum(min(n, max_tokens) for n in sizes) / (max_tokens * processes))
    for rounds in count(fewest):
        parts = _even(sizes, rounds * processes)
        if all(len(part) == 1 or filled(part) <= max_tokens for part in parts):
            break
    parts.sort(key=filled, reverse=True)
    return [parts[start::processes] for start in range(processes)]


def divided(groups: Sequence[Sequence[M]], max_tokens: int) -> tuple[list[int], list[Sequence[M]]]:
    """Halve groups until each part is of so many tokens, or one answer.

    Returns:
        Of which group each part is, in order, and the parts; a group without answers is one part.
    """
    parts = [(i, part) for i, group in enumerate(groups) for part in _within(group, max_tokens)]
    return [i for i, _ in parts], [part for _, part in parts]


def _even(sizes: Sequence[int], n: int) -> list[list[int]]:
    """Put things, the largest first, each into the one of `n` bins that has least."""
    bins: list[list[int]] = [[] for _ in range(n)]
    least = [(0, number) for number in range(n)]
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        filled, number = heappop(least)
        bins[number].append(i)
        heappush(least, (filled + sizes[i], number))
    return bins


def _within(group: Sequence[M], max_tokens: int) -> list[Sequence[M]]:
    if len(group) < 2 or size(group) <= max_tokens:
        return [group]
    half = len(group) // 2
    return [*_within(group[:half], max_tokens), *_within(group[half:], max_tokens)]
