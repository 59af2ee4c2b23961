"""Tidy rows as CSV and Parquet: a column for each thing that is known of any row; no torch."""

from __future__ import annotations

import csv
import importlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TableRow = Mapping[str, Any]
"""One row by column: text, numbers, or None where nothing is known."""


def write_csv(path: Path, rows: Sequence[TableRow]) -> None:
    """Write rows as CSV, whole or not at all; what is not known is an empty field."""
    half = path.with_name(f".{path.name}.part")
    with half.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns(rows))
        writer.writeheader()
        writer.writerows(rows)
    half.replace(path)


def write_parquet(path: Path, rows: Sequence[TableRow]) -> bool:
    """Write rows as Parquet, and say whether that was possible: it needs pyarrow."""
    if importlib.util.find_spec("pyarrow") is None:
        return False
    arrow, parquet = (importlib.import_module(name) for name in ("pyarrow", "pyarrow.parquet"))
    half = path.with_name(f".{path.name}.part")
    whole = {name: [row.get(name) for row in rows] for name in columns(rows)}
    parquet.write_table(arrow.table(whole), half)
    half.replace(path)
    return True


def columns(rows: Sequence[TableRow]) -> list[str]:
    """Return the names of all columns, in the order in which they first appear."""
    return list(dict.fromkeys(name for row in rows for name in row))
