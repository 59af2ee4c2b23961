"""`melior collect control`: data sets of a task of Gymnasium, by a learner of our own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from melior.checks import in_range

KINDS = ("random", "medium", "medium-replay", "expert", "medium-expert")


@dataclass(frozen=True)
class Config:
    """Teach a policy in a task, and log what it does: five data sets, from random to expert."""

    task: str
    """As Gymnasium names it: `Pendulum-v1`, `Hopper-v5`, or `module:Name-v0`."""
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])]
    """The folder for the data sets."""
    rows: int = 10_000
    """Transitions of each; medium-replay has as many as were lived until the policy was medium."""
    steps: int = 10_000
    """Steps in the task from which soft actor-critic learns; the best of its judgements is the
    expert."""
    random_steps: int = 1000
    """Of them, those with actions drawn evenly, before anything is learned."""
    judge_every: int = 500
    """Steps between judgements, of which one becomes the medium policy."""
    level: float = 0.33
    """Share of the way from random to expert at which a policy is medium; D4RL's third."""
    copies: int = 4
    """Of the task, lived side by side."""
    hidden: int = 256
    """Of policy and critics, in two layers."""
    learning_rate: float = 1e-3
    kind: Literal["npz", "parquet"] = "npz"
    resume: bool = False
    """Go on from the last judgement."""
    overwrite: bool = False
    """Replace data sets that the folder holds."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the ranges and the folder."""
        for name in ("rows", "steps", "judge_every", "copies", "hidden"):
            in_range(name, getattr(self, name), 1)
        in_range("rows", self.rows, 2 * self.copies)
        in_range("steps", self.steps, 2 * self.copies)
        in_range("random_steps", self.random_steps, self.copies, self.steps - self.copies)
        in_range("level", self.level, 0, 1, above=True)
        in_range("learning_rate", self.learning_rate, 0, above=True)
        in_range("seed", self.seed, 0, 2**20)
        place = Path(self.out)
        if place.exists() and not place.is_dir():
            raise ValueError(f"out: a folder is needed; found a file: {place}")
        there = [kind for kind in KINDS if (place / f"{kind}.{self.kind}").exists()]
        if there and not (self.overwrite or self.resume):
            raise ValueError(
                f"{place}: a folder without {', '.join(there)} is needed; found them; replace "
                "them by --overwrite, go on by --resume, or choose another folder"
            )


def run(config: Config) -> None:
    """Learn, collect, and report what each data set holds."""
    from melior.report.terminal import present
    from melior.stages.control.collect import CollectPlan, collected
    from melior.stages.control.online import OnlineOptions, n_learned
    from melior.training.options import StepOptions

    online = OnlineOptions(
        config.steps, config.random_steps, config.copies, hidden=config.hidden,
        learning_rate=config.learning_rate,
    )  # fmt: skip
    loop = StepOptions(
        config.out, n_learned(online), online.batch_size, config.judge_every, config.judge_every,
        seed=config.seed, resume=config.resume, overwrite=config.overwrite,
    )  # fmt: skip
    plan = CollectPlan(
        config.task, online, config.rows, config.level, f".{config.kind}", loop, config
    )
    folder = collected(plan)
    said = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["tables"][0]
    for kind, rows, episodes, mean, score in said["rows"]:
        print(
            f"{kind:>14}  {rows:>7} rows  {episodes:>5} whole episodes  return {mean:>9.5g}  "
            f"score {score:>6.1f}"
        )
    present([folder])
