"""What is shown of marginals: means that are exact where marginals are, and molecules by RDKit."""

import pytest
import torch

from melior.models.marginal_saved import start_marginals
from melior.rewards.marginal_chemistry import are_molecules
from melior.stages.marginals import show


def test_means_are_those_of_exact_marginals(monkeypatch):
    """Two positions apart from one another, of values 0 to 2."""
    chances = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]]).double()

    def said(queries):
        padded = torch.cat([torch.ones(2, 1), chances], 1).log()
        return padded[torch.arange(2), queries].sum(-1)

    found = start_marginals({"length": 2, "n_values": 3, "width": 4, "blocks": 0}, seed=0)
    monkeypatch.setattr(found.marginals, "normalised", said)
    assert torch.allclose(show.means(found), torch.tensor([0.8, 1.7]).double())


def test_molecules_are_told_from_others():
    pytest.importorskip("rdkit")
    texts = ["CCl", "c1cc[nH]c1", "C(", "c1cc", "", "CC\nO", "C O"]
    assert are_molecules(texts) == [True, True, False, False, False, False, False]


def test_without_the_extra_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(show, "knows_molecules", lambda: False)
    [(name, value)] = show._molecules(["CC"]).items()
    assert value is None and "pip install 'melior[molecules]'" in name


def test_an_end_within_makes_a_row_no_selfies():
    """One in three: the second has an end between its symbols, the third is empty."""
    assert show._selfies(["[C][=O]", "[O]\n[N]", ""]) == {"share of SELFIES among 3": 1 / 3}
