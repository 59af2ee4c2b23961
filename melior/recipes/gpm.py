"""GPM: a reward model of preferences that may go in circles, at one reading of each answer.

Zhang, Zhang, Wu, Xu, Gu 2024, arXiv 2410.02197: an answer becomes a point in a few planes, and what
two points span says by how much the one beats the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from melior.checks import in_range
from melior.models.names import ORIGINAL, refuse_kinds
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.stages.inputs import check_inputs

if TYPE_CHECKING:
    from melior.data.batches import GroupBatch
    from melior.data.duels import Duels
    from melior.models.general import GeneralModel
    from melior.stages.reward_models.kinds import Judged, Kind
    from melior.stages.reward_models.train import RewardPlan

PAPER = "Zhang, Zhang, Wu, Xu, Gu 2024, arXiv 2410.02197"
COOLING = 0.5
"""Share of the steps over which beta falls from where it begins."""


@dataclass(frozen=True)
class Config:
    """Train a reward model of preferences that may go in circles, on pairs or scored lists."""

    model: ModelOptions
    data: DataOptions
    loop: LoopOptions
    optim: OptimConfig = OptimConfig(learning_rate=2e-6, warmup_ratio=0.03, adam_beta2=0.95)
    dimensions: int = 6
    """Of an answer's embedding, two to a plane: 2 can only say one circle, 6 and 8 are the
    paper's."""
    l2: bool = True
    """Give embeddings the length 1."""
    gate: Literal["mean-one", "sum-one", "none"] = "mean-one"
    """How the prompt scales the planes: to a mean of 1, to a sum of 1 as in the released models, or
    not at all."""
    beta: float = 0.1
    """Temperature: `sigmoid(s / beta)` is the chance to win."""
    beta_start: float = 0.0
    """Where beta begins, to fall over the first half of the steps; 0 begins at its value, but at 1
    for 2 dimensions of length 1, which else may stay at the wrong way round a circle."""
    margin: float = 0.0
    """By how much the better answer is asked to win, before the division by beta; nothing is asked
    of a tie."""
    validation_share: float = 0.1
    """Share of the prompts held out to choose the best checkpoint where no --eval-data is given;
    0 trains on all and keeps the last step."""
    patience: int = 3
    """Stop after so many judgements in a row without a better one; 0 never stops. There is one
    after each --eval-steps, or after each epoch where these are 0."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("dimensions", self.dimensions, 2)
        if self.dimensions % 2:
            raise ValueError(
                f"dimensions must be even, two to a plane; found {self.dimensions}; take"
                f" {self.dimensions + 1}"
            )
        in_range("beta", self.beta, 0, above=True)
        in_range("beta_start", self.beta_start, 0)
        in_range("margin", self.margin, 0)
        in_range("validation_share", self.validation_share, 0, 1, below=True)
        in_range("patience", self.patience, 0)
        if self.data.truncation_mode == "keep_start":
            raise ValueError(
                "truncation_mode must be drop or keep_end, as an answer is read at its end; found"
                " keep_start, which cuts it off"
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

    @property
    def is_on_a_circle(self) -> bool:
        """Whether embeddings lie on one circle, round which training can wind the wrong way."""
        return self.dimensions == 2 and self.l2

    def beta_at(self, progress: float) -> float:
        """Return beta after a share of the steps: it falls by equal factors."""
        first = self.beta_start or (max(1.0, self.beta) if self.is_on_a_circle else self.beta)
        return float(self.beta * (first / self.beta) ** max(0.0, 1 - progress / COOLING))


def plan(config: Config) -> RewardPlan[GeneralModel]:
    """Return what the stage needs to know."""
    from melior.stages.reward_models.train import RewardPlan

    return RewardPlan(
        "gpm", PAPER, kind(config), config.validation_share, config.patience,
        config.model, config.data, config.optim, config.loop, config,
    )  # fmt: skip


def kind(config: Config) -> Kind[GeneralModel]:
    """Return the kind of reward model that embeds answers."""
    from melior.models.general import Geometry, start_general_model
    from melior.stages.reward_models.kinds import Kind

    geometry = Geometry(config.dimensions, config.l2, config.beta)
    return Kind(
        lambda options, seed: start_general_model(options, geometry, config.gate, seed=seed),
        lambda model: model.reward.is_fresh,
        lambda model, batch, pairs: _judged(config, model, batch, pairs),
        lambda model, folder: model.save(folder),
        data="comparisons",
        tolerated=frozenset({"contradictions"}),  # such pairs pull a score to 0, which it may be
        notes=lambda: _notes(config),
    )


def _judged(config: Config, model: GeneralModel, batch: GroupBatch, pairs: Duels) -> Judged:
    """Say by how much the better answers of a batch beat the others; all answers are read once."""
    from melior.losses.general import general_preference, skew_score
    from melior.stages.reward_models.kinds import Judged

    vectors, gate = model.embed(batch.forest, batch.prompts)
    score = skew_score(vectors[pairs.better], vectors[pairs.worse], gate[pairs.groups])
    beta = config.beta_at(batch.progress)
    losses = general_preference(score, pairs.shares.to(score), beta=beta, margin=config.margin)
    return Judged(losses, score / config.beta, {"gate": gate.flatten(), "score": score.abs()})


def _notes(config: Config) -> tuple[str, ...]:
    if not config.is_on_a_circle:
        return ()
    said = "2 dimensions of length 1 are one circle, round which training can wind the wrong way"
    first = config.beta_at(0)
    if first > config.beta:
        said += f", so beta falls from {first:g} to {config.beta:g} over the first half"
    return (f"{said}; 4 dimensions or more are safer",)


def run(config: Config) -> None:
    """Train, judge, save and report."""
    check_inputs(config.model, config.data, config.loop, holds="comparisons")
    needs = "a language model, or what melior gpm saved"
    refuse_kinds(config.model.model, ["aspects"], needs=needs, way_out=ORIGINAL)
    from melior.report.terminal import present
    from melior.stages.reward_models.train import train_reward

    present([train_reward(plan(config))])
