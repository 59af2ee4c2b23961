"""ArmoRM: ratings by several objectives, made independent of length, mixed as the prompt asks.

Wang, Xiong, Xie, Zhao, Zhang 2024, arXiv 2406.12845. The model stays as it is: a regression on its
last hidden states gives the ratings, and a small gate, which sees only the prompt, their weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from melior.checks import in_range
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.stages.inputs import check_inputs

if TYPE_CHECKING:
    from melior.stages.ratings.aspects import AspectPlan

PAPER = "Wang, Xiong, Xie, Zhao, Zhang 2024, arXiv 2406.12845"


@dataclass(frozen=True)
class RatingOptions:
    """The ratings, and what is taken off them."""

    ratings: tuple[str, ...]
    """Rated answers: HelpSteer's or UltraFeedback's files, groups with `aspects`, or `messages` and
    a column for each objective; each `[NAME=]path[:split[:rows]]`."""
    reference: tuple[str, ...] = ()
    """Answers on which is measured what objectives share with verbosity; none takes the pairs that
    are trained on."""
    scales: tuple[str, ...] = ()
    """`NAME=LOW:HIGH` of objectives whose ratings do not show it."""
    verbosity: str = "auto"
    """The objective that others are to share nothing with: its name, `auto` for the one that ends
    in `verbosity`, or `none`."""
    target_correlation: float = 0.03
    """The highest correlation with it that may be left."""
    correlation: Literal["spearman", "pearson"] = "spearman"

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("target_correlation", self.target_correlation, -1, 1)
        if "-" in (*self.ratings, *self.reference):
            raise ValueError("ratings must lie in files, as they are hashed; found - (stdin)")


@dataclass(frozen=True)
class MixerOptions:
    """The gate; the defaults are of the authors' released code."""

    gate_hidden: int = 1024
    gate_layers: int = 3
    gate_dropout: float = 0.2
    gate_temperature: float = 10.0
    """Logits are divided by it."""
    logit_scale: float = 1.0
    """What the weights add up to before training, which learns it."""
    drop_null: bool = True
    """Give no weight to verbosity, whose reward is always 0 once it is taken off."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("gate_hidden", self.gate_hidden, 1)
        in_range("gate_layers", self.gate_layers, 1)
        in_range("gate_dropout", self.gate_dropout, 0, 0.99)
        in_range("gate_temperature", self.gate_temperature, 1e-6)
        in_range("logit_scale", self.logit_scale, 1e-6)


@dataclass(frozen=True)
class GateLoop:
    """How long the gate is trained, and what the run leaves behind."""

    out: Annotated[str, tyro.conf.arg(aliases=["--output-dir"])]
    """The run folder."""
    steps: Annotated[int, tyro.conf.arg(aliases=["--max-steps"])] = 2000
    batch_size: int = 1024
    """Pairs a step, drawn with replacement."""
    validation_share: float = 0.2
    """Share of the pairs' prompts held out to choose the best step where no --eval-data is given; 0
    trains on all and keeps the last step."""
    max_tokens: int = 8192
    """Tokens whose features are computed at once; a prompt counts once for all its answers."""
    eval_steps: int = 100
    """Steps between judgements on held-out pairs; 0 judges only before and after."""
    save_steps: int = 500
    """Steps between checkpoints; 0 keeps only the end."""
    save_total_limit: int = 2
    """Checkpoints kept."""
    seed: int = 42
    resume: Annotated[bool, tyro.conf.arg(aliases=["--resume-from-checkpoint"])] = False
    """Go on from the features that are kept, and the newest whole checkpoint, if there is one."""
    allow_changes: bool = False
    """Resume although data or options are not those of the checkpoint."""
    overwrite: bool = False
    """Replace a run folder that already holds a run."""
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = ()
    """Trackers, besides the JSON lines in the run folder."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("steps", self.steps, 1)
        in_range("validation_share", self.validation_share, 0, 1, below=True)
        self.loop()

    def loop(self) -> LoopOptions:
        """Return what of it every run has."""
        return LoopOptions(
            out=self.out, max_steps=self.steps, batch_size=self.batch_size,
            max_tokens=self.max_tokens, eval_steps=self.eval_steps, save_steps=self.save_steps,
            save_total_limit=self.save_total_limit, seed=self.seed, resume=self.resume,
            allow_changes=self.allow_changes, overwrite=self.overwrite, report_to=self.report_to,
        )  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Learn a mixture of rated objectives: ratings for what is said, pairs for how it is mixed."""

    model: ModelOptions
    data: DataOptions
    rated: RatingOptions
    run: GateLoop
    optim: OptimConfig = OptimConfig(learning_rate=1e-3, warmup_ratio=0.0)
    gate: MixerOptions = MixerOptions()

    def __post_init__(self) -> None:
        """Check what the parts are together."""
        if self.model.lora_r:
            raise ValueError(
                "lora_r must be 0, as the model itself is not trained; found"
                f" {self.model.lora_r}; give a model that was: melior train-reward"
            )
        if self.data.truncation_mode == "keep_start":
            raise ValueError(
                "truncation_mode must be drop or keep_end, as a reward is read at an answer's end;"
                " found keep_start, which cuts it off"
            )

    @classmethod
    def tiny(cls, model: str, ratings: str, pairs: str, out: str) -> Config:
        """Return a config that runs in seconds on a tiny model."""
        return cls(
            ModelOptions(model=model, dtype="fp32"),
            DataOptions(data=(pairs,), n_samples=2),
            RatingOptions(ratings=(ratings,)),
            GateLoop(out=out, steps=40, batch_size=32, eval_steps=10, save_steps=10),
            OptimConfig(learning_rate=3e-3, warmup_ratio=0.0),
            MixerOptions(gate_hidden=16, gate_layers=1, logit_scale=30.0),
        )


def plan(config: Config) -> AspectPlan:
    """Return what the stage needs to know."""
    from melior.correlation import pearson, spearman
    from melior.stages.ratings.aspects import AspectPlan, GatePlan

    own, gate = config.rated, config.gate
    return AspectPlan(
        "armorm", PAPER, own.ratings, own.reference, own.scales, own.verbosity,
        own.target_correlation, {"spearman": spearman, "pearson": pearson}[own.correlation],
        GatePlan(gate.gate_hidden, gate.gate_layers, gate.gate_dropout, gate.gate_temperature,
                 gate.logit_scale, gate.drop_null),
        config.run.validation_share, config.model, config.data, config.optim, config.run.loop(),
        config,
    )  # fmt: skip


def run(config: Config) -> None:
    """Read, compute features, fit, train the gate, judge, save and report."""
    check_inputs(config.model, config.data, config.run.loop())
    _look(config)
    from melior.report.terminal import present
    from melior.stages.ratings.aspects import train_aspects

    present([train_aspects(plan(config))])


def _look(config: Config) -> None:
    """Look at the model's kind and at the first rated answers: what is wrong is said at once."""
    from melior.data.aspects import named, parse_ranges, read_rated
    from melior.data.sources import parse_source
    from melior.models.names import ORIGINAL, SEVERAL, refuse_kinds

    needs = "a language model, or a reward model of one number"
    refuse_kinds(config.model.model, SEVERAL, needs=needs, way_out=ORIGINAL)
    parse_ranges(config.rated.scales)
    for source in (*config.rated.ratings, *config.rated.reference):
        parse_source(named(source)[1])
    for source in config.rated.ratings:
        if next(read_rated([source]), None) is None:
            raise ValueError(f"{source}: needs at least one rated answer; found no row")
