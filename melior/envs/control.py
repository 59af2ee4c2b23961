"""Tasks of Gymnasium, many copies at once, and the rules by which they are over.

Policies act in [-1, 1]; here actions are stretched to what a task takes. A task is a name that
Gymnasium knows, such as `Pendulum-v1`, or `module:Name-v0`, which imports the module first.
"""

from __future__ import annotations

import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from melior.checks import in_range
from melior.data.control import Transitions

Termination = Callable[
    [Float[Tensor, "n d"], Float[Tensor, "n a"], Float[Tensor, "n d"]], Bool[Tensor, " n"]
]
"""Which transitions end a task, of observation, action and what followed: known, never learned."""
Reward = Callable[
    [Float[Tensor, "n d"], Float[Tensor, "n a"], Float[Tensor, "n d"]], Float[Tensor, " n"]
]
"""What a step earns: of observation, action and what followed."""
Act = Callable[[Float[Tensor, "n d"]], Float[Tensor, "n a"]]
"""An action in [-1, 1] for each observation."""
Seen = Float[np.ndarray, "n d"]
Acted = Float[np.ndarray, "n a"]

_ENDLESS = 100_000
"""Steps of an episode after which it is taken for one without an end."""
_FAR = 100.0
"""Beyond which a body of MuJoCo counts as broken (Hopper-v5)."""


def never_over(
    observations: Float[Tensor, "n d"],
    actions: Float[Tensor, "n a"],
    next_observations: Float[Tensor, "n d"],
) -> Bool[Tensor, " n"]:
    """Say that nothing ends the task but its time limit: Pendulum, HalfCheetah."""
    return torch.zeros(len(next_observations), dtype=torch.bool, device=next_observations.device)


def hopper_is_over(
    observations: Float[Tensor, "n d"],
    actions: Float[Tensor, "n a"],
    next_observations: Float[Tensor, "n d"],
) -> Bool[Tensor, " n"]:
    """Say where Hopper has fallen: height 0.7, tilt 0.2, anything else 100, to both sides."""
    height, tilt = next_observations[:, 0], next_observations[:, 1]
    is_whole = (next_observations[:, 1:].abs() < _FAR).all(-1)
    return ~(is_whole & (height > 0.7) & (tilt.abs() < 0.2))


def walker_is_over(
    observations: Float[Tensor, "n d"],
    actions: Float[Tensor, "n a"],
    next_observations: Float[Tensor, "n d"],
) -> Bool[Tensor, " n"]:
    """Say where Walker2d has fallen: height within 0.8 and 2, tilt within 1 to both sides."""
    height, tilt = next_observations[:, 0], next_observations[:, 1]
    return ~((height > 0.8) & (height < 2.0) & (tilt.abs() < 1.0))


def pendulum_has_tipped(
    observations: Float[Tensor, "n d"],
    actions: Float[Tensor, "n a"],
    next_observations: Float[Tensor, "n d"],
) -> Bool[Tensor, " n"]:
    """Say where InvertedPendulum leans by more than 0.2."""
    return ~(next_observations[:, 1].abs() <= 0.2) | ~next_observations.isfinite().all(-1)


RULES: Final[Mapping[str, Termination]] = {
    "Pendulum": never_over,
    "HalfCheetah": never_over,
    "Hopper": hopper_is_over,
    "Walker2d": walker_is_over,
    "InvertedPendulum": pendulum_has_tipped,
}
"""Of tasks by their name without a version."""


def termination(task: str, named: str = "") -> Termination:
    """Return the rule by which a task is over.

    Args:
        task: as Gymnasium names it.
        named: the user's own, `module:function`; of tasks that are not known it is asked for, since
            roll-outs that go on after the end were what made others' results fall short.

    Raises:
        ValueError: there is none.
    """
    if named:
        return named_function(named, "termination")
    known = unversioned(task)
    if known not in RULES:
        raise ValueError(
            f"termination is needed of {task or 'a data set that names no task'!r}, as "
            "'module:function' of observations, actions and next observations; known are "
            f"{', '.join(RULES)}"
        )
    return RULES[known]


def unversioned(task: str) -> str:
    """Return a task's name without its folder and version: returns of versions can be compared."""
    return re.sub(r"-v\d+$", "", task.rpartition("/")[2])


