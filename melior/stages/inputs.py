"""What can be known to be wrong before anything heavy is imported: a fraction of a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from melior.data.files import read_pairs
from melior.models.names import find
from melior.options import DataOptions, LoopOptions, ModelOptions
from melior.training.folder import check_folder


def check_inputs(model: ModelOptions, data: DataOptions, loop: LoopOptions) -> None:
    """Look at the run folder, for the model, and at the first row of each source.

    Raises:
        FileNotFoundError: the model or a source is not there.
        ValueError: the folder holds a run, a source is empty, or its first row is no pair.
    """
    check_folder(Path(loop.out), resume=loop.resume, overwrite=loop.overwrite)
    find(model.model)
    _spare(Path(loop.out), [model.model, *data.data, *data.eval_data], overwrite=loop.overwrite)
    for source in (*data.data, *data.eval_data):
        if next(read_pairs(source), None) is None:
            raise ValueError(f"{source}: needs at least one pair; found no row")
    if not data.data:
        raise ValueError("data: at least one source of pairs is needed; found none")


def _spare(out: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Refuse to delete, with an old run, what the new one is to learn from."""
    inside = [name for name in names if out.resolve() in Path(name).resolve().parents]
    if overwrite and inside:
        raise ValueError(
            f"{out}: --overwrite would delete {inside[0]}, which this run needs;"
            " choose another folder"
        )
