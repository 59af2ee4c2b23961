"""`melior report`: one HTML page of a run, or of several side by side, and the essentials here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

RunFolders = Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]


@dataclass(frozen=True)
class Config:
    """Write one self-contained HTML page of run folders, and print the essentials."""

    runs: RunFolders
    """Folders that recipes wrote with --out; running and failed runs are welcome."""
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])] = ""
    """The page; by default report.html in the folder of a single run, else in this one."""

    def __post_init__(self) -> None:
        """Check that there is something to report."""
        if not self.runs:
            raise ValueError("report: at least one run folder is needed; found none")
        place = Path(self.out)
        if self.out and place.exists() and not place.is_file():  # a device would be replaced, too
            found = "a folder" if place.is_dir() else "a device"
            raise ValueError(f"out: a file is needed; found {found}: {self.out}")


def run(config: Config) -> None:
    """Write the page and print the essentials."""
    from melior.report import rounds, terminal

    folders, out = (
        [Path(folder) for folder in config.runs],
        Path(config.out) if config.out else None,
    )
    if len(folders) == 1 and rounds.has_rounds(folders[0]):
        rounds.present(folders[0], out)
    else:
        terminal.present(folders, out)
