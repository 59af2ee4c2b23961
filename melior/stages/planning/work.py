"""What a run computes: its portions, counted from the data as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from melior.data.batches import GroupBatches, TokenGroup, TokenValues, plant_groups
from melior.data.forest import Forest, size
from melior.data.portions import portions
from melior.models.flops import Shape
from melior.options import LoopOptions

LOOKED_AT = 64
"""Optimizer steps whose portions are counted, spread evenly over the run."""
LONGEST = 32
"""Groups among which the largest is looked for."""


@dataclass(frozen=True)
class Portion:
    """What is computed at once, and how much that is."""

    forest: Forest
    tokens: int
    scored: int
    pairs: int
    """Of a token and one that it attends to, itself included."""

    @classmethod
    def of(cls, forest: Forest, *, is_padded: bool) -> Portion:
        """Count a forest, or the same sequences one a row under padding."""
        scored = len(forest.scored)
        if not is_padded:
            pairs = int(forest.positions.sum()) + len(forest.positions)
            return cls(forest, len(forest.tokens), scored, pairs)
        longest = max(len(forest.rows(index)) for index in range(forest.n))
        return cls(forest, forest.n * longest, scored, forest.n * longest * (longest + 1) // 2)


@dataclass(frozen=True)
class Work:
    """The portions of some steps of a run, of its whole data, and the largest of all."""

    steps: int
    batches: tuple[tuple[Portion, ...], ...]
    """Of the steps that were looked at."""
    passed: tuple[Portion, ...]
    """All rows once, or as many as stand for them."""
    passed_share: float
    """Of the rows that these are."""
    largest: Portion
    least_tokens: int
    """Of the largest group, which no smaller budget divides."""

    @property
    def portions(self) -> list[Portion]:
        """Those of the steps that were looked at."""
        return [portion for batch in self.batches for portion in batch]

    def a_step(self, values: Sequence[float]) -> float:
        """Return what a step has on average, of numbers of `portions`."""
        return sum(values) / len(self.batches)


def work(
    groups: Sequence[TokenGroup], loop: LoopOptions, *, total_steps: int, is_padded: bool
) -> Work:
    """Count a run's portions, at most those of so many of its steps."""
    n = min(total_steps, LOOKED_AT)
    chosen = sorted({index * total_steps // n for index in range(n)})
    data = GroupBatches(
        groups, TokenValues.zeros(groups),
        batch_size=loop.batch_size, max_tokens=loop.max_tokens, seed=loop.seed,
    )  # fmt: skip
    batches = tuple(
        tuple(
            Portion.of(part.forest, is_padded=is_padded)
            for part in next(data.iterate(step + 1, start=step))
        )
        for step in chosen
    )
    longest = sorted(groups, key=lambda group: -sum(map(len, group.answers)))[:LONGEST]
    most = max(longest, key=lambda group: size(group.answers))
    alone = Portion.of(plant_groups([most])[0], is_padded=is_padded)
    passed = groups[:: max(1, len(groups) // (LOOKED_AT * loop.batch_size))]
    return Work(
        total_steps,
        batches,
        once(passed, loop.max_tokens, is_padded=is_padded),
        len(passed) / len(groups),
        max((*[p for batch in batches for p in batch], alone), key=lambda portion: portion.tokens),
        alone.tokens,
    )


def once(groups: Sequence[TokenGroup], max_tokens: int, *, is_padded: bool) -> tuple[Portion, ...]:
    """Return the portions in which rows are read once: by the reference, or to judge them."""
    parts = portions([group.answers for group in groups], max_tokens)
    forests = (plant_groups([groups[i] for i in part])[0] for part in parts)
    return tuple(Portion.of(forest, is_padded=is_padded) for forest in forests)


def reading_flops(shape: Shape, portion: Portion) -> float:
    """Return the FLOPs of reading a portion: a forward pass."""
    return shape.layers(portion.tokens, portion.pairs) + shape.head(portion.scored)


def learning_flops(
    shape: Shape, portion: Portion, *, checkpointing: bool, is_coupled: bool = False
) -> float:
    """Return the FLOPs of learning from a portion.

    Args:
        shape: of the model.
        portion: what is learned from.
        checkpointing: the layers go forward once more.
        is_coupled: the loss needs a forward pass over the whole batch first.
    """
    reading = reading_flops(shape, portion)
    back = shape.layers_back(portion.tokens, portion.pairs) + shape.head_back(portion.scored)
    again = shape.layers(portion.tokens, portion.pairs) if checkpointing else 0.0
    return reading * (2 if is_coupled else 1) + back + again
