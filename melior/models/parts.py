"""Small networks as folders: safetensors, and JSON of what they are made from."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

Part = TypeVar("Part", bound=nn.Module)
WEIGHTS, OPTIONS = "model.safetensors", "config.json"


def save_part(part: nn.Module, options: Mapping[str, Any], folder: Path) -> None:
    """Write a network's weights, and the options that it is made from, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"kind": type(part).__name__, **options}
    (folder / OPTIONS).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
    weights = {name: own.detach().contiguous().cpu() for name, own in part.state_dict().items()}
    save_file(weights, str(folder / WEIGHTS))


def read_options(folder: Path, kind: str, *, command: str) -> dict[str, Any]:
    """Return what networks of a kind are made from, as a command wrote it; needs no weights.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: it holds something else.
    """
    file = folder / OPTIONS
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder}: a folder of `{command}` is needed, such as runs/a/model; found no"
            f" {OPTIONS} there"
        )
    try:
        said = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file}: JSON is needed; found {error}") from error
    found = said.pop("kind", None) if isinstance(said, dict) else None
    if found != kind:
        raise ValueError(f"{folder}: {kind} are needed; found {found or 'another model'}")
    return dict(said)


def load_part(kind: type[Part], made: Callable[[Mapping[str, Any]], Part], folder: Path) -> Part:
    """Return the network of a folder, made from its options, with its weights.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder holds something else.
    """
    said = json.loads((folder / OPTIONS).read_text(encoding="utf-8"))
    found = said.pop("kind", None) if isinstance(said, dict) else None
    if found != kind.__name__:
        raise ValueError(f"{folder / OPTIONS}: 'kind' must be {kind.__name__}; found {found!r}")
    try:
        part = made(said)
        part.load_state_dict(load_file(str(folder / WEIGHTS)))
    except (TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: options and weights of one {kind.__name__} are needed;"
            f" found others: {error}"
        ) from error
    return part
