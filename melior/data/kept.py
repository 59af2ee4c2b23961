"""JSON values kept on disk under keys of what they were made from; programs may share them."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path
from typing import Any

PATIENCE = 60
"""Seconds that a program waits for others to let go of the file."""


class Kept:
    """A file of values by key; each is on disk as soon as it is put.

    Raises:
        OSError: the file cannot be written.
        ValueError: what is there is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = sqlite3.connect(path, timeout=PATIENCE, isolation_level=None)
            self._write_ahead()
            # A crash of the program loses nothing; a power cut may lose the last values.
            self._file.execute("PRAGMA synchronous = NORMAL")
            self._file.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT)")
        except (OSError, sqlite3.OperationalError) as error:
            raise PermissionError(
                f"{path}: needs a place that can be written; {error}; set MELIOR_CACHE to one"
            ) from error
        except sqlite3.DatabaseError as error:
            raise ValueError(f"{path}: damaged ({error}); delete it to begin anew") from error

    def get(self, key: str) -> Any | None:
        """Return what was put under a key, or None."""
        row = self._file.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def put(self, key: str, value: Any) -> None:
        """Keep a value, in place of any that was there."""
        self._file.execute("REPLACE INTO kept VALUES (?, ?)", (key, json.dumps(value)))

    def _write_ahead(self) -> None:
        """Let readers and a writer not wait for each other.

        SQLite waits for others before everything but this, where two programs begin at once.
        """
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                self._file.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > give_up:
                    raise
                time.sleep(0.01)

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()
