"""`melior evaluate control`: policies in the real task, as normalised scores with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from melior.checks import in_range

if TYPE_CHECKING:
    from melior.stages.control.scored import Judged, Method

RunFolders = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]


@dataclass(frozen=True)
class Config:
    """Judge the policies of runs in the real task; those that differ by their seed are one method.

    The score is D4RL's: 0 for random actions, 100 for the data set's expert.
    """

    runs: RunFolders
    """Folders that `morec`, `cloning`, `td3-bc` or `cql` wrote with --out."""
    episodes: int = 100
    task: str = ""
    """Another task than the one that the runs name."""
    dataset: str = ""
    """A data set whose references are used, where the runs' own had none."""
    seed: int = 7_000_000
    """Of the first episode; the others count up from it."""
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])] = "evaluated"
    """The folder for the numbers and the page."""

    def __post_init__(self) -> None:
        """Check the ranges, that there is something to judge, and the folder."""
        in_range("episodes", self.episodes, 1)
        in_range("seed", self.seed, 0, 2**31)
        if not self.runs:
            raise ValueError("at least one run folder is needed; found none")
        places = [Path(run).resolve() for run in self.runs]
        twice = [run for run, place in zip(self.runs, places, strict=True)
                 if places.count(place) > 1]  # fmt: skip
        if twice:
            raise ValueError(f"each run is needed once; found {' and '.join(twice)}")
        if Path(self.out).exists() and not Path(self.out).is_dir():
            raise ValueError(f"out: a folder is needed; found a file: {self.out}")
        if (Path(self.out) / "run.json").exists():
            raise ValueError(f"out: a folder without a run is needed; found one: {self.out}")


def run(config: Config) -> Path:
    """Judge each run, put repetitions together, print both, and draw them."""
    from melior.report.returns import lines, write_returns
    from melior.stages.control.scored import judged, methods
    from melior.training.run import write_json

    found = [
        judged(Path(folder), episodes=config.episodes, seed=config.seed, task=config.task,
               dataset=config.dataset)
        for folder in config.runs
    ]  # fmt: skip
    together = methods(found)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "evaluation.json", _numbers(found, together))
    for line in lines(together):
        print(line)
    return write_returns(out / "report.html", together)


def _numbers(found: Sequence[Judged], together: Sequence[Method]) -> dict[str, Any]:
    """Return what was measured, as JSON can hold it."""
    from melior.evaluation.compare import t_interval

    runs = [
        {
            "run": one.run, "recipe": one.recipe, "task": one.task, "seed": one.seed,
            "true_reward": one.true_reward, "reference": one.reference and vars(one.reference),
            "return": vars(t_interval(one.returns)), "returns": one.returns.tolist(),
            "score": None if one.scores is None else vars(t_interval(one.scores)),
        }
        for one in found
    ]  # fmt: skip
    methods = [
        {
            "name": one.name, "runs": [run.run for run in one.runs], "left_out": one.left_out,
            "worlds": one.worlds, "return": vars(one.mean), "score": one.score and vars(one.score),
        }
        for one in together
    ]  # fmt: skip
    return {"runs": runs, "methods": methods}
