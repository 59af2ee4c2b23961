"""What travels between rooms as tensors, and the protocols of the functions that join them.

Axes: `n` examples, `k` candidates, `t` tokens or time, `s` scored tokens, `v` vocabulary,
`d` features, `m` judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from melior.records import Group, Metrics

Batch = TypeVar("Batch", contravariant=True)


@dataclass(frozen=True)
class Pairwise:
    """One number for the chosen and one for the rejected side of each example."""

    chosen: Float[Tensor, " n"]
    rejected: Float[Tensor, " n"]

    @property
    def margin(self) -> Float[Tensor, " n"]:
        """Chosen minus rejected."""
        return self.chosen - self.rejected


@runtime_checkable
class Objective(Protocol[Batch]):
    """What one micro-batch adds to the loss of its optimizer batch.

    A micro-batch knows the totals of the optimizer batch that it is a part of, and divides by
    them: the losses and metrics of its parts then simply add up, for token means too.
    """

    def __call__(self, batch: Batch, /) -> tuple[Float[Tensor, ""], Metrics]:
        """Return this part's share of the loss and of every metric."""


@runtime_checkable
class Scorer(Protocol):
    """Says how good candidates are; holds what it needs, and may be asked again and again."""

    def groups(self, groups: Iterable[Group], /) -> Iterator[Group]:
        """Yield the groups in their order, each candidate with a score.

        A candidate that cannot be scored has None. A scorer that compares answers two by two also
        leaves `facts["comparisons"]`: a row of numbers for each candidate, the logits that it beats
        each of the candidates, None where that is not known.
        """

    def remarks(self) -> list[str]:
        """Say what was cut, left out or has failed so far, a sentence each."""
