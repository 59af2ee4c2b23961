"""The folder that a run leaves: what was run, on what, with which numbers, and how it ended.

Of processes that share the work the first one writes it; the others go through the same calls.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

import torch
from rich.console import Console

import melior
from melior.config import config_to_dict, read_config
from melior.records import Metrics
from melior.training import processes
from melior.training.checkpoint import refuse_changes
from melior.training.folder import OWNED, check_folder
from melior.training.loop import Interrupted
from melior.training.trackers import Tracker, check_installed, open_trackers


class Run:
    """A run folder that is being written; made by `Run.create`, closed by `with` or `finish`."""

    def __init__(
        self,
        folder: Path,
        record: dict[str, Any],
        *,
        options: Mapping[str, Any],
        report_to: Sequence[str],
    ) -> None:
        self.folder = folder
        self.record = record
        self._options = options
        self._report_to = report_to
        self._trackers: tuple[Tracker, ...] | None = None
        self._start = 0
        self._began = time.monotonic()
        self._stream = _opened(folder)
        write_yaml(folder / "config.yaml", options)
        write_json(folder / "run.json", record)

    @classmethod
    def create(
        cls,
        folder: str | Path,
        recipe: str,
        config: object,
        command: Sequence[str],
        *,
        paper: str = "",
        resume: bool = False,
        overwrite: bool = False,
        allow_changes: bool = False,
        report_to: Iterable[str] = (),
    ) -> Run:
        """Begin a run in a folder that holds none, or go on with the one that it holds.

        Args:
            folder: made where it does not exist.
            recipe: the command's name.
            config: a dataclass; its options are kept in `config.yaml`.
            command: what the user typed.
            paper: where the method comes from.
            resume: the folder must hold a run; `rewind` then says where it goes on.
            overwrite: delete the run that the folder holds.
            allow_changes: resume although options differ.
            report_to: names of trackers.

        Raises:
            ValueError: the folder holds a run and neither way out is given, there is none to
                resume, options differ from it, or a tracker is not installed.
        """
        place = Path(folder)
        names = tuple(report_to)
        check_installed(names)
        options = {k: v for k, v in config_to_dict(config).items() if k not in _OF_THE_START}

        def begin() -> dict[str, Any]:
            check_folder(place, resume=resume, overwrite=overwrite)
            if resume:
                return _resumed(place, recipe, options, allow_changes=allow_changes)
            _delete_run(place)
            place.mkdir(parents=True, exist_ok=True)
            return _new_record(recipe, paper, processes.command(command))

        record = processes.from_first(begin)
        return cls(place, record, options=options, report_to=names)

    def __enter__(self) -> Run:
        """Begin."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Note how the run ended; an interruption also says how to go on."""
        if error is None:
            self.finish("finished")
        elif isinstance(error, Interrupted):
            self.finish("stopped", str(error))
            advice = f"go on with: {self.resume_command}"
            raise Interrupted(error.step, error.signal_number, advice) from error
        elif isinstance(error, KeyboardInterrupt):
            self.finish("stopped", "interrupted")
            raise KeyboardInterrupt(f"stopped; go on with: {self.resume_command}") from error
        else:
            self.finish("failed", processes.reason(error))

    @property
    def resume_command(self) -> str:
        """What to type to go on with the run.

        Over several machines torchrun alone knows where they meet: it is to be started as before.
        """
        if self.record["command"][:2] == ["torchrun", "--nnodes"]:
            return "torchrun on every machine, started as before, with --resume"
        words = [word for word in self.record["command"] if word not in ("--overwrite", "--resume")]
        return shlex.join([*words, "--resume"])

    def rewind(self, step: int) -> None:
        """Drop the numbers of steps after the one that the run goes on from."""
        if not processes.is_first():
            return
        self._stream.close()
        file = self.folder / "metrics.jsonl"
        kept = [(line, row) for line, row in _rows(file) if row["step"] <= step]
        write_text(file, "".join(f"{line}\n" for line, _ in kept))
        self._stream = _opened(self.folder)
        self._start = step
        passed = max((row.get("time", 0.0) for _, row in kept), default=0.0)
        self._began = time.monotonic() - passed

    def append(self, step: int, metrics: Metrics) -> None:
        """Write the numbers of a step: a hook."""
        if not processes.is_first():
            return
        seconds = round(time.monotonic() - self._began, 3)
        finite = {name: v if math.isfinite(v) else None for name, v in metrics.items()}
        try:
            self._stream.write(json.dumps({"step": step, "time": seconds} | finite) + "\n")
        except OSError as error:
            raise OSError(
                f"{self.folder / 'metrics.jsonl'}: the numbers of step {step} must be written;"
                f" found {error.strerror}; make room, then go on with: {self.resume_command}"
            ) from error
        if self._trackers is None:
            opened = open_trackers(self._report_to, self.folder, self._options, start=self._start)
            self._trackers = tuple(opened)
        self._tell(lambda tracker: tracker.log(step, metrics))

    def note(self, sentence: str) -> None:
        """Say a sentence about the run once, and keep it in its record."""
        if sentence in self.record.get("notes", []) or not processes.is_first():
            return  # a resumed run comes by the same place again
        Console(stderr=True).print(f"note: {sentence}", highlight=False, markup=False)
        self.record["notes"] = [*self.record.get("notes", []), sentence]
        write_json(self.folder / "run.json", self.record)

    def retract(self, beginnings: tuple[str, ...]) -> None:
        """Drop the notes that begin so: a run that goes on takes them back."""
        notes = self.record.get("notes", [])
        if any(one.startswith(beginnings) for one in notes):
            self.record["notes"] = [one for one in notes if not one.startswith(beginnings)]
            write_json(self.folder / "run.json", self.record)

    def finish(self, status: str, reason: str = "") -> None:
        """Close the run as `finished`, `stopped` or `failed`."""
        is_full = (
            suppress(OSError) if status == "failed" else nullcontext()
        )  # why it failed is said
        with is_full:
            self._stream.close()
        self._tell(lambda tracker: tracker.close())
        self.record |= {"status": status, "reason": reason, "finished": _now()}
        with is_full:
            write_json(self.folder / "run.json", self.record)

    def _tell(self, act: Callable[[Tracker], None]) -> None:
        """Let each tracker act, and go on without one that fails."""
        for tracker in self._trackers or ():
            try:
                act(tracker)
            except Exception as error:  # foreign code of every kind, which must not end a run
                self._trackers = tuple(one for one in self._trackers or () if one is not tracker)
                self.note(
                    f"a tracker failed ({type(error).__name__}: {error}) and gets no more numbers;"
                    " all of them are in metrics.jsonl"
                )


