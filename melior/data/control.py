"""Logged transitions of an environment, and what is wrong with them before anything is learned.

NumPy only. Rows stand in the order in which they were lived; an episode ends where a row is a
terminal (the task is over: nothing follows) or a time-out (the log is over: something would have
followed, so that a value is still read from the next observation).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from melior.data.lint import EXAMPLES, Finding, Level

Array = Shaped[np.ndarray, "..."]
Columns = Mapping[str, Array]
Rows = Bool[np.ndarray, " n"]

NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "observations": ("observations", "observation", "obs"),
    "actions": ("actions", "action"),
    "rewards": ("rewards", "reward"),
    "next_observations": ("next_observations", "next_observation", "next_obs"),
    "terminals": ("terminals", "terminal", "terminations", "terminated", "done"),
    "timeouts": ("timeouts", "timeout", "truncations", "truncated"),
    "episodes": ("episodes", "episode", "episode_id"),
}
"""What a column may be called: ours and D4RL's, one row's, Gymnasium's and NeoRL's."""
_ADVICE: Final[Mapping[str, str]] = {
    "next_observations": "; log what step() returned, also at an episode's last step",
    "terminals": "; without them a value is read beyond the end of the task",
}
_SAME_END = 0.2
"""Share of terminals at the longest length of all from which they are taken for time-outs."""
_CONSTANT = 1e-6
"""A range this small beside a number's size, or beside 1, is float32's rounding."""
_ROUNDING = 1e-5
"""How far beyond the range an action may lie: float32 written as text and read back."""
_LARGE = 1e15
"""Beyond it float32 does not hold the sum of many squares: scales and losses would be inf."""


@dataclass(frozen=True)
class Transitions:
    """Steps of an environment: what was seen and done, and what came of it."""

    observations: Float[np.ndarray, "n d"]
    actions: Float[np.ndarray, "n a"]
    rewards: Float[np.ndarray, " n"]
    next_observations: Float[np.ndarray, "n d"]
    """What really followed, at an episode's end too."""
    terminals: Bool[np.ndarray, " n"]
    timeouts: Bool[np.ndarray, " n"]

    def __len__(self) -> int:
        return len(self.rewards)

    def rows(self, chosen: Int[np.ndarray, " m"] | slice) -> Transitions:
        """Return some of the rows."""
        return Transitions(**{name: column[chosen] for name, column in vars(self).items()})

    def episodes(self) -> Iterator[slice]:
        """Yield the rows of each episode; the last one may be cut off."""
        ends = np.flatnonzero(self.terminals | self.timeouts) + 1
        starts = [0, *ends.tolist()]
        yield from map(slice, starts[:-1], starts[1:])
        if starts[-1] < len(self):
            yield slice(starts[-1], len(self))

    def returns(self) -> Float[np.ndarray, " e"]:
        """Return the undiscounted return of each episode."""
        return self._sums(list(self.episodes()))

    def whole_returns(self) -> Float[np.ndarray, " e"]:
        """Return those of episodes that were not cut off.

        They end by a terminal, or are as long as the longest: a limit is the same for all.
        """
        episodes = list(self.episodes())
        longest = max(rows.stop - rows.start for rows in episodes)
        return self._sums(
            [
                rows
                for rows in episodes
                if self.terminals[rows.stop - 1] or rows.stop - rows.start == longest
            ]
        )

    def _sums(self, episodes: list[slice]) -> Float[np.ndarray, " e"]:
        sums = [self.rewards[rows].sum(dtype=np.float64) for rows in episodes]
        return np.array(sums, dtype=np.float64)


