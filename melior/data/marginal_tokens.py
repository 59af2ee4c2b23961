"""A line of text as the values of a row: its characters, or the tokens of a molecule; no torch."""

from __future__ import annotations

import re
from collections.abc import Sequence

_PATTERNS = {
    # After OpenSMILES: atoms in brackets, those that need none, rings, bonds and branches.
    "smiles": re.compile(r"\[[^\[\]\s]+\]|Br|Cl|%\d\d|[BCNOPSFIbcnops*0-9().=#$:/\\-]"),
    # Krenn, Hase, Nigam, Friederich, Aspuru-Guzik 2020, arXiv 1905.13741: symbols, and fragments.
    "selfies": re.compile(r"\[[^\[\]\s]+\]|\."),
}


def split(line: str, kind: str) -> Sequence[str]:
    """Return the tokens of a line: `characters`, `smiles` or `selfies`.

    Raises:
        ValueError: some of it is no token.
    """
    if kind == "characters":
        return line  # as a text of millions of characters takes least
    pattern, place, found = _PATTERNS[kind], 0, []
    while place < len(line):
        match = pattern.match(line, place)
        if match is None:
            raise ValueError(
                f"{kind.upper()} are needed, a row a line; found {line[place : place + 20]!r} at"
                f" character {place + 1}"
            )
        found.append(match[0])
        place = match.end()
    return found
