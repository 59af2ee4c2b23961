"""What every objective is: options with their ranges, and the method that they make; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from melior.data.examples import Data
from melior.options import in_range

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

    def method(self) -> Method:
        """Return the loss and the reward that it compares."""
        raise NotImplementedError
