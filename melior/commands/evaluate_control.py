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

APART = frozenset({"out", "report_to", "save_steps", "save_total_limit", "seed", "world"})
"""Options in which repetitions of one method may differ."""


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
            del row["found"], row["method"]
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
        "method": _method(folder), "found": found,
        "reference": about.reference and vars(about.reference),
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


def _method(folder: Path) -> str:
    """Return all options of a run but those that tell repetitions of one method apart."""
    from melior.config import read_config

    options = read_config(folder / "config.yaml")
    told = {name: value for name, value in options.items() if name not in APART}
    return json.dumps([_recipe(folder), told], sort_keys=True)


def _together(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean score of each method over its runs, where it has several."""
    from melior.data.control_files import Reference
    from melior.evaluation.control import score_of_seeds

    found: dict[str, Any] = {}
    scored = [row for row in rows if "score" in row]
    for method in dict.fromkeys(row["method"] for row in scored):
        own = [row for row in scored if row["method"] == method]
        if len(own) > 1:
            reference = Reference(**own[0]["reference"])
            interval = score_of_seeds([row["found"] for row in own], reference)
            runs = ", ".join(row["run"] for row in own)
            found[f"{own[0]['recipe']} in {own[0]['task']}, {runs}"] = vars(interval)
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
