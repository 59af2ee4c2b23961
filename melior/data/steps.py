"""The steps of an answer: found in its text, and which of them each token belongs to."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

MARK = re.compile(r"\bstep \d+:", re.IGNORECASE)
"""What begins a step in plain text."""
DAMAGED = "\ufffd"
"""What a part of a character decodes to."""


def marked_steps(text: str) -> tuple[str, ...]:
    """Return an answer cut before each `Step 1:`, or nothing where it has no such mark.

    The marks are those of Liao, Chu, Wang 2024, arXiv 2410.12854. What stands before the first one
    belongs to the first step.
    """
    starts = [mark.start() for mark in MARK.finditer(text)]
    cuts = [0, *starts[1:], len(text)]
    return tuple(text[start:end].strip() for start, end in pairwise(cuts)) if starts else ()


def step_starts(text: str, steps: Sequence[str]) -> list[int]:
    """Return where each step begins in an answer's text.

    Raises:
        ValueError: a step is not there, or not after the one before it.
    """
    starts, place = [], 0
    for number, step in enumerate(steps, 1):
        found = text.find(step.strip(), place)
        if found < 0:
            raise ValueError(
                f"step {number} must stand in the answer, after the steps before it; found no"
                f" {step.strip()[:40]!r} in what follows character {place}"
            )
        starts.append(found)
        place = found + len(step.strip())
    return starts


def token_steps(pieces: Sequence[str], steps: Sequence[str]) -> list[int]:
    """Return the step of each token, counted from 0; no steps make the whole answer one.

    A token belongs to the step in which its last character lies, so that a space that begins a word
    goes with the word. What stands before the first step, and the end token, go with the nearest.

    Args:
        pieces: the text of each token; a part of a character, which is U+FFFD, has no length.
        steps: in their order.

    Raises:
        ValueError: the steps are not in the text.
    """
    texts = [piece.replace(DAMAGED, "") for piece in pieces]
    if not steps:
        return [0] * len(texts)
    starts = step_starts("".join(texts), [step.replace(DAMAGED, "") for step in steps])
    found, end = [], 0
    for text in texts:
        end += len(text)
        found.append(max(0, bisect_right(starts, max(0, end - 1)) - 1))
    return found
