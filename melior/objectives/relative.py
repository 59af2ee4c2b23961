"""Pairs, relative to a reference: DPO and its kin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from melior.objectives.objective import ChosenLikelihood, Objective
from melior.options import in_range

if TYPE_CHECKING:
    from melior.stages.method import Method


@dataclass(frozen=True)
class Dpo(Objective):
    """Learn from pairs with DPO, held to the start model."""

    paper = "Rafailov et al. 2023, arXiv 2305.18290"

    beta: float = 0.1
    """How strongly the model is held to its start; the paper uses 0.1 to 0.5."""
    label_smoothing: float = 0.0
    """Share of labels taken to be flipped (conservative DPO)."""
    likelihood: ChosenLikelihood = ChosenLikelihood()

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("beta", self.beta, 0, above=True)
        in_range("label_smoothing", self.label_smoothing, 0, 0.5, below=True)

    def method(self) -> Method:
        """Return DPO's loss and reward."""
        from melior.losses.preference import dpo
        from melior.stages.method import log_ratio_method

        loss = partial(dpo, beta=self.beta, label_smoothing=self.label_smoothing)
        return log_ratio_method(loss, beta=self.beta, **self.likelihood.options())
