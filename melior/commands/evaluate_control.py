"""`melior evaluate control`: policies in the real task, as normalised scores with intervals."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from melior.options import in_range

if TYPE_CHECKING:
    from melior.data.control_files import About

RunFolders = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]


@dataclass(frozen=True)
class Config:
    """Judge the policies of runs in the real task; runs that differ by their seed are one method's.

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
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])] = ""
    """A file for the numbers, as JSON."""

    def __post_init__(self) -> None:
        """Check the ranges, and that there is something to judge."""
        in_range("episodes", self.episodes, 1)
        in_range("seed", self.seed, 0, 2**31)
        if not self.runs:
            raise ValueError("evaluate control: at least one run folder is needed; found none")


def run(config: Config) -> None:
    """Judge each run, then the runs of each recipe together, and print both."""
    from melior.training.run import write_json

    rows = [_judged(Path(folder), config) for folder in config.runs]
    together = _together(rows)
    for line in _lines(rows, together):
        print(line)
    if config.out:
        for row in rows:
            del row["found"]
        write_json(Path(config.out), {"runs": rows, "together": together})


def _judged(folder: Path, config: Config) -> dict[str, Any]:
    from melior.envs.control import returns
    from melior.evaluation.compare import t_interval
    from melior.evaluation.control import normalised
    from melior.models.control_policies import load_policy

    about = _about(folder, config)
    policy = load_policy(folder / "model" / "policy")
    found = returns(about.task, policy.act, episodes=config.episodes, seed=config.seed)
    row: dict[str, Any] = {
        "run": str(folder), "recipe": _recipe(folder), "task": about.task,
        "episodes": config.episodes, "return": vars(t_interval(found, name="returns")),
        "found": found, "reference": about.reference and vars(about.reference),
    }  # fmt: skip
    if about.reference:
        scores = normalised(found, about.reference)
        row["score"] = vars(t_interval(scores, name="scores"))
    return row


def _about(folder: Path, config: Config) -> About:
    from melior.data.control_files import About, read_logged
    from melior.stages.control.inputs import read_about

    about = read_about(folder)
    reference = about.reference
    if config.dataset:
        reference = read_logged(config.dataset).about.reference
    task = config.task or about.task
    if not task:
        raise ValueError(f"{folder}: the task to judge in is needed; found none; give --task")
    return About(task, reference)


def _recipe(folder: Path) -> str:
    try:
        return str(json.loads((folder / "run.json").read_text(encoding="utf-8"))["recipe"])
    except (OSError, ValueError, KeyError, TypeError):
        return "unknown"


def _together(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean score of each recipe over its runs, where it has several."""
    from melior.data.control_files import Reference
    from melior.evaluation.control import score_of_seeds

    found: dict[str, Any] = {}
    for name in dict.fromkeys((row["recipe"], row["task"]) for row in rows):
        own = [row for row in rows if (row["recipe"], row["task"]) == name and "score" in row]
        references = {tuple(row["reference"].values()) for row in own}
        if len(own) > 1 and len(references) == 1:
            reference = Reference(*references.pop())
            interval = score_of_seeds([row["found"] for row in own], reference)
            found[f"{name[0]} in {name[1]}"] = vars(interval)
    return found


def _lines(rows: Sequence[dict[str, Any]], together: dict[str, Any]) -> list[str]:
    lines = []
    for row in rows:
        said = [f"return {_said(row['return'])}"]
        said.insert(0, f"score {_said(row['score'])}" if "score" in row else
                    "no score: the data set names no references; give --dataset")  # fmt: skip
        lines.append(f"{row['run']} ({row['recipe']}, {row['task']}): {'; '.join(said)}, over "
                     f"{row['episodes']} episodes")  # fmt: skip
    for name, interval in together.items():
        lines.append(f"{name}: score {_said(interval)}, over {interval['n']} runs")
    return lines


def _said(interval: dict[str, Any]) -> str:
    estimate, low, high = (interval[key] for key in ("estimate", "low", "high"))
    if low is None:
        return f"{estimate:.4g}"
    return f"{estimate:.4g} ({low:.4g} to {high:.4g})"
