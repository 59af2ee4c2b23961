"""Rows of tokens from files: text, a row a line, or arrays of integers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from melior.data.formats import not_utf8
from melior.data.marginal_tokens import split

END = "\n"
"""Fills up lines that are shorter than a row: a value of its own, never what is summed over."""


MOST_VALUES = 1 << 16
"""An array may hold so many: a network says a number of each, at each position."""


@dataclass(frozen=True)
class Rows:
    """What a file holds."""

    values: Int[Tensor, "rows d"]
    """From 1 up."""
    alphabet: tuple[str, ...] = ()
    """What the values stand for; nothing of arrays."""
    shape: tuple[int, ...] = ()
    """Lines and columns of an image, where rows are images."""


def is_array(path: Path) -> bool:
    """Say whether a file holds numbers and no text."""
    return path.suffix == ".npy"


def read_rows(
    path: Path, *, length: int = 0, tokens: str = "characters", alphabet: Sequence[str] = ()
) -> Rows:
    """Return the rows of a file.

    Args:
        path: `.npy` of integers from 0, or text.
        length: of a row of text; 0 takes the longest line.
        tokens: of text, what a value is: see `marginal_tokens.split`.
        alphabet: what may stand in text; by default what does.

    Raises:
        ValueError: the file holds no rows, none that can be learned from, or other tokens.
    """
    if is_array(path):
        return _array(path)
    lines = _lines(path, tokens)
    if not lines:
        raise ValueError(f"{path}: a row a line is needed; found none")
    size = length or max(map(len, lines.values()))
    if tokens != "characters":
        _refuse_long(path, lines, size)
    rows = [
        (number, line[a : a + size])
        for number, line in lines.items()
        for a in range(0, len(line), size)
    ]
    if not alphabet:
        ends = [END] if any(len(row) < size for _, row in rows) else []
        alphabet = sorted(set(ends).union(*lines.values()))
    if len(alphabet) < 2:
        raise ValueError(
            f"{path}: at least two values are needed, or there is nothing to learn; found only"
            f" {alphabet[0]!r}"
        )
    return Rows(_numbered(path, rows, size, alphabet), tuple(alphabet))


def written(row: Sequence[int], alphabet: Sequence[str]) -> str:
    """Return a row as text, without what fills it up; an end elsewhere stays."""
    return "".join(alphabet[value - 1] for value in row).rstrip(END)


def _lines(path: Path, tokens: str) -> dict[int, Sequence[str]]:
    """Return the tokens of lines that hold any, by the lines' numbers."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(str(path), error) from error
    found: dict[int, Sequence[str]] = {}
    for number, line in enumerate(text.split("\n"), 1):
        try:
            found[number] = split(line, tokens)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from error
    return {number: own for number, own in found.items() if own}


def _refuse_long(path: Path, lines: dict[int, Sequence[str]], size: int) -> None:
    """Check that no molecule would be cut: its parts are none."""
    for number, line in lines.items():
        if len(line) > size:
            raise ValueError(
                f"{path}:{number}: at most {size} tokens are needed, the length of a row; found"
                f" {len(line)}"
            )


def _numbered(
    path: Path, rows: list[tuple[int, Sequence[str]]], size: int, alphabet: Sequence[str]
) -> Int[Tensor, "rows d"]:
    """Return the numbers of tokens, filled up with that of an end."""
    known = {token: i for i, token in enumerate(alphabet, 1)}
    values = np.full((len(rows), size), known.get(END, 0))
    for place, (number, row) in enumerate(rows):
        if len(row) < size and END not in known:
            raise ValueError(
                f"{path}:{number}: {size} values are needed, as the network knows no end of shorter"
                f" rows; found {len(row)}"
            )
        try:
            values[place, : len(row)] = [known[token] for token in row]
        except KeyError as error:
            shown = " ".join(map(repr, alphabet[:60]))
            raise ValueError(
                f"{path}:{number}: one of {shown} is needed, as the network knows; found"
                f" {error.args[0]!r}"
            ) from error
    return torch.from_numpy(values)


def _array(path: Path) -> Rows:
    try:
        found = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        # numpy's own words would have what is no array unpickled.
        raise ValueError(
            f"{path}: an array of integers, as numpy.save writes it, is needed; found another file"
        ) from error
    is_table = isinstance(found, np.ndarray) and found.ndim in (2, 3) and found.size
    if not is_table or found.dtype.kind not in "iub" or int(found.min()) < 0:
        said = getattr(found, "dtype", type(found).__name__), getattr(found, "shape", ())
        raise ValueError(
            f"{path}: rows and columns of integers from 0 are needed, or images, lines and columns;"
            f" found {said[0]} of {said[1]}"
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
    values = torch.from_numpy(found.astype(np.int64)) + 1
    return Rows(values.flatten(1), shape=found.shape[1:] if found.ndim == 3 else ())
