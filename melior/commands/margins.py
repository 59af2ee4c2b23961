"""`melior margins`: store with each pair what a reward model says of its two answers."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from melior.checks import in_range
from melior.records import Metrics
from melior.stages.reward_models.margins import (
    fitted_temperature,
    metrics,
    rewards,
    spread,
    write_margins,
)

if TYPE_CHECKING:
    from melior.rewards.scalar import ScalarScorer


@dataclass(frozen=True)
class Config:
    """Store a reward model's margins with the pairs, and say how they are spread."""

    file: tyro.conf.Positional[str]
    """Pairs: a file, a folder or a `datasets` name; `name[:split[:rows]][*weight]`."""
    reward_model: str
    """A folder such as `runs/rm/model`, or a name such as `org/model`."""
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])] = "-"
    """Where the pairs go, with `margin`, `reward_chosen`, `reward_rejected` and `reward_model`."""
    calibrate: str = ""
    """Pairs that the reward model was not trained on: rewards are divided by the temperature that
    makes its preferences most likely on them."""
    temperature: float = 1.0
    """Rewards are divided by it, where it is known: `melior evaluate reward` finds it, too."""
    dtype: Literal["bf16", "fp32"] = "bf16"
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `mps`, ..."""
    padded: bool = False
    """Compute each answer in a row of its own, for a model that does not fit shared prompts."""
    max_tokens: int = 4096
    """Tokens computed at once; a prompt counts once for both answers."""
    max_length: int = 0
    """Tokens of prompt and answer that are read, the last ones; 0 is all that the model can."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("temperature", self.temperature, 0, above=True)
        if self.calibrate and self.temperature != 1:
            raise ValueError(
                "--calibrate finds the temperature: give it or --temperature; found both"
            )
        in_range("max_tokens", self.max_tokens, 16)
        in_range("max_length", self.max_length, 0)


def run(config: Config) -> Metrics:
    """Score, calibrate, write; say on standard error how the margins are spread."""
    from melior.data.files import read_pairs
    from melior.models.names import SEVERAL, refuse_kinds

    refuse_kinds(
        config.reward_model, SEVERAL, needs="a reward model of one number",
        way_out="melior score --with reads it",
    )  # fmt: skip
    for source in filter(None, (config.file, config.calibrate)):
        if next(read_pairs(source), None) is None:
            raise ValueError(f"{source}: needs at least one pair; found no row")
    from melior.options import ModelOptions
    from melior.rewards.scalar import load_scorer
    from melior.training.hooks import counted

    options = ModelOptions(
        model=config.reward_model, dtype=config.dtype, device=config.device, padded=config.padded
    )
    scorer = load_scorer(options, max_tokens=config.max_tokens, max_length=config.max_length)
    temperature = config.temperature
    if config.calibrate:
        temperature = _temperature(config.calibrate, scorer)
    with counted("scoring pairs") as progress:
        margins = write_margins(
            config.out, read_pairs(config.file), scorer, config.reward_model,
            temperature=temperature, on_progress=progress,
        )  # fmt: skip
    for line in [*scorer.remarks(), *spread(margins)]:
        print(line, file=sys.stderr)
    return metrics(margins) | {"margins/temperature": temperature}


def _temperature(source: str, scorer: ScalarScorer) -> float:
    """Fit the temperature on pairs held out, and say what it changed."""
    from melior.data.examples import agreed
    from melior.data.files import read_pairs

    pairs = map(agreed, read_pairs(source))
    margins = [chosen - rejected for _, chosen, rejected in rewards(scorer, pairs)]
    temperature, said = fitted_temperature(margins)
    print(said, file=sys.stderr)
    return temperature
