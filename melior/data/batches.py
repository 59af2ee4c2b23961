"""Pairs as tokens, in portions under a token budget, in an order that a seed decides."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from math import ceil

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior.data.chat import Encoded
from melior.data.forest import Forest, plant, size
from melior.records import Pair
from melior.types import Pairwise


@dataclass(frozen=True)
class Tokens:
    """One sequence, held in five bytes a token."""

    tokens: array[int]
    mask: bytes
    n_prompt: int

    @classmethod
    def of(cls, encoded: Encoded, rows: slice) -> Tokens:
        """Keep a stretch of an encoded sequence."""
        start = rows.start or 0
        kept = encoded.tokens[rows]
        n_prompt = min(len(kept), encoded.n_prompt - start)
        return cls(array("i", kept), bytes(encoded.mask[rows]), n_prompt)

    def __len__(self) -> int:
        """Count the tokens."""
        return len(self.tokens)


@dataclass(frozen=True)
class TokenPair:
    """A pair ready for the model."""

    chosen: Tokens
    rejected: Tokens
    margin: float = 0.0
    weight: float = 1.0
    subset: str = ""
    origin: str = ""

    def __len__(self) -> int:
        """Length of the longer side."""
        return max(len(self.chosen), len(self.rejected))


@dataclass
class Lengths:
    """What tokenising a data set showed; `too_long` names the rows that were left out."""

    origins: list[str] = field(default_factory=list)
    prompt: list[int] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)
    rejected: list[int] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)
    n_cut: int = 0

    def longest(self) -> list[int]:
        """Length of each pair's longer side with its prompt."""
        sides = zip(self.prompt, self.chosen, self.rejected, strict=True)
        return [p + max(c, r) for p, c, r in sides]


def tokenise(
    encoded: Iterable[tuple[Pair, Encoded, Encoded]], *, max_length: int, truncation_mode: str
) -> tuple[list[TokenPair], Lengths]:
    """Bring pairs to at most `max_length` tokens and count what that took.

    Args:
        encoded: each pair with its chosen and its rejected side.
        max_length: of prompt and answer together.
        truncation_mode: `drop` leaves longer rows out; `keep_end` cuts the prompt's start, so that
            the longer answer fits; `keep_start` cuts the answers' ends, end token and all. A row
            in which nothing would be left of the prompt or of an answer is left out in any mode.
    """
    pairs, lengths = [], Lengths()
    for pair, chosen, rejected in encoded:
        lengths.origins.append(pair.origin)
        lengths.prompt.append(chosen.n_prompt)
        lengths.chosen.append(len(chosen.tokens) - chosen.n_prompt)
        lengths.rejected.append(len(rejected.tokens) - rejected.n_prompt)
        rows = _kept(chosen, rejected, max_length, truncation_mode)
        if rows is None:
            lengths.too_long.append(pair.origin)
            continue
        lengths.n_cut += rows != slice(0, None)
        pairs.append(
            TokenPair(
                Tokens.of(chosen, rows),
                Tokens.of(rejected, rows),
                pair.margin,
                pair.weight,
                str(pair.facts.get("subset", "")),
                pair.origin,
            )
        )
    return pairs, lengths


def _kept(chosen: Encoded, rejected: Encoded, max_length: int, mode: str) -> slice | None:
    longest = max(len(chosen.tokens), len(rejected.tokens))
    if longest <= max_length:
        return slice(0, None)
    if mode == "keep_end" and longest - max_length < chosen.n_prompt:
        return slice(longest - max_length, None)
    if mode == "keep_start" and chosen.n_prompt < max_length:
        return slice(0, max_length)
    return None


@dataclass(frozen=True)
class PairBatch:
    """Some pairs of an optimizer batch, as one forest; `n_total` counts the whole batch."""

    forest: Forest
    chosen: Int[Tensor, " n"]
    """Which sequences of the forest are chosen answers ..."""
    rejected: Int[Tensor, " n"]
    """... and which the rejected ones of the same pairs."""
    reference: Pairwise
    margins: Float[Tensor, " n"]
    weights: Float[Tensor, " n"]
    origins: tuple[str, ...]
    n_total: int
    """Pairs in the optimizer batch, ..."""
    n_chosen_tokens: int
    """... and scored tokens of their chosen answers."""


class PairBatches:
    """All optimizer batches of a run, each a list of portions under the token budget.

    The order depends on the seed alone: `iterate(start)` goes on exactly where a run stopped.
    """

    def __init__(
        self,
        pairs: Sequence[TokenPair],
        reference: Pairwise,
        *,
        batch_size: int,
        max_tokens: int,
        seed: int,
    ) -> None:
        if not pairs:
            raise ValueError("training needs at least one pair; found none")
        self.pairs = pairs
        self.reference = reference
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.seed = seed
        self.steps_per_epoch = ceil(len(pairs) / batch_size)

    def iterate(self, total_steps: int, *, start: int = 0) -> Iterator[list[PairBatch]]:
        """Yield the batches of steps `start` to `total_steps`."""
        for step in range(start, total_steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if step == start or batch == 0:
                shuffle = torch.Generator().manual_seed(self.seed + epoch)
                order = torch.randperm(len(self.pairs), generator=shuffle).tolist()
            members = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield self.portions(members)

    def portions(self, members: Sequence[int]) -> list[PairBatch]:
        """Cut some pairs into portions; one pair alone may exceed the budget."""
        totals = (
            len(members),
            sum(sum(self.pairs[i].chosen.mask) for i in members),
        )
        split = portions([self.pairs[i] for i in members], self.max_tokens)
        return [self._batch([members[i] for i in part], totals) for part in split]

    def _batch(self, members: Sequence[int], totals: tuple[int, int]) -> PairBatch:
        pairs = [self.pairs[i] for i in members]
        index = torch.tensor(members)
        forest, chosen, rejected = plant_pairs(pairs)
        return PairBatch(
            forest=forest,
            chosen=chosen,
            rejected=rejected,
            reference=Pairwise(self.reference.chosen[index], self.reference.rejected[index]),
            margins=torch.tensor([pair.margin for pair in pairs], dtype=torch.float64),
            weights=torch.tensor([pair.weight for pair in pairs], dtype=torch.float64),
            origins=tuple(pair.origin for pair in pairs),
            n_total=totals[0],
            n_chosen_tokens=totals[1],
        )


def portions(pairs: Sequence[TokenPair], max_tokens: int) -> list[list[int]]:
    """Group pairs of like length so that each group computes at most `max_tokens` tokens."""
    order = sorted(range(len(pairs)), key=lambda i: (-len(pairs[i]), i))
    parts: list[list[int]] = []
    room = 0
    for i in order:
        need = size((pairs[i].chosen, pairs[i].rejected))
        if not parts or need > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(i)
        room -= need
    return parts


def plant_pairs(
    pairs: Sequence[TokenPair],
) -> tuple[Forest, Int[Tensor, " n"], Int[Tensor, " n"]]:
    """Return one forest of all sides, and which of its sequences are chosen and rejected."""
    forest = plant([side for pair in pairs for side in (pair.chosen, pair.rejected)])
    chosen = torch.arange(0, 2 * len(pairs), 2)
    return forest, chosen, chosen + 1
