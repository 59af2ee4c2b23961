"""What a round was made of, for the record, and what a whole run was, which it goes on with only.

Weights and files are known by their hashes, and places by where they lie in the run folder, so
that the same run in another folder, or after a stop, leaves the same words.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from melior.models.loading import folder_of
from melior.options import ModelOptions
from melior.training.checkpoint import refuse_changes
from melior.training.run import write_json

MADE_OF = "made_of.json"
"""In the run folder: the start model, and all else that a run learns from, by their hashes."""
MANIFEST = "manifest.json"
"""In a round's folder: what it was made of, written last."""


def refuse_others(out: Path, made_of: Mapping[str, Any]) -> None:
    """Refuse to go on with a run that was made of something else.

    Raises:
        ValueError: naming what is different, and the way out.
    """
    path = out / MADE_OF
    if path.exists():
        refuse_changes(json.loads(path.read_text(encoding="utf-8")), made_of, where=out)


def write_manifest(
    here: Path,
    policies: Sequence[ModelOptions],
    *,
    learned: Path,
    files: Sequence[str],
    about: Mapping[str, Any],
) -> None:
    """Close a round's folder by its manifest.

    Args:
        here: the round's folder, in the run's.
        policies: what answered in the round, and what it learned, if it did.
        learned: the folder of the run that learned.
        files: the names of the round's own files; those that are there are hashed.
        about: what else there is to say.
    """
    models = zip(("policy", "learned"), policies, strict=False)
    write_json(
        here / MANIFEST,
        {
            **about,
            "models": {name: identity(options, here.parent) for name, options in models},
            "template": _template(learned),
            "files": {name: _sha256(here / name) for name in files if (here / name).exists()},
        },
    )


def identity(options: ModelOptions, out: Path) -> dict[str, str]:
    """Return a model's name, seen from the run folder, and the hash of weights that lie here."""
    folder = folder_of(options.model)
    if not isinstance(folder, Path):
        return {"name": options.model, "revision": options.revision}
    is_inside = out.resolve() in folder.resolve().parents
    place = folder.resolve().relative_to(out.resolve()) if is_inside else options.model
    name = {"name": str(place)}
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {_sha256(path)}".encode())
    return name | {"sha256": digest.hexdigest()}


def _template(learned: Path) -> dict[str, Any]:
    path = learned / "data.json"
    if not path.exists():
        return {}
    chat = json.loads(path.read_text(encoding="utf-8"))["train"]["chat"]
    return {"name": chat["template"], "hash": chat["hash"]}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