def named_function(named: str, option: str) -> Any:
    """Return the user's own function, named as `module:function`.

    Raises:
        ValueError: there is none; naming the option.
    """
    module, _, name = named.partition(":")
    _look_beside()
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as error:  # the user's module runs here, and may fail in any way
        raise ValueError(
            f"{option} must be 'module:function'; found {named!r}: {type(error).__name__}: {error}"
        ) from error
    if not callable(found):
        raise ValueError(f"{option} must be a function; found {found!r} at {named!r}")
    return found


def check_termination(rule: Termination, logged: Transitions, *, where: str) -> None:
    """Hold a rule against logged transitions.

    At the very edge float32 may fall to the other side: one terminal in a hundred may differ.

    Raises:
        ValueError: it is no rule of these transitions, with the first row that differs.
    """
    said = _said(rule, logged, "termination")
    if said.dtype != torch.bool:
        raise ValueError(f"termination must give bools; found {said.dtype}")
    found = said.numpy()
    for wrong, logged_as, says in (
        (logged.terminals & ~found, "a terminal", "it goes on"),
        (~logged.terminals & found, "no terminal", "it is over"),
    ):
        if wrong.sum() > 0.01 * logged.terminals.sum():
            first = int(np.flatnonzero(wrong)[0])
            raise ValueError(
                f"{where}:{first + 1}: termination must agree with 'terminals'; found "
                f"{logged_as}, and the rule says that {says}, in {int(wrong.sum())} rows"
            )


def check_reward(reward: Reward, logged: Transitions) -> float:
    """Hold a task's own reward against logged transitions; return how far off it is, on average.

    Raises:
        ValueError: it is no reward of these transitions.
    """
    said = _said(reward, logged, "true_reward")
    if not said.is_floating_point() or not said.isfinite().all():
        raise ValueError(f"true_reward must give finite floats; found {said.dtype}, {said}")
    return float((said - torch.from_numpy(logged.rewards)).abs().mean())


def _said(
    function: Callable[[Tensor, Tensor, Tensor], object], logged: Transitions, option: str
) -> Tensor:
    """Return what the user's own function says of logged transitions, a number for each.

    It is given copies: what it does to them in place must not reach the log.

    Raises:
        ValueError: it fails, or says something else.
    """
    columns = (logged.observations, logged.actions, logged.next_observations)
    wanted = f"{option} must give a tensor [{len(logged)}] of as many transitions"
    try:
        said = function(*map(torch.tensor, columns))
    except Exception as error:  # the user's code, which may fail in any way
        raise ValueError(f"{wanted}; found {type(error).__name__}: {error}") from error
    if not isinstance(said, Tensor):
        raise ValueError(f"{wanted}; found {type(said).__name__}")
    if said.shape != (len(logged),):
        raise ValueError(f"{wanted}; found the shape {list(said.shape)}")
    return said


def returns(task: str, act: Act, *, episodes: int, seed: int) -> Float[np.ndarray, " e"]:
    """Return the undiscounted returns of whole episodes, all lived side by side.

    Episode `i` starts from seed `seed + i`, whatever else is lived beside it.

    Raises:
        ValueError: an episode does not end.
    """
    in_range("episodes", episodes, 1)
    total, is_done, steps = np.zeros(episodes), np.zeros(episodes, dtype=bool), 0
    with _copies(task, episodes) as copies:
        observations = copies.reset(seed)
        while not is_done.all():
            if steps == _ENDLESS:
                raise ValueError(
                    f"{task}: episodes must end; found one that has gone on for {steps} steps; "
                    "register the task with max_episode_steps"
                )
            steps += 1
            step = copies.step(_acted(act, observations))
            total += np.where(is_done, 0.0, step.rewards)
            is_done |= step.terminals | step.timeouts
            observations = step.observations
    return total


