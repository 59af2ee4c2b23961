"""From options to what marginals are learned of: a target or rows, and the truth if it is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior import ops
from melior.data.marginal import all_rows
from melior.data.marginal_files import is_array, read_rows
from melior.models.marginal_saved import Marginals
from melior.own import own
from melior.rewards.marginal import Ising
from melior.stages.marginals.energy import Target, finite
from melior.stages.marginals.options import MarginalOptions

FEW = 2**16
"""Rows that are listed to judge by, at most."""
MOST_HELD_OUT = 1000


@dataclass(frozen=True)
class Listed:
    """All rows, and their exact log-probabilities."""

    rows: Int[Tensor, "rows d"]
    log_joint: Float[Tensor, " rows"]


@dataclass(frozen=True)
class World:
    """What is learned, and what is known of it."""

    length: int
    n_values: int
    alphabet: tuple[str, ...] = ()
    """What values stand for, where they are tokens of text."""
    shape: tuple[int, ...] = ()
    """Lines and columns, where rows are images or lattices."""
    log_target: Target | None = None
    log_z: float | None = None
    listed: Listed | None = None
    rows: Int[Tensor, "rows d"] | None = None
    """To learn from."""
    held_out: Int[Tensor, "m d"] | None = None


def load_world(options: MarginalOptions, *, seed: int, validation_share: float) -> World:
    """Return what the options say, checked on what comes first.

    Raises:
        ValueError: a target is not finite, or rows are too few.
    """
    if options.data:
        return _of_rows(options, seed=seed, share=validation_share)
    if options.target == "ising":
        ising = Ising(options.side, options.coupling, options.field)
        length, n_values = ising.length, 2
        log_target: Target = ising.log_target
        log_z: float | None = ising.log_z() if options.side <= 12 else None
        shape: tuple[int, ...] = (options.side, options.side)
    else:
        length, n_values, log_z, shape = options.length, options.values, None, ()
        log_target = _shaped(options.target)
    listed = None
    if n_values**length <= FEW:
        rows = all_rows(length, n_values)
        listed = Listed(rows, finite(log_target, rows).double().log_softmax(0))
    else:
        rows = torch.randint(1, n_values + 1, (64, length), generator=ops.generator(seed))
        finite(log_target, rows)
    return World(length, n_values, shape=shape, log_target=log_target, log_z=log_z, listed=listed)


def load_examined(options: MarginalOptions, found: Marginals) -> World:
    """Return what a network is held against: its target, or all rows of a file.

    Which rows it learned from is not known here: the caller gives others.

    Raises:
        ValueError: the network is of other rows.
    """
    if not options.data:
        world = load_world(options, seed=0, validation_share=0.0)
        if (world.length, world.n_values) != (found.length, found.n_values):
            raise ValueError(
                f"target {options.target}: rows of {found.length} positions and {found.n_values}"
                f" values are needed, as the network's; found {world.length} and {world.n_values}"
            )
        return world
    alphabet = tuple(found.about.get("alphabet", ()))
    if bool(alphabet) == is_array(Path(options.data)):
        need, have = ("text", "an array") if alphabet else ("an array (.npy)", "text")
        knows = "letters" if alphabet else "no letters"
        raise ValueError(
            f"{options.data}: {need} is needed, as the network knows {knows}; found {have}"
        )
    tokens = str(found.about.get("tokens", "characters"))
    read = read_rows(Path(options.data), length=found.length, tokens=tokens, alphabet=alphabet)
    rows = read.values
    if rows.shape[1] != found.length or int(rows.max()) > found.n_values:
        raise ValueError(
            f"{options.data}: rows of {found.length} values up to {found.n_values} are needed, as"
            f" the network's; found {rows.shape[1]} values up to {int(rows.max())}"
        )
    shape = tuple(found.about.get("shape", ()))
    if read.shape != shape:
        need, have = (f"images of {s[0]} x {s[1]}" if s else "rows" for s in (shape, read.shape))
        raise ValueError(f"{options.data}: {need} are needed, as the network's; found {have}")
    return World(found.length, found.n_values, alphabet, shape, held_out=rows)


def _of_rows(options: MarginalOptions, *, seed: int, share: float) -> World:
    read = read_rows(Path(options.data), length=options.length, tokens=options.tokens)
    rows = read.values
    if bool((rows == rows[0]).all()):
        raise ValueError(
            f"{options.data}: rows that differ are needed; found the same in all {len(rows)}"
        )
    n_values = len(read.alphabet) or int(rows.max())
    order = torch.randperm(len(rows), generator=ops.generator(seed))
    n_apart = min(MOST_HELD_OUT, round(share * len(rows)))
    if n_apart < 1 or n_apart == len(rows):
        raise ValueError(
            f"{options.data}: some rows are held out and others learned from; found {len(rows)}"
            f" rows, of which a share of {share:g} is held out"
        )
    return World(
        rows.shape[1],
        n_values,
        read.alphabet,
        read.shape,
        rows=rows[order[n_apart:]],
        held_out=rows[order[:n_apart]],
    )


def _shaped(name: str) -> Target:
    function = own(name)
    if not callable(function):
        raise ValueError(f"{name}: a function of rows is needed; found {function!r}")
    asked: Callable[[Tensor], object] = function

    def log_target(rows: Int[Tensor, "n d"]) -> Float[Tensor, " n"]:
        found = asked(rows)
        if not isinstance(found, Tensor) or found.shape != (len(rows),):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"{name}: a tensor of one log-density a row is needed, {len(rows)} here; found"
                f" {shape}"
            )
        return found.to(torch.get_default_dtype())

    return log_target
