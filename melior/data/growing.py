"""A JSON-lines file that grows record by record, so that what was done stays when a run stops."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from melior.data.files import as_row
from melior.records import Group, Pair


@contextmanager
def growing(path: Path, *, start: int = 0) -> Iterator[Callable[[Pair | Group], None]]:
    """Open a file to put records behind its first `start` lines; each is written at once."""
    if start:
        with path.open("rb+") as old:
            for _ in range(start):
                old.readline()
            old.truncate(old.tell())
    with path.open("ab" if start else "wb") as file:

        def put(record: Pair | Group) -> None:
            file.write((json.dumps(as_row(record)) + "\n").encode())
            file.flush()

        yield put


def whole_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of such a file; a last one that was cut off while it was written is left out.

    Raises:
        ValueError: a line before the last is not JSON.
    """
    rows = []
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: needs one JSON object; {error}") from error
    return rows
