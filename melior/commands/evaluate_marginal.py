"""`melior evaluate marginal`: how right what is said at one reading is, and what it saves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from melior.options import in_range
from melior.stages.marginals.options import MarginalOptions


@dataclass(frozen=True)
class Config:
    """Hold marginals at one reading against the truth, or against several orders of reading."""

    model: str
    """A folder that `melior mam` left, such as `runs/a/model`."""
    source: MarginalOptions
    n_queries: int = 200
    """Parts of rows that are asked for."""
    orders: int = 5
    """Of the conditionals, taken together as the reference where the truth is not known."""
    seed: int = 0
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])] = ""
    """A JSON file of all numbers; by default they are only printed."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("n_queries", self.n_queries, 3)
        in_range("orders", self.orders, 1)
        in_range("seed", self.seed, 0, 2**63 - 1)
        if self.out and Path(self.out).exists() and not Path(self.out).is_file():
            raise ValueError(f"out: a file is needed; found a folder: {self.out}")


def run(config: Config) -> None:
    """Ask, compare, time and print."""
    from melior.models.marginal_saved import load_marginals
    from melior.report.terminal import print_facts
    from melior.stages.marginals.judge import Exam, verdict
    from melior.stages.marginals.world import load_examined
    from melior.training.run import write_json

    found = load_marginals(Path(config.model))
    world = load_examined(config.source, found)
    exam = Exam.of(
        found, world, n_queries=config.n_queries, n_orders=config.orders, seed=config.seed
    )
    said = verdict(found, exam)
    if config.out:
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        write_json(Path(config.out), said)
    print_facts(said["title"], said["facts"])
