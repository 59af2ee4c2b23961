"""Pairs, without a reference: SimPO and its kin."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

from melior.objectives.objective import ChosenLikelihood, Objective
from melior.options import in_range

if TYPE_CHECKING:
    from melior.stages.method import Method


@dataclass(frozen=True)
class Simpo(Objective):
    """Learn from pairs with SimPO: no reference model, length-normalised reward."""

    paper = "Meng et al. 2024, arXiv 2405.14734"
    learning_rate = 5e-7

    beta: float = 2.0
    """Scale of the reward; the paper searches 2 to 10."""
    gamma: float | None = None
    """Target margin of the rewards (TRL's simpo_gamma); give this or gamma_beta_ratio."""
    gamma_beta_ratio: float | None = None
    """Target margin over beta, as in the authors' configs; 0.5 where neither is given."""
    label_smoothing: float = 0.0
    """Share of labels taken to be flipped."""
    loss_type: Literal["sigmoid", "hinge"] = "sigmoid"
    """The paper's, or the variant of the authors' code."""
    likelihood: ChosenLikelihood = ChosenLikelihood()

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("beta", self.beta, 0, above=True)
        in_range("label_smoothing", self.label_smoothing, 0, 0.5, below=True)
        in_range("gamma", self.gamma or 0.0, 0)
        in_range("gamma_beta_ratio", self.gamma_beta_ratio or 0.0, 0)
        if self.gamma is not None and self.gamma_beta_ratio is not None:
            raise ValueError("gamma and gamma_beta_ratio say the same: give one; found both")
        if self.loss_type == "hinge" and self.label_smoothing:
            raise ValueError("label_smoothing is for loss_type sigmoid; found hinge")

    @property
    def target_margin(self) -> float:
        """Gamma, absolute, however it was given."""
        if self.gamma is not None:
            return self.gamma
        ratio = 0.5 if self.gamma_beta_ratio is None else self.gamma_beta_ratio
        return ratio * self.beta

    def method(self) -> Method:
        """Return SimPO's loss and reward."""
        from melior.losses.preference import simpo, simpo_hinge
        from melior.stages.method import per_token_method

        beta, gamma = self.beta, self.target_margin
        smoothed = partial(simpo, beta=beta, gamma=gamma, label_smoothing=self.label_smoothing)
        loss = smoothed if self.loss_type == "sigmoid" else partial(
            simpo_hinge, beta=beta, gamma=gamma
        )  # fmt: skip
        return per_token_method(loss, beta=beta, **self.likelihood.options())
