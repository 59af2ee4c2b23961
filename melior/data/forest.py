"""Token trees: every shared prefix stands once, in one row without padding.

A pair is a trunk (the prompt) with two leaves, a group a trunk with k leaves, a reasoning tree has
forks inside. `plant` finds what sequences share and lays the tree out depth first, so that each
node and each subtree is one contiguous stretch of the row, and positions count along the path
from the root. What a model says of a `Forest` must equal what it says of the sequences one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor


@runtime_checkable
class Marked(Protocol):
    """A sequence of tokens, of which some are scored."""

    @property
    def tokens(self) -> Sequence[int]:
        """The token ids."""

    @property
    def mask(self) -> Sequence[int]:
        """True where a token is scored; the first token has nothing before it and cannot be."""


@dataclass(frozen=True)
class Segment:
    """One node of a tree: rows `start` to `stop`, its subtree up to `end`."""

    start: int
    stop: int
    end: int
    parent: int
    """Index of the segment it grows from, or -1."""


@dataclass(frozen=True)
class Forest:
    """Trees packed into one row of `t` tokens, of which `s` are scored, for `n` sequences."""

    tokens: Int[Tensor, " t"]
    positions: Int[Tensor, " t"]
    """Along the path from the root."""
    scored: Int[Tensor, " s"]
    """The rows of the scored tokens, ..."""
    before: Int[Tensor, " s"]
    """... the row whose output predicts each: the one before it on its path, ..."""
    targets: Int[Tensor, " s"]
    """... and the tokens themselves."""
    entries: Int[Tensor, " m"]
    """Which scored token ..."""
    owners: Int[Tensor, " m"]
    """... belongs to which sequence: a token in a shared stretch has several owners."""
    lengths: Int[Tensor, " n"]
    """Scored tokens of each sequence."""
    segments: tuple[Segment, ...]
    paths: tuple[tuple[int, ...], ...]
    """The segments of each sequence, from the root."""

    @property
    def n(self) -> int:
        """How many sequences there are."""
        return len(self.paths)

    @property
    def last(self) -> Int[Tensor, " n"]:
        """The row of each sequence's last token."""
        return torch.tensor([self.segments[path[-1]].stop - 1 for path in self.paths])

    def row(self, sequence: int, place: int) -> int:
        """Return the row of one token of a sequence."""
        for index in self.paths[sequence]:
            part = self.segments[index]
            if place < part.stop - part.start:
                return part.start + place
            place -= part.stop - part.start
        raise IndexError(f"sequence {sequence} has no token {place} behind its end")

    def rows(self, sequence: int) -> Int[Tensor, " p"]:
        """Return the rows of one sequence in their order."""
        parts = [self.segments[index] for index in self.paths[sequence]]
        return torch.cat([torch.arange(part.start, part.stop) for part in parts])

    def totals(self, values: Float[Tensor, " s"]) -> Float[Tensor, " n"]:
        """Sum each sequence's scored tokens, in float64: margins are small differences of sums."""
        wide = values if values.device.type == "mps" else values.double()
        zeros = torch.zeros(self.n, dtype=wide.dtype, device=wide.device)
        return zeros.index_add(0, self.owners.to(wide.device), wide[self.entries.to(wide.device)])


def plant(sequences: Sequence[Marked], *, min_shared: int = 16) -> Forest:
    """Pack sequences into a forest.

    Args:
        sequences: at least one; none empty.
        min_shared: a shared stretch shorter than this is repeated, since an extra segment costs
            more than it saves. Two equal sequences still share all they have.

    Raises:
        ValueError: a sequence is empty, or its first token is scored.
    """
    _check(sequences)
    order = sorted(range(len(sequences)), key=lambda i: list(sequences[i].tokens))
    layout = _Layout(sequences, min_shared)
    layout.grow(order, depth=0, parent=-1)
    return layout.forest()


def filled(forest: Forest, most: int) -> Forest:
    """Lengthen the row by a few tokens of no sequence, so that many forests have few lengths.

    What multiplies matrices on a CPU keeps a program for every shape that it met, a thousand of
    them, and a block of memory that was freed serves again where the next tensor is as large. Rows
    as long as they come make a process grow by megabytes with each of the first hundreds. So there
    are 32 lengths to a power of two, and a row grows by less than a 32nd. What is added is a tree
    of its own at the row's end, which nothing else attends to.

    Args:
        forest: what is to be computed.
        most: tokens that no row is filled beyond.
    """
    length = len(forest.tokens)
    step = 1 << max(0, length.bit_length() - 6)
    extra = min(-length % step, most - length)
    if extra <= 0:
        return forest
    return replace(
        forest,
        tokens=torch.cat([forest.tokens, forest.tokens.new_zeros(extra)]),
        positions=torch.cat([forest.positions, torch.arange(extra)]),
        segments=(*forest.segments, Segment(length, length + extra, length + extra, -1)),
    )


