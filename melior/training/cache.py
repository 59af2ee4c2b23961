"""Tensors computed once and kept in the user's cache, under a key of all they depend on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from melior.training import processes


def cache_folder() -> Path:
    """Return the folder for what melior makes once and keeps: $MELIOR_CACHE or the user's cache."""
    own = os.environ.get("MELIOR_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "melior"


def cached(
    kind: str, key: str, compute: Callable[[], dict[str, Tensor]], *, least: int = 0
) -> tuple[dict[str, Tensor], bool]:
    """Return tensors from the cache, or compute and keep them, and whether they were there.

    What has fewer than `least` bytes is not kept.

    A damaged file is computed anew. Where the cache cannot be written the result is not kept. Of
    processes that share the work the first one looks and keeps; all compute together.
    """
    path = cache_folder() / kind / f"{key}.safetensors"
    known = processes.from_first(lambda: _known(path))
    if known is not None:
        return known, True
    tensors = compute()
    size = sum(tensor.nbytes for tensor in tensors.values())
    if processes.is_first() and size >= least:
        _keep(tensors, path)
    return tensors, False


def _known(path: Path) -> dict[str, Tensor] | None:
    try:
        return load_file(path)
    except (FileNotFoundError, SafetensorError):
        return None


def _keep(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unfinished-") as scratch:
            file = Path(scratch) / path.name
            save_file(tensors, file)
            file.replace(path)
    except OSError:
        pass  # a cache that is full or read-only costs time, not the run
