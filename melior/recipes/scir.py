"""SCIR: the model judges itself in two ways and learns from pairs on which it agrees with itself.

Zhou et al. 2025, arXiv 2502.08922. The paper's full text was not at hand; docs/scir.md says which
parts are ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.stages.inputs import check_inputs
from melior.stages.scir_options import ConsistencyOptions

PAPER = "Zhou et al. 2025, arXiv 2502.08922"


@dataclass(frozen=True)
class Config:
    """Learn from pairs on which a model's own judges agree, held to labelled ones."""

    model: ModelOptions
    data: DataOptions
    """The labelled pairs."""
    loop: LoopOptions
    unlabelled: tuple[str, ...]
    """Unlabelled pairs; which answer their rows call chosen is not read. Sources as in `--data`."""
    consistency: ConsistencyOptions = ConsistencyOptions()
    optim: OptimConfig = OptimConfig(learning_rate=1e-6)

    def __post_init__(self) -> None:
        """Check what only the whole can tell."""
        if self.model.lora_dropout:
            raise ValueError(
                "lora_dropout must be 0, so that judge, policy and reference are one model; found"
                f" {self.model.lora_dropout:g}"
            )
        if not self.unlabelled:
            raise ValueError("unlabelled: at least one source of pairs is needed; found none")

    @classmethod
    def tiny(cls, model: str, data: str, out: str) -> Config:
        """Return a config that runs in seconds on a tiny model."""
        return cls(
            ModelOptions(model=model, dtype="fp32"),
            DataOptions(data=(data,), n_samples=2),
            LoopOptions(out=out, epochs=2, batch_size=8, save_steps=2, max_tokens=8192),
            unlabelled=(data,),
            optim=OptimConfig(learning_rate=1e-2),
        )


def run(config: Config) -> None:
    """Ask, choose, learn, judge and report."""
    check_inputs(config.model, config.data, config.loop)
    check_pairs(config)
    from melior.report.terminal import present
    from melior.stages.scir import ConsistencyPlan, learn_consistently

    plan = ConsistencyPlan(
        "scir", PAPER, config.consistency, config.unlabelled, config.model, config.data,
        config.optim, config.loop, config,
    )  # fmt: skip
    present([learn_consistently(plan)])


def check_pairs(config: Config) -> None:
    """Look at the first row of each source of unlabelled pairs.

    Raises:
        FileNotFoundError: a source is not there.
        ValueError: it is empty, or its first row is no pair.
    """
    from melior.data.files import read_pairs

    for source in config.unlabelled:
        if next(read_pairs([source]), None) is None:
            raise ValueError(f"{source}: needs at least one pair; found no row")
