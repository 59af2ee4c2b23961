"""Tensors computed once and kept in the user's cache, under a key of all they depend on."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def cache_folder() -> Path:
    """Return the folder for what melior makes once and keeps: $MELIOR_CACHE or the user's cache."""
    own = os.environ.get("MELIOR_CACHE")
    if own:
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "melior"


def cached(
    kind: str, key: str, compute: Callable[[], dict[str, Tensor]]
) -> tuple[dict[str, Tensor], bool]:
    """Return tensors from the cache, or compute and keep them, and whether they were there.

    A damaged file is computed anew. Where the cache cannot be written the result is not kept.
    """
    path = cache_folder() / kind / f"{key}.safetensors"
    try:
        return load_file(path), True
    except (FileNotFoundError, SafetensorError):
        tensors = compute()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".unfinished-") as scratch:
            file = Path(scratch) / path.name
            save_file(tensors, file)
            file.replace(path)
    except OSError:
        pass  # a cache that is full or read-only costs time, not the run
    return tensors, False
