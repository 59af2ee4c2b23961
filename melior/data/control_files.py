"""Data sets of logged transitions: read from Parquet, NumPy's npz and Minari, and written.

A set is its transitions and what is known of them: the task, who acted, and the returns to which a
return is compared. npz and Parquet hold the latter as JSON beside the columns; a file that does not
is read all the same.
"""

from __future__ import annotations

import importlib
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from melior.data.control import Array, Columns, Transitions, transitions

MINARI: Final = "minari:"
KINDS: Final = (".npz", ".parquet")
_ABOUT: Final = "melior"
"""Name of the JSON in a file: a key of Parquet's metadata, an array of a npz."""


@dataclass(frozen=True)
class Reference:
    """Two returns of a task between which returns are compared."""

    random: float
    """Of actions drawn evenly: 0 when normalised."""
    expert: float
    """Of the best that is known: 100."""

    def __post_init__(self) -> None:
        """Check that there is something between them."""
        if not (np.isfinite([self.random, self.expert]).all() and self.random < self.expert):
            raise ValueError(
                f"reference: 'random' must be below 'expert', both finite; found {self.random:g} "
                f"and {self.expert:g}"
            )


@dataclass(frozen=True)
class About:
    """What is known of a data set."""

    task: str = ""
    """The environment's name in Gymnasium; empty where it is not known."""
    reference: Reference | None = None
    facts: Mapping[str, str | float] = field(default_factory=dict, hash=False)
    """Who acted, seeds, versions: whatever its maker found worth saying."""


@dataclass(frozen=True)
class Logged:
    """A data set."""

    transitions: Transitions
    about: About


def read_logged(source: str | Path) -> Logged:
    """Read a file, or `minari:NAME`, a set that Minari has on this machine.

    Raises:
        FileNotFoundError: there is no such file or set.
        ValueError: it is damaged, or no transitions can be made of it.
    """
    if str(source).startswith(MINARI):
        columns, about = _minari(str(source))
    else:
        path = Path(source)
        _known_kind(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file")
        columns, about = _npz(path) if path.suffix == ".npz" else _parquet(path)
    return Logged(transitions(columns, where=str(source)), about)


def write_logged(path: Path, logged: Logged) -> None:
    """Write a data set as npz or Parquet, whole or not at all."""
    _known_kind(path)
    about = json.dumps(asdict(logged.about))
    half = path.with_name(f".{path.stem}.part{path.suffix}")
    columns: dict[str, Array] = vars(logged.transitions)
    if path.suffix == ".npz":
        named: dict[str, Any] = {**columns, _ABOUT: np.array(about)}
        np.savez_compressed(half, **named)
    else:
        arrow, parquet = _need("pyarrow", path), _need("pyarrow.parquet", path)
        table = arrow.table({name: _arrow_column(column) for name, column in columns.items()})
        parquet.write_table(table.replace_schema_metadata({_ABOUT: about}), half)
    half.replace(path)


def _known_kind(path: Path) -> None:
    if path.suffix not in KINDS:
        raise ValueError(
            f"{path}: transitions are read from {', '.join(KINDS)} and {MINARI}NAME; found "
            f"{path.suffix or 'no suffix'!r}"
        )


def _npz(path: Path) -> tuple[Columns, About]:
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path}: needs a whole npz of numbers; found another kind, or a part")
    try:
        with np.load(path, allow_pickle=False) as file:
            columns = {name: file[name] for name in file.files}
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: needs a whole npz of numbers; found {error}") from error
    about = columns.pop(_ABOUT, None)
    return columns, _about(None if about is None else str(about), str(path))


def _parquet(path: Path) -> tuple[Columns, About]:
    arrow, parquet = _need("pyarrow", path), _need("pyarrow.parquet", path)
    try:
        table = parquet.read_table(path)
    except (OSError, arrow.ArrowException) as error:
        raise ValueError(f"{path}: needs a whole Parquet file; found {error}") from error
    columns = {name: _column(table[name], name, path) for name in table.column_names}
    said = (table.schema.metadata or {}).get(_ABOUT.encode())
    return columns, _about(said, str(path))


