"""What a run's page draws: maps of the plane, images, and what was found against the truth."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

MOST = 2000
"""Points of a picture."""
MOST_CELLS = 8000
"""Of several images."""


def over_plane(
    title: str, objects: Int[Tensor, "n d"], values: Float[Tensor, " n"]
) -> dict[str, Any]:
    """Return a map of values over objects of two numbers, averaged where one comes twice.

    Of other objects, only how the values are spread.
    """
    if not len(objects) or objects.shape[1] != 2:
        return {"kind": "spread", "title": title, "values": _some(values)}
    rows, columns = (int(n) + 1 for n in objects.amax(0))
    place = objects[:, 0] * columns + objects[:, 1]
    zeros = torch.zeros(rows * columns, dtype=torch.float64)
    total = zeros.index_add(0, place, values.double())
    count = zeros.index_add(0, place, torch.ones_like(values, dtype=torch.float64))
    cells = (total / count.clamp(min=1)).view(rows, columns)
    return {"kind": "map", "title": title, "cells": cells.tolist()}


def against(
    title: str, names: tuple[str, str], x: Float[Tensor, " n"], y: Float[Tensor, " n"]
) -> dict[str, Any]:
    """Return points of what was found over what is so; the diagonal is where both agree."""
    step = max(1, -(-len(x) // MOST))
    points = torch.stack([x[::step], y[::step]], -1).double()
    return {"kind": "against", "title": title, "names": list(names), "points": points.tolist()}


def over_lattice(
    title: str, values: Float[Tensor, " d"], shape: tuple[int, ...], *, high: float
) -> dict[str, Any]:
    """Return a map of a value of each place, line after line; `high` is darkest, in each alike."""
    cells = values.double().view(shape).tolist()
    return {"kind": "map", "title": title, "cells": cells, "high": high}


def images(title: str, rows: Int[Tensor, "n d"], shape: tuple[int, ...]) -> dict[str, Any]:
    """Return rows as images; fewer where they are large, so that a page stays light."""
    few = rows[: max(1, MOST_CELLS // rows.shape[1])]
    return {"kind": "images", "title": title, "images": few.view(-1, *shape).tolist()}


def _some(values: Tensor) -> list[float]:
    found: list[float] = values[:: max(1, -(-len(values) // MOST))].double().tolist()
    return found
