"""`melior reproduce`: a paper's central claim in a small world, claimed and measured."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated

import tyro

from melior.checks import in_range, one_of

CLAIMS = (
    "simpo",
    "tpo",
    "madpo",
    "reward-augmented",
    "armorm",
    "gpm",
    "gpo",
    "rlhf-workflow",
    "scir",
    "morec",
    "ocgfn",
    "mam",
)


@dataclass(frozen=True)
class Config:
    """Try a paper's central claim in a small world: thresholds first, then the measure."""

    name: tyro.conf.Positional[str]
    """`simpo`, `tpo`, `madpo`, `reward-augmented`, `armorm`, `gpm`, `gpo`,
    `rlhf-workflow`, `scir`, `morec`, `ocgfn` or `mam`."""
    seeds: int = 5
    """How many worlds are drawn; each rule is judged over all of them."""
    first_seed: int = 100
    """The seeds count up from here; the thresholds were set on seeds from 0."""
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])] = ""
    """A folder for the page and its pictures; by default the verdict is only printed."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        one_of("name", self.name, CLAIMS)
        in_range("seeds", self.seeds, 1, 1000)
        in_range("first_seed", self.first_seed, 0, 2**31)
        if self.out and Path(self.out).exists() and not Path(self.out).is_dir():
            raise ValueError(f"out: a folder is needed; found a file: {self.out}")


def run(config: Config) -> Path | None:
    """Measure, print claimed and measured, and write the page where one is asked for."""
    from melior.claims.claim import reproduce
    from melior.report.claims import lines, write_page

    claim = import_module(f"melior.claims.{config.name.replace('-', '_')}").CLAIM
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    outcome = reproduce(claim, seeds)
    for line in lines(outcome):
        print(line, flush=True)
    return write_page(outcome, Path(config.out)) if config.out else None
