"""What every objective is: options with their ranges, and the method that they make; no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from melior.checks import in_range
from melior.data.examples import Data

if TYPE_CHECKING:
    from melior.stages.method import Method


@dataclass(frozen=True)
class ChosenLikelihood:
    """A likelihood term on the better answers, added to the loss."""

    sft_weight: float = 0.0
    """Of the better answers' negative log-likelihood."""
    nll_reduction: Literal["mean_token", "sum"] = "mean_token"
    """Averaged over all their tokens in the optimizer batch, or summed in each answer."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("sft_weight", self.sft_weight, 0)

    def options(self) -> dict[str, Any]:
        """Return what `Method` takes."""
        return {"sft_weight": self.sft_weight, "nll_reduction": self.nll_reduction}


@dataclass(frozen=True)
class Objective:
    """Options of a way to learn; a subclass adds its own and says what method they make."""

    paper: ClassVar[str]
    """Author, year, arXiv number."""
    data: ClassVar[Data] = "pairs"
    """What its rows must hold."""
    learning_rate: ClassVar[float] = 1e-6
    """Where none is given."""
    reads_margins: ClassVar[bool] = False
    """Rows must have margins of their own, such as a reward model's."""
    sweep: ClassVar[Mapping[str, tuple[float, ...]]] = {}
    """The option that says how strong it is, and the values that `melior compare` tries."""

    def fitted(self, margins: Sequence[float]) -> Objective:
        """Return the options with those taken from the data that have no meaning without it."""
        return self

    def method(self) -> Method:
        """Return the loss and the reward that it compares."""
        raise NotImplementedError
