"""Policies of runs in the real task, side by side: which are repetitions of one method, and scores.

Runs repeat a method where they differ by their seed and by nothing that it learns from. A world
that a run takes over is held to the same: its options are in the run's config. Runs that share a
world are counted, and it is said that they do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from melior.config import read_config
from melior.data.control_files import About, Reference, read_logged
from melior.envs.control import returns, sizes, unversioned
from melior.evaluation.compare import Interval, t_interval
from melior.evaluation.control import normalised, score_of_seeds
from melior.models.control_policies import load_policy
from melior.stages.control.inputs import read_about
from melior.stages.control.world import digest_of_world
from melior.training.checkpoint import FREE

APART = FREE | {"dataset", "eval_episodes", "seed", "world"}
"""Options in which repetitions may differ; data are compared as such."""

_LONG = 36
"""Letters of a name that fit beside a picture."""


@dataclass(frozen=True, eq=False)
class Judged:
    """The policy of a run, and what it reached."""

    run: str
    recipe: str
    task: str
    options: Mapping[str, Any]
    """Those in which no repetition differs."""
    sha256: str
    """Of the log."""
    seed: int
    world: str
    """The learned world that it learned in, by its weights; empty for none."""
    true_reward: str
    """The task's own reward, where imagined steps earned that and not a learned one."""
    reference: Reference | None
    returns: Float[np.ndarray, " e"]

    @property
    def scores(self) -> Float[np.ndarray, " e"] | None:
        """Return normalised scores of its episodes, where the references are known."""
        return normalised(self.returns, self.reference) if self.reference else None

    @property
    def method(self) -> str:
        """Return what repetitions share, as a key."""
        reference = self.reference and asdict(self.reference)
        return json.dumps(
            [self.recipe, self.task, self.sha256, reference, self.options], sort_keys=True
        )


@dataclass(frozen=True)
class Method:
    """Runs that differ by their seeds."""

    name: str
    runs: tuple[Judged, ...]
    left_out: tuple[str, ...]
    """Runs of a seed that is counted already."""

    @property
    def score(self) -> Interval | None:
        """Return the mean score with Student's interval over runs."""
        reference = self.runs[0].reference
        return score_of_seeds([run.returns for run in self.runs], reference) if reference else None

    @property
    def mean(self) -> Interval:
        """Return the mean return with Student's interval over runs."""
        return t_interval(np.array([float(run.returns.mean()) for run in self.runs]))

    @property
    def worlds(self) -> str:
        """Say in how many worlds they learned, where they share some."""
        count = len({run.world for run in self.runs if run.world})
        if not count or count == len(self.runs):
            return ""
        return "all in one world" if count == 1 else f"in {count} worlds"


def judged(folder: Path, *, episodes: int, seed: int, task: str = "", dataset: str = "") -> Judged:
    """Let the policy of a run act in the real task.

    Args:
        folder: that a recipe of control has written.
        episodes: how many.
        seed: of the first episode; the others count up from it.
        task: another than the run's own; references of another task are not taken over.
        dataset: a data set whose references are used in place of the run's own.

    Raises:
        ValueError: it is no such folder, or its policy is not one of the task.
    """
    about = _about(folder, task, dataset)
    policy = load_policy(folder / "model" / "policy")
    wanted = sizes(about.task)
    found = policy.options.observations, policy.options.actions
    if wanted != found:
        raise ValueError(
            f"{folder}: a policy of {about.task} must read {wanted[0]} numbers and act by "
            f"{wanted[1]}; found {found[0]} and {found[1]}"
        )
    lived = returns(about.task, policy.act, episodes=episodes, seed=seed)
    options = read_config(folder / "config.yaml")
    recipe = _told(folder / "run.json", "recipe")
    shared = {name: value for name, value in options.items() if name not in APART}
    return Judged(
        str(folder), str(recipe), about.task, shared,
        str(_told(folder / "data.json", "train", "sha256")), int(options.get("seed", 0)),
        digest_of_world(folder), str(options.get("true_reward", "")), about.reference, lived,
    )  # fmt: skip


def methods(found: Sequence[Judged]) -> list[Method]:
    """Put repetitions together, in the order of their first runs; a seed counts once."""
    groups: dict[str, list[Judged]] = {}
    for one in found:
        groups.setdefault(one.method, []).append(one)
    names = _names([own[0] for own in groups.values()])
    made = []
    for name, own in zip(names, groups.values(), strict=True):
        first = {one.seed: one for one in reversed(own)}
        kept = tuple(one for one in own if first[one.seed] is one)
        left = tuple(one.run for one in own if first[one.seed] is not one)
        made.append(Method(name, kept, left))
    return made


def _names(found: Sequence[Judged]) -> list[str]:
    """Name methods by their recipe, and by the options in which those of one recipe differ."""
    names = []
    for one in found:
        others = [other for other in found if other.recipe == one.recipe]
        apart = [
            f"{key.replace('_', ' ')} {value}"
            for key, value in one.options.items()
            if any(other.options.get(key) != value for other in others)
        ]
        name = ", ".join([one.recipe, *apart])
        place = f"{one.recipe} {1 + others.index(one)}" if len(others) > 1 else one.recipe
        names.append(name if len(name) <= _LONG else place)
    counts = [names[: 1 + place].count(name) for place, name in enumerate(names)]
    return [
        f"{name} {count}" if names.count(name) > 1 else name
        for name, count in zip(names, counts, strict=True)
    ]


def _about(folder: Path, task: str, dataset: str) -> About:
    """Return the task to judge in and its references; those of another task are none."""
    own = read_about(folder)
    task = task or own.task
    if not task:
        raise ValueError(f"{folder}: the task to judge in is needed; found none; give --task")
    source = read_logged(dataset).about if dataset else own
    is_same = unversioned(source.task or task) == unversioned(task)
    if dataset and not is_same:
        raise ValueError(
            f"{dataset}: references of {task} are needed; found those of {source.task}"
        )
    return About(task, source.reference if is_same else None)


def _told(path: Path, *keys: str) -> Any:
    """Return what a run's record says.

    Raises:
        ValueError: it does not.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        for key in keys:
            value = value[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: the record of a run is needed; found {error!r}") from error
    return value
