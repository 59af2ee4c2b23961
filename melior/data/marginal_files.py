"""Rows of tokens from files: text, a row a line, or arrays of integers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

END = "\n"
"""Fills up lines that are shorter than a row: a value of its own, never what is summed over."""


MOST_VALUES = 1 << 16
"""An array may hold so many: a network says a number of each, at each position."""


def is_array(path: Path) -> bool:
    """Say whether a file holds numbers and no text."""
    return path.suffix == ".npy"


def read_rows(
    path: Path, *, length: int = 0, alphabet: str = ""
) -> tuple[Int[Tensor, "rows d"], str]:
    """Return rows of values from 1 up, and the characters that these stand for (none of arrays).

    Args:
        path: `.npy` of integers from 0, or text.
        length: of a row of text; 0 takes the longest line.
        alphabet: the characters that may stand in text; by default those that do.

    Raises:
        ValueError: the file holds no rows, none that can be learned from, or other characters.
    """
    if is_array(path):
        return _array(path), ""
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line]
    if not lines:
        raise ValueError(f"{path}: a row a line is needed; found none")
    size = length or max(map(len, lines))
    rows = [line[a : a + size] for line in lines for a in range(0, len(line), size)]
    rows = [row.ljust(size, END) for row in rows]
    found = "".join(sorted(set("".join(rows))))
    alphabet = alphabet or found
    if strange := set(found) - set(alphabet):
        raise ValueError(
            f"{path}: characters of {alphabet!r} are needed, which the network knows; found"
            f" {min(strange)!r}"
        )
    if len(alphabet) < 2:
        raise ValueError(
            f"{path}: at least two values are needed, or there is nothing to learn; found only"
            f" {alphabet[0]!r}"
        )
    number = {letter: i for i, letter in enumerate(alphabet, 1)}
    return torch.tensor([[number[letter] for letter in row] for row in rows]), alphabet


def _array(path: Path) -> Int[Tensor, "rows d"]:
    try:
        found = np.load(path, allow_pickle=False)
    except ValueError as error:
        raise ValueError(f"{path}: an array of integers is needed; found that {error}") from error
    is_table = isinstance(found, np.ndarray) and found.ndim == 2 and found.size
    if not is_table or found.dtype.kind not in "iub" or int(found.min()) < 0:
        said = getattr(found, "dtype", type(found).__name__), getattr(found, "shape", ())
        raise ValueError(
            f"{path}: rows and columns of integers from 0 are needed; found {said[0]} of {said[1]}"
        )
    if int(found.max()) < 1:
        raise ValueError(
            f"{path}: at least two values are needed, or there is nothing to learn; found only 0"
        )
    if int(found.max()) >= MOST_VALUES:
        raise ValueError(
            f"{path}: values below {MOST_VALUES} are needed, as a network says a number of each;"
            f" found {int(found.max())}; number those that occur from 0 up"
        )
    return torch.from_numpy(found.astype(np.int64)) + 1