def transitions(columns: Columns, *, where: str) -> Transitions:
    """Make transitions of a file's columns; `[n 1]` is as good as `[n]` where one number is meant.

    Where a column says which episode a row is of, an episode that ends without a terminal ends
    by a time-out.

    Raises:
        ValueError: a column is missing, of a wrong shape or kind, or holds NaN or inf; with the
            row, counted from 1.
    """
    found = {
        name: next((columns[known] for known in names if known in columns), None)
        for name, names in NAMES.items()
    }
    if found["timeouts"] is None and found["episodes"] is not None:
        found["timeouts"] = _time_outs(found, where)
    del found["episodes"]
    whole = {name: column for name, column in found.items() if column is not None}
    for name in found.keys() - whole.keys():
        raise _missing(name, columns, where)
    count = len(whole["observations"]) if whole["observations"].ndim else 0
    if not count:
        raise ValueError(f"{where}: needs one transition or more; found none")
    table = {
        name: _vectors(whole[name], name, count, where)
        for name in ("observations", "actions", "next_observations")
    }
    if table["observations"].shape != table["next_observations"].shape:
        raise ValueError(
            f"{where}: 'next_observations' must be as wide as 'observations',"
            f" {table['observations'].shape[1]}; found {table['next_observations'].shape[1]}"
        )
    rewards = _finite(_numbers(whole["rewards"], "rewards", count, where), "rewards", where)
    flags = {name: _flags(whole[name], name, count, where) for name in ("terminals", "timeouts")}
    return Transitions(**table, rewards=rewards, **flags)


def lint_transitions(logged: Transitions, *, low: float = -1.0, high: float = 1.0) -> list[Finding]:
    """Return what is wrong with transitions although every number is one, worst first.

    Args:
        logged: in the order in which they were lived.
        low: the smallest action that the environment takes.
        high: the largest one.
    """
    ends: Rows = logged.terminals | logged.timeouts
    follows = (logged.next_observations[:-1] == logged.observations[1:]).all(-1)
    follows = np.append(follows, False)
    is_last = np.arange(len(logged)) == len(logged) - 1
    beyond = (logged.actions < low - _ROUNDING) | (logged.actions > high + _ROUNDING)
    outside: Rows = np.asarray(beyond.any(-1))
    found = [
        _finding("error", "timeouts-as-terminals", _taken_for_terminals(logged),
                 "a terminal at the very length at which the longest episodes end, where no row "
                 "but perhaps the last is a time-out: give time-outs as 'timeouts', or values stop "
                 "there"),
        _finding("error", "timeouts-as-terminals", _both(logged),
                 "a terminal and a time-out, as every time-out here is: 'terminals' must be true "
                 "where the task itself is over, not where either is, or values stop there"),
        _finding("error", "reset-as-successor", ends & follows,
                 "the end of an episode whose next observation is the next episode's first: log "
                 "what step() returned before the reset"),
        _finding("error", "unmarked-ends", ~ends & ~follows & ~is_last,
                 "neither terminal nor time-out, and yet the next row does not go on from it"),
        _finding("error", "actions-out-of-range", outside,
                 f"an action outside [{low:g}, {high:g}]: scale actions to the range"),
        _finding("error", "too-large", _too_large(logged),
                 f"a number beyond {_LARGE:g}, whose square is lost in float32: give observations "
                 "and rewards in other units"),
        _finding("warning", "unfinished", ~ends & is_last,
                 "the last row, and no end of an episode: its return counts as far as it is"),
    ]  # fmt: skip
    constant = _constant(logged)
    if constant:
        text = f"observation dimensions that never change: {', '.join(map(str, constant))}"
        found.append(Finding("warning", "constant-dimensions", len(logged), 1.0, text))
    real = [finding for finding in found if finding.count]
    return sorted(real, key=lambda finding: (finding.level != "error", -finding.share))


def _missing(name: str, columns: Columns, where: str) -> ValueError:
    wanted = f"{name!r} (or {', '.join(map(repr, NAMES[name][1:]))})"
    if name == "timeouts":
        wanted += f", or which episode each row is of, as {NAMES['episodes'][1]!r}"
    advice = _ADVICE.get(name, "")
    return ValueError(f"{where}: transitions need {wanted}; found {sorted(columns)}{advice}")


def _time_outs(found: Mapping[str, Array | None], where: str) -> Rows:
    """Return which rows are their episode's last without being terminal."""
    episodes, terminals, seen = found["episodes"], found["terminals"], found["observations"]
    assert episodes is not None  # whoever has `timeouts` does not ask
    count = len(episodes if seen is None else seen)
    if episodes.shape not in ((count,), (count, 1)):
        raise _shape("episodes", f"[{count}]", episodes, where)
    episodes = episodes.reshape(count)
    if episodes.dtype.kind == "f":
        _finite(episodes, "episodes", where)
    is_last = np.append(episodes[1:] != episodes[:-1], True)
    if terminals is None:
        return is_last
    return is_last & ~_flags(terminals, "terminals", len(episodes), where)


