"""Checkpoints that are whole or not there, and resume to the same bits; no pickle.

A checkpoint is a folder `step-000050` of `state.safetensors` (tensors; a file from each process
where several share the work), `state.json` (numbers and words) and `manifest.json`, which names
every file with its size and SHA-256 and says what run it belongs to. It is written beside its
place, flushed to the disk, and renamed into it. Any number of processes goes on from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from safetensors import SafetensorError
from torch import Tensor

from melior.training import processes, shards

Kept = TypeVar("Kept")
State = dict[str, Tensor | int | float | str]
"""What is kept of a thing; names may hold slashes."""

FREE = frozenset(
    {
        "allow_changes",
        "device",
        "eval_steps",
        "gradient_checkpointing",
        "max_tokens",
        "out",
        "overwrite",
        "padded",
        "report_to",
        "resume",
        "save_steps",
        "save_total_limit",
    }
)
"""Options that may change from one part of a run to the next: they leave the method as it is."""


@runtime_checkable
class Stateful(Protocol):
    """Whatever a run must find again as it was: a step, generators, a place in the data."""

    def state(self) -> State:
        """Return all that what comes next depends on."""

    def load_state(self, state: State) -> None:
        """Go back to a state."""


class Generators:
    """The random numbers of a run: its generators by name, and torch's own, which dropout uses."""

    def __init__(self, generators: Mapping[str, torch.Generator] = {}) -> None:
        self._generators = dict(generators)

    def state(self) -> State:
        """Return the generators' states as bytes."""
        state: State = {f"of/{name}": g.get_state() for name, g in self._generators.items()}
        state[_own("torch")] = torch.get_rng_state()
        if torch.cuda.is_available():
            state[_own("cuda")] = torch.cuda.get_rng_state()
        return state

    def load_state(self, state: State) -> None:
        """Take the generators back; torch's own only where this process left some."""
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        for name, generator in self._generators.items():
            generator.set_state(tensors[f"of/{name}"])
        if _own("torch") in tensors:
            torch.set_rng_state(tensors[_own("torch")])
        if _own("cuda") in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors[_own("cuda")])


def under(prefix: str, state: Mapping[str, Kept]) -> dict[str, Kept]:
    """Return the part of a state whose names begin so, without the beginning."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def _own(name: str) -> str:
    """Return under which name a process keeps what each has of its own."""
    return name if processes.is_first() else f"{name}/{processes.place()}"


class Checkpoints:
    """The checkpoints of one run: its parts, what it is about, and how many are kept."""

    def __init__(
        self,
        folder: Path,
        parts: Mapping[str, Stateful],
        *,
        about: Mapping[str, Any],
        keep: int = 2,
    ) -> None:
        self.folder = folder
        self._parts = dict(parts)
        self._about = about
        self._keep = keep
        self._saved = 0

    def save(self, step: int) -> None:
        """Leave a checkpoint of a step, unless that was done just now."""
        if step != self._saved:
            save(self.folder, step, self._parts, about=self._about, keep=self._keep)
            self._saved = step

    def restore(self, *, allow_changes: bool = False) -> tuple[int, str]:
        """Go back to the newest whole checkpoint.

        Returns:
            Its step, 0 where there is none; and what had to be passed over, for the user to read.

        Raises:
            ValueError: options, data or loss are not those of the checkpoint.
        """
        checkpoint, note = processes.from_first(lambda: newest(self.folder))
        if checkpoint is None:
            return 0, note
        if not allow_changes:
            refuse_changes(checkpoint.about, self._about, where=checkpoint.folder)
        checkpoint.load(self._parts)
        self._saved = checkpoint.step
        return checkpoint.step, note


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on the disk."""

    folder: Path
    step: int
    about: Mapping[str, Any]
    """What run it belongs to: options, data and loss."""

    def load(self, parts: Mapping[str, Stateful]) -> None:
        """Take every part back to its state.

        Raises:
            ValueError: the checkpoint is of other parts.
        """
        now = _state(parts)
        tensors = shards.read(self.folder, {k: v for k, v in now.items() if isinstance(v, Tensor)})
        state: State = {**tensors, **_read(self.folder / "state.json")}
        found = {name.split("/", 1)[0] for name in state}
        if found != set(parts):
            raise ValueError(f"{self.folder}: {sorted(parts)} are needed; found {sorted(found)}")
        for name, part in parts.items():
            mine = {
                k.removeprefix(f"{name}/"): v for k, v in state.items() if k.startswith(f"{name}/")
            }
            part.load_state(mine)


