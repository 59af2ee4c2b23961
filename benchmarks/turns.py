"""How a worker talks with the benchmark that started it: one JSON line in, one JSON line out.

A worker computes only between a line that it received and its answer, so that its CPU time can be
read from outside, and prints nothing else to its standard output. Standard library alone: the
rival's worker imports it too.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

Message = dict[str, Any]


class Line:
    """The worker's end."""

    def __init__(self) -> None:
        self._answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)  # what libraries print goes to standard error

    def wait(self) -> Message:
        """Wait for the next request; the process ends when nobody is there to ask."""
        text = sys.stdin.readline()
        if not text:
            sys.exit(0)
        return json.loads(text)

    def answer(self, message: Message) -> None:
        """Hand the turn back."""
        self._answers.write(json.dumps(message) + "\n")
        self._answers.flush()
