"""Rewards of RNA and of small molecules, by packages that are extras: ViennaRNA and RDKit."""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from melior.rewards.flow import LogReward

BASES = "ACGU"
"""Letters 1 to 4."""
FRAGMENTS = (
    "C",
    "CC",
    "O",
    "N",
    "C(=O)",
    "S(=O)(=O)",
    "C(F)(F)",
    "c1ccc(cc1)",
    "c1cc(cnc1)",
    "c1cc(sc1)",
    "C1CCN(CC1)",
    "C1CCC(CC1)",
)
"""Letters 1 to 12: pieces of SMILES with an open bond at either end, so that any row of them is a
molecule. Rows read from either end may be the same one."""
REFUSED = 1e-3
"""The drug-likeness of what RDKit does not take for a molecule; its least is about 0.03."""


def binding_rna(bound: Int[Tensor, " d"], *, sharpness: float = 1.0) -> LogReward:
    """Return how firmly RNA binds to another: stability of the duplex, a letter of the latter.

    The energy is that of ViennaRNA's `duplexfold` (Lorenz et al. 2011) in kcal/mol; a reward of the
    kind of Sinai et al. 2020, arXiv 2010.02141, whose targets are others.
    """
    vienna: Any = importlib.import_module("RNA")
    other = spelled(bound.tolist(), BASES)

    @lru_cache(maxsize=100_000)
    def stability(letters: str) -> float:
        return -float(vienna.duplexfold(other, letters).energy) / len(other)

    def log_reward(objects: Int[Tensor, "n d"]) -> Tensor:
        found = [stability(spelled(row, BASES)) for row in objects.tolist()]
        return sharpness * torch.tensor(found, dtype=torch.get_default_dtype())

    return log_reward


def drug_likeness(*, sharpness: float = 1.0) -> LogReward:
    """Return the log of how like a drug a row of fragments is, to the power of `sharpness`.

    QED, of Bickerton et al. 2012, as RDKit computes it: from 0 to 1.
    """
    chemistry: Any = importlib.import_module("rdkit.Chem")
    likeness: Any = importlib.import_module("rdkit.Chem.QED")

    @lru_cache(maxsize=100_000)
    def share(smiles: str) -> float:
        molecule = chemistry.MolFromSmiles(smiles)
        return REFUSED if molecule is None else max(REFUSED, float(likeness.qed(molecule)))

    def log_reward(objects: Int[Tensor, "n d"]) -> Tensor:
        found = [share(spelled(row, FRAGMENTS)) for row in objects.tolist()]
        return sharpness * torch.tensor(found, dtype=torch.get_default_dtype()).log()

    return log_reward


def spelled(letters: list[int], alphabet: tuple[str, ...] | str) -> str:
    """Write letters from 1 out; 0 is a place left empty."""
    return "".join(alphabet[letter - 1] for letter in letters if letter)
