"""A pairwise preference model: a language model that reads both answers and names the better one.

The preference model of RLHF Workflow (Dong et al. 2024, arXiv 2405.07863), kept where held-out
pairs are judged best.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from melior.checks import in_range
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.stages.inputs import check_inputs

if TYPE_CHECKING:
    from melior.models.pairwise import PairwiseModel
    from melior.stages.reward_models.train import RewardPlan

PAPER = "Dong et al. 2024, arXiv 2405.07863"


@dataclass(frozen=True)
class Config:
    """Train a model that compares two answers, and keep its best checkpoint on held-out pairs."""

    model: ModelOptions
    data: DataOptions
    loop: LoopOptions
    optim: OptimConfig = OptimConfig(learning_rate=5e-6, warmup_ratio=0.03)
    validation_share: float = 0.1
    """Share of the prompts held out to choose the best checkpoint where no --eval-data is given;
    0 trains on all and keeps the last step."""
    patience: int = 3
    """Stop after so many judgements in a row without a better one; 0 never stops. There is one
    after each --eval-steps, or after each epoch where these are 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("validation_share", self.validation_share, 0, 1, below=True)
        in_range("patience", self.patience, 0)
        if self.data.truncation_mode == "keep_start":
            raise ValueError(
                "truncation_mode must be drop or keep_end, as both answers are read whole; found"
                " keep_start, which cuts off the second one"
            )
        if self.loop.kl_budget:
            raise ValueError(
                "kl_budget is for models that answer, which a pairwise model does not; leave it"
                f" out; found {self.loop.kl_budget:g}"
            )

    @classmethod
    def tiny(cls, model: str, data: str, out: str) -> Config:
        """Return a config that runs in seconds on a tiny model."""
        return cls(
            ModelOptions(model=model, dtype="fp32"),
            DataOptions(data=(data,), n_samples=2),
            LoopOptions(out=out, epochs=4, batch_size=8, save_steps=4),
            OptimConfig(learning_rate=1e-2),
            validation_share=0.2,
        )


def plan(config: Config) -> RewardPlan[PairwiseModel]:
    """Return what the stage needs to know."""
    from melior.stages.reward_models.pairwise import pairwise
    from melior.stages.reward_models.train import RewardPlan

    keeps_end = config.data.truncation_mode == "keep_end"
    kind = pairwise(max_length=config.data.max_length, keeps_end=keeps_end)
    data = replace(config.data, truncation_mode="drop")  # the kind has cut all that may be cut
    return RewardPlan(
        "train-pairwise", PAPER, kind, config.validation_share, config.patience,
        config.model, data, config.optim, config.loop, config,
    )  # fmt: skip


def run(config: Config) -> None:
    """Train, judge, save and report."""
    check_inputs(config.model, config.data, config.loop, holds="comparisons")
    from melior.report.terminal import present
    from melior.stages.reward_models.train import train_reward

    present([train_reward(plan(config))])
