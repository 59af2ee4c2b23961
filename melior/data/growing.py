"""A JSON-lines file that grows record by record, so that what was done stays when a run stops."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from melior.data.files import as_row, write_records
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


@contextmanager
def opened(out: str, *, start: int = 0) -> Iterator[Callable[[Pair | Group], object]]:
    """Open such a file, or standard output where `out` is `-`, to put records."""
    if out == "-":
        yield lambda record: write_records("-", [record])
        return
    with growing(Path(out), start=start) as put:
        yield put


def rows_so_far(out: str, *, resume: bool) -> Iterator[dict[str, Any]]:
    """Return the rows that an earlier run has written, one at a time; a new file has none.

    Nor has `-`.

    Raises:
        FileNotFoundError: the file's folder does not exist.
        FileExistsError: there are rows, and nobody said to go on with them.
        ValueError: a line before the last is not JSON.
    """
    path = Path(out)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"--out: the folder of {path} does not exist; make it")
    if out == "-" or not path.exists():
        return iter(())
    if not resume and path.stat().st_size:
        n = n_whole_rows(path)
        raise FileExistsError(
            f"{path}: needs to be new; found {n} rows; --resume goes on with them"
        )
    return whole_rows(path)


def whole_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows of such a file; a last one that was cut off while it was written is left out.

    Raises:
        ValueError: a line before the last is not JSON.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: needs one JSON object; {error}") from error
            yield row


def n_whole_rows(path: Path) -> int:
    """Count the rows of such a file without reading them, but for one that was cut off.

    A run that is stopped counts by its file: the signal may come between a row and its count.
    """
    if not path.exists():
        return 0
    with path.open("rb") as file:
        return sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b""))