def size(sequences: Sequence[Marked], *, min_shared: int = 16) -> int:
    """Return how many tokens a forest of these sequences holds."""
    order = sorted(range(len(sequences)), key=lambda i: list(sequences[i].tokens))
    return _Layout(sequences, min_shared).size(order, depth=0)


def _check(sequences: Sequence[Marked]) -> None:
    if not sequences:
        raise ValueError("a forest needs at least one sequence; found none")
    for index, sequence in enumerate(sequences):
        if not len(sequence.tokens):
            raise ValueError(f"sequence {index}: needs at least one token; found none")
        if len(sequence.tokens) != len(sequence.mask):
            raise ValueError(f"sequence {index}: one mask value a token is needed")
        if sequence.mask[0]:
            raise ValueError(
                f"sequence {index}: the first token is to be scored, but nothing stands before it;"
                " give the sequence a prompt or a beginning-of-sequence token"
            )


def _common(left: Sequence[int], right: Sequence[int], start: int = 0) -> int:
    """Length of the prefix that two sequences share, known to be at least `start`."""
    limit = min(len(left), len(right))
    low, high = start, limit
    # Whole slices compare at C speed: halve the stretch in which the first difference lies.
    while low < high:
        middle = (low + high + 1) // 2
        if list(left[low:middle]) == list(right[low:middle]):
            low = middle
        else:
            high = middle - 1
    return low


class _Layout:
    """The row under construction."""

    def __init__(self, sequences: Sequence[Marked], min_shared: int) -> None:
        self.sequences = sequences
        self.min_shared = min_shared
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.paths: list[tuple[int, ...]] = [()] * len(sequences)

    def grow(self, members: list[int], depth: int, parent: int) -> None:
        """Lay out the members, sorted by their tokens and alike up to `depth`."""
        for cluster, shared in self._clusters(members, depth):
            first = self.sequences[cluster[0]].tokens
            start, index = len(self.tokens), len(self.segments)
            self.tokens += first[depth:shared]
            self.positions += range(depth, shared)
            self.segments.append(Segment(start, len(self.tokens), 0, parent))
            for member in cluster:
                self.paths[member] = (*self.paths[member], index)
            rest = [m for m in cluster if len(self.sequences[m].tokens) > shared]
            self.grow(rest, shared, index)
            self.segments[index] = Segment(start, start + shared - depth, len(self.tokens), parent)

    def size(self, members: list[int], depth: int) -> int:
        """Count the tokens that `grow` would lay out."""
        total = 0
        for cluster, shared in self._clusters(members, depth):
            rest = [m for m in cluster if len(self.sequences[m].tokens) > shared]
            total += shared - depth + self.size(rest, shared)
        return total

    def _clusters(self, members: list[int], depth: int) -> list[tuple[list[int], int]]:
        """Split sorted members into runs that share enough beyond `depth`, with what they share."""
        clusters: list[tuple[list[int], int]] = []
        for member in members:
            tokens = self.sequences[member].tokens
            if clusters:
                cluster, shared = clusters[-1]
                common = min(shared, _common(self.sequences[cluster[-1]].tokens, tokens, depth))
                is_equal = common == len(tokens) == len(self.sequences[cluster[-1]].tokens)
                if common - depth >= self.min_shared or (is_equal and common > depth):
                    clusters[-1] = ([*cluster, member], common)
                    continue
            clusters.append(([member], len(tokens)))
        return clusters

    def forest(self) -> Forest:
        """Number the scored tokens and make tensors of the lists."""
        parents = torch.arange(-1, len(self.tokens) - 1)
        for segment in self.segments:
            above = self.segments[segment.parent].stop - 1 if segment.parent >= 0 else -1
            parents[segment.start] = above
        owned, owners, lengths = [], [], []
        for index, sequence in enumerate(self.sequences):
            mask = torch.as_tensor(list(sequence.mask), dtype=torch.bool)
            parts = [self.segments[i] for i in self.paths[index]]
            rows = torch.cat([torch.arange(p.start, p.stop) for p in parts])[mask]
            owned.append(rows)
            owners.append(torch.full_like(rows, index))
            lengths.append(len(rows))
        scored, entries = torch.cat(owned).unique(return_inverse=True)
        tokens = torch.tensor(self.tokens)
        return Forest(
            tokens=tokens,
            positions=torch.tensor(self.positions),
            scored=scored,
            before=parents[scored],
            targets=tokens[scored],
            entries=entries,
            owners=torch.cat(owners),
            lengths=torch.tensor(lengths),
            segments=tuple(self.segments),
            paths=tuple(self.paths),
        )
