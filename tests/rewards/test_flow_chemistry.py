"""Rewards that need extras: with the packages where they are, and the sentence where not."""

import importlib.util

import pytest
import torch

from melior.rewards.flow_chemistry import FRAGMENTS, binding_rna, drug_likeness, spelled
from melior.stages.flows import options
from melior.stages.flows.options import LETTERS, FlowOptions, RewardOptions


@pytest.mark.parametrize(("reward", "env"), [("rna", "strings"), ("qed", "growing")])
def test_an_absent_extra_says_what_to_install(reward, env, monkeypatch):
    flow = FlowOptions(env, letters=LETTERS[reward])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    package, extra = options.EXTRAS[reward]
    said = rf"the extra '{extra}'; found {package} not installed; pip install 'melior\[{extra}\]'"
    with pytest.raises(ValueError, match=said):
        RewardOptions(reward).check(flow)


def test_there_are_as_many_letters_as_fragments():
    assert len(FRAGMENTS) == LETTERS["qed"]
    assert spelled([3, 1, 0], FRAGMENTS) == "OC"


def test_rna_binds_best_to_what_pairs_with_it():
    pytest.importorskip("RNA")
    log_reward = binding_rna(torch.tensor([3, 3, 2, 1, 3, 2]))  # GGCAGC
    found = log_reward(torch.tensor([[3, 2, 4, 3, 2, 2], [1, 1, 1, 1, 1, 1]]))  # GCUGCC, its mate
    assert found[0] > 1 > found[1]
    assert binding_rna(torch.tensor([3, 3, 2, 1, 3, 2]), sharpness=2.0)(
        torch.tensor([[3, 2, 4, 3, 2, 2]])
    ) == pytest.approx(2 * found[:1])


def test_every_row_of_fragments_is_a_molecule():
    chemistry = pytest.importorskip("rdkit.Chem")
    generator = torch.Generator().manual_seed(0)
    for row in torch.randint(0, 13, (200, 6), generator=generator).tolist():
        smiles = spelled(row, FRAGMENTS)
        assert chemistry.MolFromSmiles(smiles) is not None, smiles


def test_drug_likeness_is_that_of_the_molecule():
    chemistry = pytest.importorskip("rdkit.Chem")
    from rdkit.Chem import QED

    found = drug_likeness(sharpness=2.0)(torch.tensor([[8, 5, 4, 2], [1, 0, 0, 0]]))
    wanted = [QED.qed(chemistry.MolFromSmiles(s)) ** 2 for s in ("c1ccc(cc1)C(=O)NCC", "C")]
    assert found.exp().tolist() == pytest.approx(wanted, rel=1e-5)
