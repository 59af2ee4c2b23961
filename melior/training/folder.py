"""Which folder a run may be written to; needs no torch, so that a wrong one is known at once."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

OWNED = (
    "checkpoints",
    "config.yaml",
    "data.json",
    "evaluation.json",
    "health.json",
    "metrics.jsonl",
    "model",
    "report.html",
    "run.json",
    "samples.jsonl",
    "scores.jsonl",
    "tensorboard",
    "wandb",
)
"""What a run may leave, and what --overwrite deletes: nothing else in the folder is touched."""


def check_folder(place: Path, *, resume: bool, overwrite: bool) -> None:
    """Check that a run may begin, or go on, in a folder.

    A run that failed before its first checkpoint is in nobody's way and may be replaced.

    Raises:
        ValueError: it may not, with the ways out.
    """
    if resume and overwrite:
        raise ValueError("--resume and --overwrite exclude each other; found both; leave one out")
    above = next(parent for parent in (place, *place.parents) if parent.exists())
    if not above.is_dir():
        raise ValueError(f"{place}: a folder is needed for the run; found a file: {above}")
    if not os.access(above, os.W_OK | os.X_OK):
        raise PermissionError(f"{place}: may not be written to; found {above} closed to writing")
    holds_run = (place / "run.json").exists()
    if resume and not holds_run:
        raise ValueError(f"{place}: a run to resume is needed; found none; leave --resume out")
    if holds_run and not (resume or overwrite or _came_to_nothing(place)):
        raise ValueError(
            f"{place}: a folder without a run is needed; found one; go on with it by --resume, "
            "replace it by --overwrite, or choose another folder"
        )
    others = [name for name in OWNED if (place / name).exists()]
    if others and not holds_run and not _was_cut_off(place, others):
        raise ValueError(
            f"{place}: a folder without {', '.join(others)} is needed, since the run will write "
            "there; found them, of no run; choose another folder"
        )


def _was_cut_off(place: Path, others: Sequence[str]) -> bool:
    """Say whether a run was killed in the moment before it wrote its record."""
    is_early = set(others) <= {"metrics.jsonl", "config.yaml"} and "metrics.jsonl" in others
    return is_early and not (place / "metrics.jsonl").stat().st_size


def _came_to_nothing(place: Path) -> bool:
    """Say whether the folder's run failed before it left a checkpoint."""
    try:
        record = json.loads((place / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    has_steps = any((place / "checkpoints").glob("step-*"))
    return isinstance(record, dict) and record.get("status") == "failed" and not has_steps
