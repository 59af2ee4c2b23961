"""A run folder as it lies on disk, however much of it is there: running, failed, without judgement.

Nothing here trusts a file: damaged lines and files are left out, counted, and said in the report.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from melior.records import Facts

PARTS = (
    "run.json",
    "metrics.jsonl",
    "evaluation.json",
    "samples.jsonl",
    "data.json",
    "config.yaml",
)
NOT_CURVES = {"step", "epoch", "time"}


@dataclass(frozen=True)
class Run:
    """What is known of one run."""

    folder: Path
    label: str
    """Short, and unlike those of the runs beside it."""
    about: Facts
    config: Facts
    """Options by dotted name."""
    data: Facts
    steps: tuple[Facts, ...]
    """Lines of `metrics.jsonl`, one for each step and one for each evaluation."""
    evaluation: Facts
    health: Facts
    """What `training.health` found."""
    samples: tuple[Facts, ...]
    scores: tuple[Facts, ...]
    has_model: bool
    damage: tuple[str, ...]
    """Sentences on what could not be read."""

    @property
    def status(self) -> str:
        """`running`, `finished`, `stopped`, `failed`, or `unknown` where nothing says."""
        return str(self.about.get("status") or "unknown")

    @property
    def comparisons(self) -> list[Facts]:
        """Comparisons that have a difference; the first is the one that decides."""
        rows = mappings(self.evaluation.get("comparisons"))
        return [row for row in rows if number(row.get("difference")) is not None]

    @property
    def last_step(self) -> int:
        """The highest step with a line of metrics; 0 before the first."""
        return int(max((number(row.get("step")) or 0 for row in self.steps), default=0))

    def curve(self, key: str) -> list[tuple[float, float]]:
        """Return step and value wherever a metric was written."""
        points = [(number(row.get("step")), number(row.get(key))) for row in self.steps]
        return [(step, value) for step, value in points if step is not None and value is not None]


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """Read run folders.

    Raises:
        FileNotFoundError: naming a folder that is missing or holds no run.
    """
    return [read_run(f, label) for f, label in zip(folders, _labels(folders), strict=True)]


def read_run(folder: Path, label: str = "") -> Run:
    """Read one run folder; every part of it may be missing."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing there"
        raise FileNotFoundError(f"{folder}: a run folder is needed; found {found}")
    if not any((folder / part).exists() for part in PARTS):
        raise FileNotFoundError(
            f"{folder}: a run folder holds run.json, metrics.jsonl, ...; found "
            f"{_listing(folder)}; give the folder that a recipe wrote with --out"
        )
    damage: list[str] = []
    return Run(
        folder=folder,
        label=label or folder.resolve().name,
        about=_one(folder / "run.json", json.loads, damage),
        config=dict(_flat(_one(folder / "config.yaml", yaml.safe_load, damage))),
        data=_one(folder / "data.json", json.loads, damage),
        steps=_last_of_each_step(_lines(folder / "metrics.jsonl", damage)),
        evaluation=_one(folder / "evaluation.json", json.loads, damage),
        health=_one(folder / "health.json", json.loads, damage),
        samples=tuple(_lines(folder / "samples.jsonl", damage)),
        scores=tuple(_lines(folder / "scores.jsonl", damage)),
        has_model=(folder / "model").is_dir(),
        damage=tuple(damage),
    )


def number(value: object) -> float | None:
    """Return a finite number as a float, and None for all else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def numbers(values: object) -> list[float]:
    """Return the finite numbers of a list."""
    found = [number(value) for value in values] if isinstance(values, list) else []
    return [value for value in found if value is not None]


def mapping(value: object) -> Facts:
    """Return a mapping as it is, and an empty one for all else."""
    return value if isinstance(value, dict) else {}


def mappings(value: object) -> list[Facts]:
    """Return the mappings of a list."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def spoken(prompt: object) -> list[tuple[str, str]]:
    """Return role and text of each turn of a prompt, given as text or as turns."""
    if isinstance(prompt, list):
        return [
            (str(turn.get("role", "")), _content(turn.get("content"))) for turn in mappings(prompt)
        ]
    return [("user", _content(prompt))]


def _content(content: object) -> str:
    if isinstance(content, str):
        return content
    return "" if content is None else json.dumps(content, ensure_ascii=False)


def _one(path: Path, parse: Callable[[str], Any], damage: list[str]) -> Facts:
    if not path.exists():
        return {}
    try:
        value = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError, RecursionError):
        value = None
    if not isinstance(value, dict):
        damage.append(f"{path.name} could not be read and is left out.")
    return mapping(value)


def _lines(path: Path, damage: list[str]) -> list[Facts]:
    if not path.exists():
        return []
    rows: list[Facts] = []
    wrong = 0
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            wrong += 1
    if wrong:
        lines = "1 damaged line" if wrong == 1 else f"{wrong} damaged lines"
        damage.append(f"{path.name}: {lines} left out of {wrong + len(rows)}.")
    return rows


def _last_of_each_step(rows: Iterable[Facts]) -> tuple[Facts, ...]:
    """Keep what a resumed run wrote last of a step: its earlier lines led nowhere."""
    merged: dict[float, dict[str, Any]] = {}
    for row in rows:
        step = number(row.get("step"))
        if step is not None:
            merged.setdefault(step, {}).update(row)
    return tuple(merged[step] for step in sorted(merged))


def _flat(config: Facts, before: str = "") -> Iterable[tuple[str, Any]]:
    for key, value in config.items():
        name = f"{before}{key}"
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


def _labels(folders: Sequence[Path]) -> list[str]:
    """Name each folder by as few of its last parts as tell them apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max((len(own) for own in parts), default=1) + 1):
        names = ["/".join(own[-depth:]) for own in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{own[-1]} ({place + 1})" for place, own in enumerate(parts)]


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return (
        ", ".join(names[:4]) + (", ..." if len(names) > 4 else "") if names else "an empty folder"
    )
