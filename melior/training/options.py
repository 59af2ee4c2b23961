"""Options of runs that make their data on the way, checked when built; no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from melior.checks import in_range


@dataclass(frozen=True)
class StepOptions:
    """How many steps to take, and what to leave behind, where data are made on the way."""

    out: Annotated[str, tyro.conf.arg(aliases=["--output-dir"])]
    """The run folder."""
    steps: Annotated[int, tyro.conf.arg(aliases=["--max-steps"])] = 2000
    """Optimizer steps."""
    batch_size: int = 32
    """Rows drawn for each step."""
    eval_steps: int = 200
    """Steps between judgements; 0 judges only before and after."""
    save_steps: int = 200
    """Steps between checkpoints; 0 keeps only the end."""
    save_total_limit: int = 2
    """Checkpoints kept."""
    seed: int = 42
    resume: Annotated[bool, tyro.conf.arg(aliases=["--resume-from-checkpoint"])] = False
    """Go on from the newest whole checkpoint in the run folder."""
    allow_changes: bool = False
    """Resume although options are not those of the checkpoint."""
    overwrite: bool = False
    """Replace a run folder that already holds a run."""
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = field(default=())
    """Trackers, besides the JSON lines in the run folder."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("steps", self.steps, 0)
        in_range("batch_size", self.batch_size, 1)
        in_range("eval_steps", self.eval_steps, 0)
        in_range("save_steps", self.save_steps, 0)
        in_range("save_total_limit", self.save_total_limit, 1)
        in_range("seed", self.seed, 0, 2**63 - 1)