def last_metrics(folder: Path) -> Metrics:
    """Return the numbers of the last training step that was written."""
    rows = [row for row in read_rows(folder) if "loss" in row]
    return rows[-1] if rows else {}


def read_rows(folder: Path) -> list[Metrics]:
    """Return the numbers of all steps and evaluations that were written, each with its `step`."""
    found = [row for _, row in _rows(folder / "metrics.jsonl")]
    return [{name: value for name, value in row.items() if value is not None} for row in found]


def write_json(path: Path, value: object) -> None:
    """Write JSON so that the file is whole or as it was before."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def write_json_lines(path: Path, rows: Iterable[object]) -> None:
    """Write JSON lines so that the file is whole or as it was before."""
    dump = partial(json.dumps, ensure_ascii=False, allow_nan=False)
    write_text(path, "".join(f"{dump(row)}\n" for row in rows))


def write_yaml(path: Path, value: object) -> None:
    """Write YAML so that the file is whole or as it was before."""
    import yaml

    write_text(path, yaml.safe_dump(value, sort_keys=False, allow_unicode=True))


def write_text(path: Path, content: str) -> None:
    """Write text so that the file is whole or as it was before."""
    if not processes.is_first():
        return
    temporary = path.with_name(f".{path.name}.partial")
    try:
        with temporary.open("w", encoding="utf-8") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _opened(folder: Path) -> TextIO:
    """Open the file of numbers, to go on with; for processes that write nothing, no file."""
    file = folder / "metrics.jsonl" if processes.is_first() else Path(os.devnull)
    return file.open("a", buffering=1, encoding="utf-8")


_OF_THE_START = frozenset({"allow_changes", "overwrite", "resume"})
"""Options of how a run is begun; config.yaml, which may begin another, is without them."""


def _resumed(
    place: Path, recipe: str, options: Mapping[str, Any], *, allow_changes: bool
) -> dict[str, Any]:
    """Return the record of the run that a folder holds, to go on with."""
    file = place / "run.json"
    try:
        record = dict(json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file}: JSON is needed; found {error}; use --overwrite") from error
    if not allow_changes:
        was: dict[str, Any] = {"recipe": record.get("recipe")} | read_config(place / "config.yaml")
        refuse_changes(was, {"recipe": recipe, **options}, where=place)
    again = [*record.get("resumed", []), _now()]
    return record | {"status": "running", "reason": "", "finished": "", "resumed": again}


def _new_record(recipe: str, paper: str, command: Sequence[str]) -> dict[str, Any]:
    return {
        "command": list(command),
        "recipe": recipe,
        "paper": paper,
        "status": "running",
        "reason": "",
        "started": _now(),
        "finished": "",
        "versions": _versions(),
        "machine": _machine(),
        "git": _git(),
    }


def _delete_run(place: Path) -> None:
    for name in OWNED:
        path = place / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _rows(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the whole lines of a metrics file: a killed run may have left half a line."""
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield line, row


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _versions() -> dict[str, str]:
    found = {"melior": melior.__version__, "python": platform.python_version()}
    return found | {name: version(name) for name in ("torch", "transformers")}


def _machine() -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found = {"cpu": _processor(), "cores": cores, "platform": platform.platform()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git() -> str:
    """Return the commit of the code or data around the run, if git keeps it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return found.stdout.strip()
