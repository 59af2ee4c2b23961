"""A reward model of pairs: Bradley-Terry's, kept where held-out pairs are ranked best.

Step 1 of MADPO (Rho 2025, arXiv 2510.05342), of RLHF Workflow (Dong et al. 2024, arXiv
2405.07863), and of every method that optimises a learned reward.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from melior.checks import in_range
from melior.models.names import ORIGINAL, SEVERAL, refuse_kinds
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.stages.inputs import check_inputs

if TYPE_CHECKING:
    from melior.models.heads import RewardModel
    from melior.stages.reward_models.train import RewardPlan

PAPER = "Bradley, Terry 1952; Stiennon et al. 2020, arXiv 2009.01325"


@dataclass(frozen=True)
class Config:
    """Train a reward model on pairs, and keep its best checkpoint on held-out pairs."""

    model: ModelOptions
    data: DataOptions
    loop: LoopOptions
    optim: OptimConfig = OptimConfig(learning_rate=1e-5, warmup_ratio=0.03)
    label_smoothing: float = 0.0
    """Share of labels taken to be flipped."""
    margin_weight: float = 0.0
    """Of the data's own margins, by which the better answer is asked to win; TRL's is 1."""
    center_rewards_coefficient: float = 0.0
    """Of what keeps rewards around 0; TRL recommends 0.01."""
    validation_share: float = 0.1
    """Share of the prompts held out to choose the best checkpoint where no --eval-data is given;
    0 trains on all and keeps the last step."""
    patience: int = 3
    """Stop after so many judgements in a row without a better one; 0 never stops. There is one
    after each --eval-steps, or after each epoch where these are 0."""
    folds: int = 0
    """Besides, train one more model for each fold of the prompts on all the others and let it
    score that one: margins that no model was trained on, in cross_fitted.jsonl; 0 leaves it."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("label_smoothing", self.label_smoothing, 0, 0.5, below=True)
        in_range("margin_weight", self.margin_weight, 0)
        in_range("center_rewards_coefficient", self.center_rewards_coefficient, 0)
        in_range("validation_share", self.validation_share, 0, 1, below=True)
        in_range("patience", self.patience, 0)
        in_range("folds", self.folds, 0)
        if self.folds == 1:
            raise ValueError("folds must be 0, or 2 and more: one is trained on none; found 1")
        if self.data.truncation_mode == "keep_start":
            raise ValueError(
                "truncation_mode must be drop or keep_end, as a reward is read at an answer's end;"
                " found keep_start, which cuts it off"
            )
        if self.loop.kl_budget:
            raise ValueError(
                "kl_budget is for models that answer, which a reward model does not; leave it out;"
                f" found {self.loop.kl_budget:g}"
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


def plan(config: Config) -> RewardPlan[RewardModel]:
    """Return what the stage needs to know."""
    from melior.stages.reward_models.kinds import scalar
    from melior.stages.reward_models.train import RewardPlan

    kind = scalar(
        margin_weight=config.margin_weight,
        label_smoothing=config.label_smoothing,
        center_rewards_coefficient=config.center_rewards_coefficient,
    )
    return RewardPlan(
        "train-reward", PAPER, kind, config.validation_share, config.patience,
        config.model, config.data, config.optim, config.loop, config,
    )  # fmt: skip


def run(config: Config) -> None:
    """Train, judge, save and report."""
    check_inputs(config.model, config.data, config.loop)
    needs = "a language model, or a reward model of one number"
    refuse_kinds(config.model.model, SEVERAL, needs=needs, way_out=ORIGINAL)
    from melior.report.terminal import present
    from melior.stages.reward_models.folds import cross_fit, in_folds
    from melior.stages.reward_models.train import train_reward

    if config.folds:
        in_folds(config.data, config.loop, config.folds)  # too many are refused at once
    folder = train_reward(plan(config))
    if config.folds:
        cross_fit(
            lambda data, loop: plan(replace(config, data=data, loop=loop, folds=0)),
            config.model, config.data, config.loop, folds=config.folds,
        )  # fmt: skip
    present([folder])