def save(
    folder: Path, step: int, parts: Mapping[str, Stateful], *, about: Mapping[str, Any], keep: int
) -> Path:
    """Write a checkpoint of a step, then delete all but the last `keep`.

    Later ones, of a future that was given up by resuming at an earlier step, go too.

    Raises:
        OSError: the disk is full or cannot be written; nothing half-written is left.
    """
    place = folder / f"step-{step:06d}"
    state = _state(parts)
    tensors = {k: v.detach().contiguous() for k, v in state.items() if isinstance(v, Tensor)}
    with _aside(place) as temporary:
        shards.write(tensors, temporary)
        if processes.is_first():
            _write(temporary / "state.json", {k: v for k, v in state.items() if k not in tensors})
            files = {file.name: _fingerprint(file) for file in sorted(temporary.iterdir())}
            _write(
                temporary / "manifest.json",
                {"format": 1, "step": step, "about": dict(about), "files": files},
            )
    if processes.is_first():
        kept = [number for number, _ in _checkpoints(folder) if number <= step][-keep:]
        for number, old in _checkpoints(folder):
            if number not in kept:
                _remove(old)
    return place


def _state(parts: Mapping[str, Stateful]) -> State:
    return {f"{name}/{key}": v for name, part in parts.items() for key, v in part.state().items()}


def newest(folder: Path) -> tuple[Checkpoint | None, str]:
    """Return the newest whole checkpoint, and what had to be passed over (empty if nothing)."""
    notes: list[str] = []
    for step, place in reversed(list(_checkpoints(folder))):
        try:
            return Checkpoint(place, step, _checked(place)["about"]), "; ".join(notes)
        except (OSError, ValueError) as error:
            notes.append(f"{place}: passed over, since it is damaged: {error}")
    return None, "; ".join(notes)


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say, one sentence each, how a run differs from what it was; options that are free do not."""
    sentences = []
    for name in sorted((saved.keys() | now.keys()) - FREE):
        was, is_now = saved.get(name, _ABSENT), now.get(name, _ABSENT)
        if isinstance(was, Mapping) and isinstance(is_now, Mapping):
            sentences += differences(was, is_now)
        elif json.dumps(was) != json.dumps(is_now):
            sentences.append(f"{name} was {was}, is now {is_now}")
    return sentences


def refuse_changes(saved: Mapping[str, Any], now: Mapping[str, Any], *, where: Path) -> None:
    """Check that a run goes on as it began.

    Raises:
        ValueError: naming every difference, and the way out.
    """
    found = differences(saved, now)
    if found:
        raise ValueError(
            f"{where}: to resume, options and data must be as they were; found that "
            f"{'; '.join(found)}; set them back, or add --allow-changes"
        )


_ABSENT = "not given"


def _checkpoints(folder: Path) -> Iterator[tuple[int, Path]]:
    numbers = {place: place.name.removeprefix("step-") for place in folder.glob("step-*")}
    found = [(int(n), place) for place, n in numbers.items() if n.isdecimal() and place.is_dir()]
    yield from sorted(found)


@contextmanager
def _aside(place: Path) -> Iterator[Path]:
    """Give a folder to fill, and put it in its place once it is whole and on the disk."""
    temporary = place.parent / f".partial-{place.name}"
    try:
        if processes.is_first():
            place.parent.mkdir(parents=True, exist_ok=True)
            for left in place.parent.glob(".partial-*"):
                shutil.rmtree(left)
            temporary.mkdir()
        processes.meet()
        yield temporary
        if processes.is_first():
            for file in (*temporary.iterdir(), temporary):
                _flush(file)
            if place.exists():
                _remove(place)
            temporary.rename(place)
            _flush(place.parent)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(
            f"{place}: a checkpoint must be written; found {reason}; nothing half-written is left "
            "and older checkpoints are whole; make room, then go on with --resume"
        ) from error
    finally:
        if processes.is_first():
            shutil.rmtree(temporary, ignore_errors=True)
    processes.meet()


def _remove(place: Path) -> None:
    """Delete a checkpoint so that it is gone at once, not file by file."""
    doomed = place.parent / f".partial-old-{place.name}"
    place.rename(doomed)
    shutil.rmtree(doomed)


def _flush(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fingerprint(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"sha256": digest, "bytes": file.stat().st_size}


def _checked(place: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint, once each file is as it says.

    Raises:
        ValueError: a file is not.
    """
    manifest = _read(place / "manifest.json")
    files = manifest.get("files")
    if not isinstance(files, dict) or "state.json" not in files or "about" not in manifest:
        raise ValueError("manifest.json is not as it was written")
    for name in files:
        if _fingerprint(place / name) != files[name]:
            raise ValueError(f"{name} is not as it was written")
    return manifest


def _read(file: Path) -> dict[str, Any]:
    content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} is not as it was written")
    return content


def _write(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
