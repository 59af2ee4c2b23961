"""What is shown of marginals: means that are exact where marginals are, and molecules by RDKit."""

import importlib.util

import pytest
import torch

from melior.models.marginal_saved import start_marginals
from melior.rewards.marginal_chemistry import are_molecules
from melior.stages.marginals import show


def network(length, n_values):
    """One that adds up a number of its head for each value of each position."""
    about = {"length": length, "n_values": n_values, "width": length * (n_values + 1), "blocks": 0}
    found = start_marginals(about, seed=0)
    found.whole.requires_grad_(False)
    found.marginals.trunk.first.weight.copy_(torch.eye(about["width"]))
    found.marginals.trunk.first.bias.zero_()
    found.marginals.head.bias.zero_()
    return found


def test_means_are_those_of_exact_marginals():
    """Two positions apart from one another, of values 0 to 2."""
    chances = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.1, 0.8]])
    found = network(2, 3)
    padded = torch.cat([torch.ones(2, 1), chances], 1)
    found.marginals.head.weight.copy_(padded.log().view(1, -1))
    assert torch.allclose(show.means(found), torch.tensor([0.8, 1.7]).double())


def test_means_of_many_values_are_asked_for_a_few_at_a_time():
    about = {"length": 2, "n_values": 2900, "width": 1, "blocks": 0}
    found, sizes = start_marginals(about, seed=0), []
    found.marginals.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    show.means(found)
    # Each part is read beside the row of nothing.
    assert sum(sizes) - len(sizes) // 2 == 2 * 2900
    assert max(sizes) * 2 * 2901 <= show.CELLS


def test_molecules_are_told_from_others():
    pytest.importorskip("rdkit")
    texts = ["CCl", "c1cc[nH]c1", "C(", "c1cc", "", "CC\nO", "C O"]
    assert are_molecules(texts) == [True, True, False, False, False, False, False]


def test_without_the_extra_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    [(name, value)] = show._molecules(["CC"]).items()
    assert value is None and "pip install 'melior[molecules]'" in name


def test_an_end_within_makes_a_row_no_selfies():
    """One in three: the second has an end between its symbols, the third is empty."""
    assert show._selfies(["[C][=O]", "[O]\n[N]", ""]) == {"share of SELFIES among 3": 1 / 3}
