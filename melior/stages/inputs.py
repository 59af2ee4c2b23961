"""What can be known to be wrong before anything heavy is imported: a fraction of a second."""

from __future__ import annotations

from melior.data.files import read_pairs
from melior.models.names import find
from melior.options import DataOptions, ModelOptions


def check_inputs(model: ModelOptions, data: DataOptions) -> None:
    """Look for the model, and read the first row of each source.

    Raises:
        FileNotFoundError: the model or a source is not there.
        ValueError: a source is empty, or its first row is no pair.
    """
    find(model.model)
    for source in (*data.data, *data.eval_data):
        if next(read_pairs(source), None) is None:
            raise ValueError(f"{source}: needs at least one pair; found no row")
    if not data.data:
        raise ValueError("data: at least one source of pairs is needed; found none")
