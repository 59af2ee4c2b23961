"""`melior evaluate marginal`: how right what is said at one reading is, and what it saves."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from melior.checks import in_range, not_read
from melior.stages.marginals.options import PAPER, MarginalOptions


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
    """A folder for all numbers and the report with its pictures; by default the numbers are only
    printed."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.source.data:
            not_read(self.source, ("length", "tokens"), "beside --data, as the network knows it")
        in_range("n_queries", self.n_queries, 3)
        in_range("orders", self.orders, 1)
        in_range("seed", self.seed, 0, 2**63 - 1)
        if self.out and Path(self.out).exists() and not Path(self.out).is_dir():
            raise ValueError(f"out: a folder is needed; found a file: {self.out}")
        if self.out and (Path(self.out) / "run.json").exists():
            raise ValueError(f"out: a folder without a run is needed; found one: {self.out}")


def run(config: Config) -> None:
    """Ask, compare, time and print; with `--out` also leave a report."""
    from melior.models.marginal_saved import load_marginals
    from melior.report.terminal import present, print_facts
    from melior.stages.marginals.judge import Exam, verdict
    from melior.stages.marginals.world import load_examined
    from melior.training.run import Run, write_json

    found = load_marginals(Path(config.model))
    world = load_examined(config.source, found)
    exam = Exam.of(
        found, world, n_queries=config.n_queries, n_orders=config.orders, seed=config.seed
    )
    said = verdict(found, exam)
    print_facts(said["title"], said["facts"])
    if config.out:
        with Run.create(config.out, "evaluate marginal", config, sys.argv, paper=PAPER) as kept:
            write_json(kept.folder / "evaluation.json", said)
        present([kept.folder])
