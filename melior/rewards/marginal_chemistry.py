"""Which strings are molecules, by RDKit, an extra."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any


def knows_molecules() -> bool:
    """Say whether RDKit is there."""
    return importlib.util.find_spec("rdkit") is not None


def are_molecules(found: Sequence[str]) -> list[bool]:
    """Say of each SMILES string whether RDKit takes it for a molecule; nothing at all is none."""
    base: Any = importlib.import_module("rdkit.rdBase")
    chemistry: Any = importlib.import_module("rdkit.Chem")
    with base.BlockLogs():  # or each that is none is told at length
        # What stands behind white space is a name to RDKit, and here no part of a molecule.
        return [
            bool(own) and own == "".join(own.split()) and chemistry.MolFromSmiles(own) is not None
            for own in found
        ]
