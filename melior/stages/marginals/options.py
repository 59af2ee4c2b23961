"""Options of marginals: what is learned, and how large the networks are; without torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from melior.checks import in_range, not_read
from melior.own import check_name

PAPER = "Liu, Ramadge, Adams 2024, arXiv 2310.12920"
TARGETS = ("ising",)


@dataclass(frozen=True)
class MarginalOptions:
    """What is learned: a target whose density is known up to a constant, or rows."""

    target: str = ""
    """`ising`, or your own: `FILE.py:NAME`, a function from rows of values 1 to `--values` to their
    log-densities."""
    data: str = ""
    """A text file, a row a line, whose `--tokens` are the values; or `.npy` of integers from 0:
    rows of positions, or images."""
    tokens: Literal["characters", "smiles", "selfies"] = "characters"
    """Of text: what a value is. Molecules are rows of atoms, bonds and rings, `Cl` and `[nH]` being
    one, or of symbols in brackets."""
    side: int = 4
    """Of Ising's torus."""
    coupling: float = 0.1
    """Of Ising's neighbours; each edge counts twice, as in the paper."""
    field: float = 0.2
    """On Ising's sites."""
    length: int = 0
    """Positions of a row: of your own target; of text, shorter lines are filled up with an end
    value, and a longer one is cut into several rows, if it is no molecule; 0 takes the longest
    line."""
    values: int = 2
    """Of each position, for your own target."""

    def __post_init__(self) -> None:
        """Check the ranges, and that there is one thing to learn."""
        if bool(self.target) == bool(self.data):
            found = "both" if self.target else "neither"
            raise ValueError(f"mam learns a --target or --data; found {found}")
        if self.target:
            check_name("target", self.target, TARGETS)
            not_read(self, ("tokens",), "with --target")
        in_range("side", self.side, 3)
        in_range("coupling", self.coupling)
        in_range("field", self.field)
        in_range("length", self.length, 0)
        in_range("values", self.values, 2)
        if self.target == "ising":
            not_read(self, ("length", "values"), "with --target ising")
            return
        not_read(self, ("side", "coupling", "field"), "without --target ising")
        if self.data:
            not_read(self, ("values",), "with --data")
            if Path(self.data).suffix == ".npy":
                not_read(self, ("length", "tokens"), "with an array (.npy)")
        elif not self.length:
            raise ValueError("length must be given for a target of one's own; found 0")

    def check_there(self) -> None:
        """Check that the file of rows exists.

        Raises:
            FileNotFoundError: it does not.
        """
        if self.data and not Path(self.data).is_file():
            raise FileNotFoundError(f"data: a file is needed; found none at {self.data}")


@dataclass(frozen=True)
class NetworkOptions:
    """How large both networks are."""

    width: int = 128
    blocks: int = 3
    """Residual blocks."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("width", self.width, 1)
        in_range("blocks", self.blocks, 0)
