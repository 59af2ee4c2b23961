"""SimPO: preferences without a reference model, rewarded by the average log-probability.

Meng, Xia, Chen 2024, arXiv 2405.14734. What differs from the authors' code stands in
`docs/simpo.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig, in_range
from melior.stages.inputs import check_inputs

if TYPE_CHECKING:
    from melior.stages.preference import Method

PAPER = "Meng et al. 2024, arXiv 2405.14734"


@dataclass(frozen=True)
class Config:
    """Learn from pairs with SimPO: no reference model, length-normalised reward."""

    model: ModelOptions
    data: DataOptions
    loop: LoopOptions
    optim: OptimConfig = OptimConfig(learning_rate=5e-7)
    beta: float = 2.0
    """Scale of the reward; the paper searches 2 to 10."""
    gamma: float | None = None
    """Target margin of the rewards (TRL's simpo_gamma); give this or gamma_beta_ratio."""
    gamma_beta_ratio: float | None = None
    """Target margin over beta, as in the authors' configs; 0.5 where neither is given."""
    label_smoothing: float = 0.0
    """Share of labels taken to be flipped."""
    sft_weight: float = 0.0
    """Of the chosen answers' negative log-likelihood, averaged over tokens."""
    loss_type: Literal["sigmoid", "hinge"] = "sigmoid"
    """The paper's, or the variant of the authors' code."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("beta", self.beta, 0, above=True)
        in_range("label_smoothing", self.label_smoothing, 0, 0.5, below=True)
        in_range("sft_weight", self.sft_weight, 0)
        in_range("gamma", self.gamma or 0.0, 0)
        in_range("gamma_beta_ratio", self.gamma_beta_ratio or 0.0, 0)
        if self.gamma is not None and self.gamma_beta_ratio is not None:
            raise ValueError("gamma and gamma_beta_ratio say the same: give one; found both")
        if self.loss_type == "hinge" and self.label_smoothing:
            raise ValueError("label_smoothing is for loss_type sigmoid; found hinge")

    @classmethod
    def tiny(cls, model: str, data: str, out: str) -> Config:
        """Return a config that runs in seconds on a tiny model."""
        return cls(
            ModelOptions(model=model, dtype="fp32"),
            DataOptions(data=(data,), n_samples=2),
            LoopOptions(out=out, epochs=4, batch_size=8, save_steps=4),
            OptimConfig(learning_rate=1e-2),
        )

    @property
    def target_margin(self) -> float:
        """Gamma, absolute, however it was given."""
        if self.gamma is not None:
            return self.gamma
        ratio = 0.5 if self.gamma_beta_ratio is None else self.gamma_beta_ratio
        return ratio * self.beta


def method(config: Config) -> Method:
    """Return SimPO's loss and the reward that it compares."""
    from functools import partial

    from melior.losses.reference_free import simpo, simpo_hinge
    from melior.stages.preference import per_token_method

    beta, gamma = config.beta, config.target_margin
    loss = {
        "sigmoid": partial(simpo, beta=beta, gamma=gamma, label_smoothing=config.label_smoothing),
        "hinge": partial(simpo_hinge, beta=beta, gamma=gamma),
    }[config.loss_type]
    return per_token_method(loss, beta=beta, sft_weight=config.sft_weight)


def run(config: Config) -> None:
    """Train, judge, save and report."""
    check_inputs(config.model, config.data, config.loop)
    from melior.report.terminal import present
    from melior.stages.learn import Plan, learn

    name, parts = "simpo", (config.model, config.data, config.optim, config.loop)
    present([learn(Plan(name, PAPER, method(config), *parts, config))])
