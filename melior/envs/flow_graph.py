"""All states of a small environment of flows, and whether its two directions agree."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from melior.data.flow import NO_ACTION, FlowEnvironment, Graph, rows_of

MOST_STATES = 2_000_000


class TooManyStatesError(ValueError):
    """There are more states than are to be listed."""


def enumerated(env: FlowEnvironment, *, most: int = MOST_STATES) -> Graph:
    """Return the graph of all states, found level by level from the start.

    Raises:
        TooManyStatesError: there are more than `most`.
        ValueError: a path is longer than the environment says; one that goes in a circle is.
    """
    levels = [env.start[None]]
    while len(edges := _onward(env, levels[-1])):
        levels.append(edges.unique(dim=0))
        if len(levels) > env.longest:
            raise ValueError(
                f"environment: paths must end within {env.longest} actions, the stop among them, as"
                " 'longest' says; found longer ones"
            )
        n_states = sum(map(len, levels))
        if n_states > most:
            raise TooManyStatesError(
                f"environment: at most {most} states can be enumerated; found {n_states} within"
                f" {len(levels)} steps"
            )
    levels = _last_places(levels)
    states = torch.cat(levels)
    starts = [0]
    for level in levels:
        starts.append(starts[-1] + len(level))
    allowed = env.allowed(states)
    return Graph(states, _children(env, states), allowed[:, -1], tuple(starts))


def check_environment(env: FlowEnvironment, states: Int[Tensor, "n d"]) -> None:
    """Check on some states that what goes on can be undone, and what is undone leads back.

    Raises:
        ValueError: naming the first state at which the directions disagree.
    """
    _check_start(env)
    allowed, undoable = env.allowed(states), env.undoable(states)
    wanted = (len(states), env.n_actions + 1), (len(states), env.n_actions)
    if (tuple(allowed.shape), tuple(undoable.shape)) != wanted:
        raise ValueError(
            f"environment: masks of {wanted[0]} allowed and {wanted[1]} undoable actions are"
            f" needed; found {tuple(allowed.shape)} and {tuple(undoable.shape)}"
        )
    stuck = ~allowed.any(-1)
    if stuck.any():
        raise ValueError(
            f"environment: a state needs an action or the stop; found none at"
            f" {states[stuck][0].tolist()}"
        )
    row, action = allowed[:, :-1].nonzero(as_tuple=True)
    _check_pairs(env, states[row], env.step(states[row], action), action)
    row, action = undoable.nonzero(as_tuple=True)
    _check_pairs(env, env.undo(states[row], action), states[row], action)


def check_paths(env: FlowEnvironment, *, most: int = 64) -> None:
    """Check an environment along its paths from the start, some of them where there are many.

    Raises:
        ValueError: as `check_environment`; or paths do not end, or only one object can be built.
    """
    _check_start(env)
    level, is_whole = env.start[None], True
    objects: list[Tensor] = []
    for _ in range(env.longest):
        check_environment(env, level)
        objects.append(level[env.allowed(level)[:, -1]])
        reached = _onward(env, level)
        _check_states("step", reached, 2)
        if not len(reached):
            break
        level = reached.unique(dim=0)
        if len(level) > most:
            level, is_whole = level[torch.linspace(0, len(level) - 1, most).long()], False
    else:
        raise ValueError(
            f"environment: paths must end within {env.longest} actions, the stop among them, as"
            f" 'longest' says; found one that goes on at {level[0].tolist()}"
        )
    n_objects = len(torch.cat(objects).unique(dim=0))  # one may stand at several levels
    if is_whole and n_objects < 2:
        raise ValueError(
            "environment: at least two objects are needed, or there is nothing to choose; found"
            f" {n_objects or 'none'}"
        )


def _check_states(name: str, states: object, axes: int) -> None:
    """Check that states are rows of whole numbers: they are looked up, and equal or not."""
    is_rows = isinstance(states, Tensor) and states.ndim == axes
    if isinstance(states, Tensor) and is_rows and states.dtype == torch.long:
        return
    shape = "[d]" if axes == 1 else "[n d]"
    found = type(states).__name__
    if isinstance(states, Tensor):
        found = f"{states.dtype} of {tuple(states.shape)}"
    raise ValueError(f"environment: '{name}' must give int64 {shape}; found {found}")


def _check_start(env: FlowEnvironment) -> None:
    _check_states("start", env.start, 1)
    if env.undoable(env.start[None]).any():
        raise ValueError("environment: nothing can be undone at the start; found an action that is")


def _check_pairs(env: FlowEnvironment, before: Tensor, after: Tensor, action: Tensor) -> None:
    """Check that an action leads from each state to the next, and its undoing back."""
    if not len(action):
        return
    goes = env.allowed(before).gather(-1, action[:, None])[:, 0]
    comes = env.undoable(after).gather(-1, action[:, None])[:, 0]
    agrees = goes & comes
    rows = agrees.nonzero()[:, 0]
    there = env.step(before[rows], action[rows]) == after[rows]
    back = env.undo(after[rows], action[rows]) == before[rows]
    agrees[rows] &= there.all(-1) & back.all(-1)
    if not agrees.all():
        worst = int((~agrees).nonzero()[0])
        raise ValueError(
            f"environment: an action that is allowed must be undoable where it leads, and back;"
            f" found action {int(action[worst])} between {before[worst].tolist()} and"
            f" {after[worst].tolist()}, where"
            f" {_which(bool(goes[worst]), bool(comes[worst]))}"
        )


def _which(goes: bool, comes: bool) -> str:
    if goes and comes:
        return "the states do not match"
    return "only the way on is allowed" if goes else "only the way back is undoable"


def _onward(env: FlowEnvironment, states: Tensor) -> Tensor:
    """Return where all allowed actions lead, with repeats."""
    row, action = env.allowed(states)[:, :-1].nonzero(as_tuple=True)
    return env.step(states[row], action)


def _last_places(levels: list[Tensor]) -> list[Tensor]:
    """Leave every state only at the last level at which it was found."""
    states = torch.cat(levels)
    depth = torch.cat([torch.full((len(own),), i) for i, own in enumerate(levels)])
    unique, place = states.unique(dim=0, return_inverse=True)
    deepest = torch.zeros(len(unique), dtype=torch.long).scatter_reduce(
        0, place, depth, "amax", include_self=False
    )
    return [unique[deepest == i] for i in range(len(levels))]


def _children(env: FlowEnvironment, states: Tensor) -> Tensor:
    row, action = env.allowed(states)[:, :-1].nonzero(as_tuple=True)
    children = states.new_full((len(states), env.n_actions), NO_ACTION)
    children[row, action] = rows_of(states, env.step(states[row], action))
    return children