def _vectors(column: Array, name: str, count: int, where: str) -> Float[np.ndarray, "n d"]:
    if column.ndim != 2 or len(column) != count or not column.shape[1]:
        raise _shape(name, f"[{count}, width]", column, where)
    if column.dtype.kind not in "fiu" or (name == "actions" and column.dtype.kind != "f"):
        kinds = "real numbers (a choice among actions is not supported)"
        raise ValueError(f"{where}: {name!r} must hold {kinds}; found {column.dtype}")
    return _finite(column, name, where)


def _numbers(column: Array, name: str, count: int, where: str) -> Shaped[np.ndarray, " n"]:
    flat = column[:, 0] if column.ndim == 2 and column.shape[1] == 1 else column
    if flat.shape != (count,):
        raise _shape(name, f"[{count}]", column, where)
    if flat.dtype.kind not in "fiub":
        raise ValueError(f"{where}: {name!r} must hold numbers; found {column.dtype}")
    return flat


def _flags(column: Array, name: str, count: int, where: str) -> Rows:
    flat = _numbers(column, name, count, where)
    wrong = np.flatnonzero((flat != 0) & (flat != 1))
    if wrong.size:
        raise ValueError(
            f"{where}:{wrong[0] + 1}: {name!r} must be true or false; found {flat[wrong[0]]:g}"
        )
    return flat.astype(bool)


def _finite(column: Array, name: str, where: str) -> Array:
    """Return a column in float32, in which every number is one."""
    with np.errstate(over="ignore"):  # what is too large becomes inf, and is told below
        found = column.astype(np.float32)
    wrong = np.argwhere(~np.isfinite(found))
    if wrong.size:
        row, *dimension = wrong[0].tolist()
        which = f"{name!r}[{dimension[0]}]" if dimension else repr(name)
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        value = column[tuple(wrong[0])]
        kind = " in float32" if np.isfinite(value) else ""
        raise ValueError(f"{where}:{row + 1}: {which} must be finite{kind}; found {value:g}{more}")
    return found


def _shape(name: str, wanted: str, column: Array, where: str) -> ValueError:
    return ValueError(f"{where}: {name!r} must have the shape {wanted}; found {list(column.shape)}")


def _taken_for_terminals(logged: Transitions) -> Rows:
    """Return the terminals at the longest length, where they are many and no row is a time-out.

    What ends a task by itself does so at lengths of its own; a limit always at the same one. The
    last row does not count: where a log breaks off, it is a time-out whatever others are.
    """
    none = np.zeros(len(logged), dtype=bool)
    ends = np.flatnonzero(logged.terminals)
    if logged.timeouts[:-1].any() or len(ends) < 3:
        return none
    lengths = np.diff(ends, prepend=-1)
    at_limit = lengths == lengths.max()
    if at_limit.sum() < 3 or at_limit.mean() < _SAME_END or lengths.max() == 1:
        return none
    none[ends[at_limit]] = True
    return none


def _both(logged: Transitions) -> Rows:
    """Return the time-outs that are terminals too, where they are many and no time-out is none.

    The mark of `done = terminated or truncated`: by itself a task rarely ends just at its limit.
    Again the last row, where the log may break off, does not count.
    """
    both = logged.timeouts & logged.terminals
    late = logged.timeouts[:-1]
    return both & (late.sum() >= 3 and both[:-1][late].all())


def _too_large(logged: Transitions) -> Rows:
    columns = (logged.observations, logged.next_observations, logged.rewards[:, None])
    return np.asarray((np.abs(np.concatenate(columns, axis=1)) > _LARGE).any(-1))


def _constant(logged: Transitions) -> list[int]:
    both = np.concatenate([logged.observations[:1], logged.next_observations])
    size = np.maximum(1.0, np.abs(both).max(0))
    return np.flatnonzero(np.ptp(both, axis=0) <= _CONSTANT * size).tolist()


def _finding(level: Level, code: str, rows: Rows, text: str) -> Finding:
    places = np.flatnonzero(rows)
    examples = tuple(f"row {place + 1}" for place in places[:EXAMPLES])
    return Finding(level, code, len(places), float(rows.mean()), text, examples)