def collect(task: str, act: Act, *, steps: int, copies: int, seed: int) -> Transitions:
    """Log so many steps of a policy, evenly from copies of a task; one copy's after another's.

    Where the log of a copy breaks off, its episode ends by a time-out.
    """
    in_range("steps", steps, 1)
    in_range("copies", copies, 1, steps)
    with lives(task, copies=copies, seed=seed) as world:
        parts = [world.step(act) for _ in range(-(-steps // copies))]
    return by_life(parts, steps)


def by_life(parts: Sequence[Transitions], steps: int) -> Transitions:
    """Return so many of the steps that copies have lived side by side, one copy's after another's.

    Where the log of a copy breaks off, its episode ends by a time-out.
    """
    each, copies = len(parts), len(parts[0])
    columns = {
        name: np.stack([vars(part)[name] for part in parts], axis=1).reshape(
            each * copies, *vars(parts[0])[name].shape[1:]
        )[:steps]
        for name in vars(parts[0])
    }
    breaks = np.append(np.arange(each - 1, steps - 1, each), steps - 1)
    columns["timeouts"][breaks] = ~columns["terminals"][breaks]
    return Transitions(**columns)


class Lives:
    """Copies of a task that are lived side by side; made by `lives`."""

    def __init__(self, copies: _Copies, seed: int) -> None:
        self._copies = copies
        self._observations = copies.reset(seed)

    def step(self, act: Act) -> Transitions:
        """Act once in each copy, and return a row for each."""
        observations, actions = self._observations, _acted(act, self._observations)
        step = self._copies.step(actions)
        self._observations = step.observations
        return Transitions(
            observations,
            actions,
            step.rewards.astype(np.float32),
            step.successors,
            step.terminals,
            step.timeouts & ~step.terminals,
        )


@contextmanager
def lives(task: str, *, copies: int, seed: int) -> Iterator[Lives]:
    """Give copies of a task to act in, step by step; copy `i` starts from seed `seed + i`."""
    with _copies(task, copies) as world:
        yield Lives(world, seed)


def sizes(task: str) -> tuple[int, int]:
    """Return how many numbers an observation and an action of a task have.

    Raises:
        ValueError: it is not known, or is no task of vectors.
    """
    with _copies(task, 1) as copies:
        return copies.observations, len(copies.low)


@dataclass(frozen=True)
class _Step:
    observations: Seen
    """From which to act on: of a new episode where one has ended."""
    successors: Seen
    """What really followed."""
    rewards: Float[np.ndarray, " n"]
    terminals: Bool[np.ndarray, " n"]
    timeouts: Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class _Copies:
    """Copies of a task; a new episode begins in the step in which one ends."""

    world: Any
    observations: int
    low: Float[np.ndarray, " a"]
    high: Float[np.ndarray, " a"]

    def reset(self, seed: int) -> Seen:
        observations, _ = self.world.reset(seed=[seed + i for i in range(self.world.num_envs)])
        return observations.astype(np.float32)

    def step(self, actions: Acted) -> _Step:
        stretched = self.low + 0.5 * (actions + 1) * (self.high - self.low)
        following, rewards, terminals, timeouts, infos = self.world.step(
            stretched.astype(self.low.dtype)
        )
        observations = following.astype(np.float32)
        successors = observations.copy()
        for place in np.flatnonzero(terminals | timeouts):
            successors[place] = infos["final_obs"][place]
        return _Step(observations, successors, rewards, terminals, timeouts)


@contextmanager
def _copies(task: str, count: int) -> Iterator[_Copies]:
    gymnasium = _gymnasium(task)
    _look_beside()
    vector = gymnasium.vector
    make = functools.partial(_made, gymnasium, task)
    world = vector.SyncVectorEnv([make] * count, autoreset_mode=vector.AutoresetMode.SAME_STEP)
    try:
        seen, done = world.single_observation_space, world.single_action_space
        box = gymnasium.spaces.Box
        for name, space in (("observations", seen), ("actions", done)):
            if not isinstance(space, box) or len(space.shape) != 1:
                raise ValueError(f"{task}: {name} must be vectors; found {space}")
        if not (np.isfinite(done.low).all() and np.isfinite(done.high).all()):
            raise ValueError(f"{task}: actions must have bounds; found {done}")
        yield _Copies(world, seen.shape[0], done.low, done.high)
    finally:
        world.close()


def _made(gymnasium: Any, task: str) -> Any:
    try:
        return gymnasium.make(task)
    except gymnasium.error.DependencyNotInstalled as error:
        said = str(error)
        if "mujoco" in said.lower():
            said = "needs MuJoCo, which is not installed; pip install 'melior[mujoco]'"
        raise ValueError(f"{task}: {said}") from error
    except (gymnasium.error.Error, ImportError) as error:
        raise ValueError(f"{task}: a task that Gymnasium knows is needed; {error}") from error


def _look_beside() -> None:
    """Let modules in the folder where the user is be found, as `python -m` does."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def _gymnasium(where: str) -> Any:
    try:
        return importlib.import_module("gymnasium")
    except ImportError as error:
        raise ValueError(
            f"{where}: tasks need the package 'gymnasium', which is not installed; "
            "pip install 'melior[control]'"
        ) from error


@torch.no_grad()
def _acted(act: Act, observations: Seen) -> Acted:
    actions = act(torch.from_numpy(observations)).numpy()
    return np.clip(actions, -1.0, 1.0, dtype=np.float32)