def _column(column: Any, name: str, path: Path) -> Array:
    """Turn a column of numbers, or of lists of as many numbers each, into an array."""
    arrow = _need("pyarrow", path)
    column = column.combine_chunks()
    if column.null_count:
        row = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False))[0] + 1
        raise ValueError(f"{path}:{row}: {name!r} must be there in each row; found null")
    kinds = arrow.types
    if not any(
        is_list(column.type)
        for is_list in (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list)
    ):
        return column.to_numpy(zero_copy_only=False)
    if kinds.is_fixed_size_list(column.type):
        widths = np.full(len(column), column.type.list_size)
    else:
        widths = np.diff(column.offsets.to_numpy())
    wrong = np.flatnonzero(widths != widths[:1])
    if wrong.size:
        raise ValueError(
            f"{path}:{wrong[0] + 1}: {name!r} must be as wide in each row, {widths[0]}; found "
            f"{widths[wrong[0]]}"
        )
    width = int(widths[0]) if len(widths) else 0
    return column.flatten().to_numpy(zero_copy_only=False).reshape(len(column), width)


def _arrow_column(column: Array) -> Any:
    if column.ndim == 1:
        return column
    arrow = importlib.import_module("pyarrow")
    return arrow.FixedSizeListArray.from_arrays(np.ravel(column), column.shape[1])


def _about(said: str | bytes | None, where: str) -> About:
    if said is None:
        return About()
    try:
        known = json.loads(said)
        reference = known.pop("reference")
        return About(**known, reference=reference and Reference(**reference))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{where}: {_ABOUT!r} must say what the transitions are, as collect writes it; found "
            f"{error}"
        ) from error


def _minari(source: str) -> tuple[Columns, About]:
    """Read a set of Minari's: an episode has one observation more than it has steps."""
    minari = _need("minari", source)
    name = source.removeprefix(MINARI)
    here = minari.list_local_datasets()
    if name not in here:
        folder = os.environ.get("MINARI_DATASETS_PATH", "~/.minari/datasets")
        raise FileNotFoundError(
            f"{source}: there is no such set in {folder}, which has {sorted(here)}; minari "
            f"download {name}"
        )
    data = minari.load_dataset(name)
    low, high = _range(data.action_space, source)
    parts: dict[str, list[Array]] = {}
    for number, episode in enumerate(data.iterate_episodes()):
        if not isinstance(episode.observations, np.ndarray):
            raise ValueError(
                f"{source}: observations must be vectors; found "
                f"{type(episode.observations).__name__} in episode {number}"
            )
        columns = {
            "observations": episode.observations[:-1],
            "actions": 2 * (episode.actions - low) / (high - low) - 1,
            "rewards": episode.rewards,
            "next_observations": episode.observations[1:],
            "terminals": episode.terminations,
            "timeouts": episode.truncations,
        }
        for key, column in columns.items():
            parts.setdefault(key, []).append(column)
    return {key: np.concatenate(column) for key, column in parts.items()}, _about_minari(data)


def _range(space: Any, source: str) -> tuple[Array, Array]:
    """Return what actions lie between: Minari keeps the task's own range; ours is from -1 to 1.

    Raises:
        ValueError: actions are no vectors, or have no bounds.
    """
    low, high = (np.asarray(getattr(space, end, np.inf), float) for end in ("low", "high"))
    if low.ndim != 1 or not (np.isfinite([low, high]).all() and (low < high).all()):
        raise ValueError(f"{source}: actions must be vectors within bounds; found {space}")
    return low, high


def _about_minari(data: Any) -> About:
    spec, said = data.env_spec, data.storage.metadata
    low, high = said.get("ref_min_score"), said.get("ref_max_score")
    known = low is not None and high is not None
    reference = Reference(float(low), float(high)) if known else None
    return About(spec.id if spec else "", reference, {"minari": data.spec.dataset_id})


def _need(module: str, where: str | Path) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        extra = "data" if module.startswith("pyarrow") else "control"
        raise ValueError(
            f"{where}: reading or writing this needs the package {module.split('.')[0]!r}, which "
            f"is not installed; pip install 'melior[{extra}]'"
        ) from error
