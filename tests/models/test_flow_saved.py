"""Networks of flows and of marginals as folders: the same numbers again, or a sentence."""

import json

import pytest
import torch

from melior.envs.flow import HyperGrid
from melior.models.flow import start_flow_model, unconditioned
from melior.models.flow_saved import load_flows, read_about, save_flows
from melior.models.marginal_saved import load_marginals, save_marginals, start_marginals

ENV = HyperGrid(2, 3)
ABOUT = {"length": 4, "n_values": 3, "width": 8, "blocks": 1}


def test_flows_come_back_with_their_outcomes(tmp_path):
    model = start_flow_model(ENV, seed=3, is_conditioned=True, width=8)
    outcomes = torch.tensor([[0, 1], [2, 2]])
    save_flows(tmp_path, model, outcomes, about={"env": {"env": "grid"}, "width": 8, "depth": 2})
    assert read_about(tmp_path)["env"] == {"env": "grid"}
    found = load_flows(tmp_path, ENV, width=8, depth=2)
    assert torch.equal(found.outcomes, outcomes)
    for one, other in zip(found.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other) and not one.requires_grad


def test_folders_that_hold_no_flows_get_their_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="a folder of `melior ocgfn pretrain` is needed"):
        read_about(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="JSON is needed"):
        read_about(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"kind": "marginals"}))
    with pytest.raises(ValueError, match="outcome-conditioned flows are needed; found marginals"):
        read_about(tmp_path)
    with pytest.raises(
        ValueError, match=r"weights and config\.json are needed whole; found 'length'"
    ):
        load_marginals(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"kind": "outcome-conditioned flows"}))
    with pytest.raises(ValueError, match="'depth' is needed; found nothing"):
        read_about(tmp_path)
    with pytest.raises(ValueError, match="marginals are needed; found outcome-conditioned flows"):
        load_marginals(tmp_path)
    with pytest.raises(FileNotFoundError, match="a folder of `melior mam` is needed"):
        load_marginals(tmp_path / "nowhere")


def test_weights_of_another_environment_get_their_sentence(tmp_path):
    save_flows(tmp_path, start_flow_model(ENV, seed=0, is_conditioned=True, width=8),
               torch.zeros(1, 2, dtype=torch.long), about={})  # fmt: skip
    with pytest.raises(ValueError, match="weights of this environment's flows are needed"):
        load_flows(tmp_path, HyperGrid(2, 4), width=8, depth=2)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="weights of this environment's flows are needed"):
        load_flows(tmp_path, ENV, width=8, depth=2)


def test_marginals_come_back(tmp_path):
    found = start_marginals(ABOUT, seed=1)
    save_marginals(tmp_path, found)
    again = load_marginals(tmp_path)
    rows = torch.tensor([[1, 0, 3, 2]])
    assert torch.equal(again.marginals.normalised(rows), found.marginals.normalised(rows))
    assert torch.equal(again.conditionals(rows), found.conditionals(rows))
    assert (again.length, again.n_values) == (4, 3)
    (tmp_path / "model.safetensors").write_bytes(b"cut")
    with pytest.raises(ValueError, match="are needed whole"):
        load_marginals(tmp_path)


def test_start_networks_leave_the_global_seed_alone():
    torch.manual_seed(0)
    wanted = torch.rand(1)
    torch.manual_seed(0)
    start_marginals(ABOUT, seed=1)
    unconditioned(start_flow_model(ENV, seed=1, width=8), ENV)
    assert torch.equal(torch.rand(1), wanted)
