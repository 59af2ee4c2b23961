"""What marginals are of, as a reader sees it: rows that are drawn as text or images, and means."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior import ops
from melior.data.marginal import UNKNOWN
from melior.data.marginal_files import END, written
from melior.evaluation.pictures import images, over_lattice
from melior.models.marginal_saved import Marginals
from melior.rewards.marginal_chemistry import are_molecules, knows_molecules
from melior.sampling.marginal import any_order
from melior.stages.marginals.world import World

DRAWN, SHOWN = 1000, 16
CELLS = 2**24
"""That a network reads at once: a row of images takes one for each value of each position."""


@torch.no_grad()
def shown(found: Marginals, world: World, *, seed: int) -> dict[str, Any]:
    """Return tables, pictures and facts of rows that the conditionals draw, each in its order.

    Of numbers without a shape there is nothing to see.
    """
    counted = {"smiles": _molecules, "selfies": _selfies}.get(str(found.about.get("tokens")))
    if not (world.alphabet or world.shape):
        return {"tables": [], "pictures": [], "facts": {}}
    generator = ops.generator(seed)
    n = DRAWN if counted else SHOWN
    rows = any_order(found.conditionals, n, found.length, generator=generator)
    tables = [_as_text(found, world, rows[:SHOWN])] if world.alphabet else []
    texts = [written(row, world.alphabet) for row in rows.tolist()] if counted else []
    facts = counted(texts) if counted else {}
    pictures = _as_images(found, world, rows[:SHOWN]) if world.shape else []
    return {"tables": tables, "pictures": pictures, "facts": facts}


@torch.no_grad()
def means(found: Marginals) -> Float[Tensor, " d"]:
    """Return the mean value of each position, counted from 0, as marginals at one reading say."""
    length, n_values = found.length, found.n_values
    values = torch.arange(1, n_values + 1)
    at_once = max(1, CELLS // (length * (n_values + 1)))
    total = torch.zeros(length, dtype=torch.float64)
    for place in range(length):
        for part in values.split(at_once):
            queries = torch.full((len(part), length), UNKNOWN)
            queries[:, place] = part
            chances = found.marginals.normalised(queries).double().exp()
            total[place] += (chances * (part - 1)).sum()
    return total


def _as_text(found: Marginals, world: World, rows: Int[Tensor, "n d"]) -> dict[str, Any]:
    said = found.marginals.normalised(rows).double().tolist()
    texts = [written(row, world.alphabet) for row in rows.tolist()]
    return {
        "title": "Rows that are drawn",
        "note": "each in an order of its own; an end within a row is written ↵",
        "columns": ["row", "log-probability at one reading"],
        "rows": [[text.replace(END, "↵"), own] for text, own in zip(texts, said, strict=True)],
    }


def _molecules(texts: list[str]) -> dict[str, float | None]:
    if not knows_molecules():
        return {"share of molecules (needs pip install 'melior[molecules]')": None}
    return {f"share of molecules among {len(texts)}": sum(are_molecules(texts)) / len(texts)}


def _selfies(texts: list[str]) -> dict[str, float | None]:
    """Any symbols are a molecule; not an end within them, which is drawn like another value."""
    whole = [bool(text) and END not in text for text in texts]
    return {f"share of SELFIES among {len(texts)}": sum(whole) / len(texts)}


def _as_images(found: Marginals, world: World, rows: Int[Tensor, "n d"]) -> list[dict[str, Any]]:
    drawn = images("Rows that are drawn", rows - 1, world.shape)
    if world.held_out is None:
        return [drawn]  # on a torus all places are alike: their means would show nothing
    whole, high = (world.held_out - 1).double().mean(0), found.n_values - 1
    title = "Mean of each place,"
    return [
        images("Held-out rows", world.held_out[:SHOWN] - 1, world.shape),
        drawn,
        over_lattice(f"{title} at one reading", means(found), world.shape, high=high),
        over_lattice(f"{title} of held-out rows", whole, world.shape, high=high),
    ]
