"""DPO: preferences by the log-ratio to the model one started from.

Rafailov et al. 2023, arXiv 2305.18290.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig, in_range
from melior.stages.inputs import check_inputs

if TYPE_CHECKING:
    from melior.stages.preference import Method

PAPER = "Rafailov et al. 2023, arXiv 2305.18290"


@dataclass(frozen=True)
class Config:
    """Learn from pairs with DPO, held to the start model."""

    model: ModelOptions
    data: DataOptions
    loop: LoopOptions
    optim: OptimConfig = OptimConfig(learning_rate=1e-6)
    beta: float = 0.1
    """How strongly the model is held to its start; the paper uses 0.1 to 0.5."""
    label_smoothing: float = 0.0
    """Share of labels taken to be flipped (conservative DPO)."""
    sft_weight: float = 0.0
    """Of the chosen answers' negative log-likelihood, averaged over tokens."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("beta", self.beta, 0, above=True)
        in_range("label_smoothing", self.label_smoothing, 0, 0.5, below=True)
        in_range("sft_weight", self.sft_weight, 0)

    @classmethod
    def tiny(cls, model: str, data: str, out: str) -> Config:
        """Return a config that runs in seconds on a tiny model."""
        return cls(
            ModelOptions(model=model, dtype="fp32"),
            DataOptions(data=(data,), n_samples=2),
            LoopOptions(out=out, epochs=4, batch_size=8, save_steps=4),
            OptimConfig(learning_rate=1e-2),
        )


def method(config: Config) -> Method:
    """Return DPO's loss and the reward that it compares."""
    from functools import partial

    from melior.losses.preference import dpo
    from melior.stages.preference import log_ratio_method

    loss = partial(dpo, beta=config.beta, label_smoothing=config.label_smoothing)
    return log_ratio_method(loss, beta=config.beta, sft_weight=config.sft_weight)


def run(config: Config) -> None:
    """Train, judge, save and report."""
    check_inputs(config.model, config.data, config.loop)
    from melior.report.terminal import present
    from melior.stages.learn import Plan, learn

    name, parts = "dpo", (config.model, config.data, config.optim, config.loop)
    present([learn(Plan(name, PAPER, method(config), *parts, config))])
