"""A run of several rounds as one page."""

from __future__ import annotations

from pathlib import Path

from melior.report import terminal


def present(folder: Path) -> None:
    """Write the page and print the essentials."""
    terminal.present([folder])
