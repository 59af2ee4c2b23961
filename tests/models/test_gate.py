"""The gate over objectives: weights on a simplex, seeds, saving, and that it can learn."""

import dataclasses
import json

import pytest
import torch

from melior import ops
from melior.losses.aspects import gated_bradley_terry
from melior.models.gate import AspectGate, GateOptions

SMALL = GateOptions(8, 5, hidden=16, layers=2)


def prompts(n: int = 7) -> torch.Tensor:
    return torch.randn(n, 8, generator=ops.generator(0))


def gate(seed: int = 0, **changes) -> AspectGate:
    return AspectGate(dataclasses.replace(SMALL, **changes), seed=seed).eval()


@pytest.mark.parametrize("scale", [0.5, 50.0])
def test_weights_are_above_zero_and_add_up_to_the_scale(scale):
    weights = gate(scale=scale)(prompts())
    assert weights.shape == (7, 5)
    assert (weights > 0).all()
    assert torch.allclose(weights.sum(-1), torch.full((7,), scale))


def test_the_null_objective_gets_nothing():
    weights = gate(null=3)(prompts())
    assert (weights[:, 3] == 0).all()
    assert torch.allclose(weights.sum(-1), torch.ones(7))


def test_the_temperature_flattens():
    sharp, flat = (gate(temperature=own)(prompts()) for own in (0.01, 100.0))
    assert (flat - 0.2).abs().max() < 0.01
    assert sharp.amax(-1).mean() > 0.9


def test_the_network_is_the_papers():
    shapes = [
        tuple(own.shape) for own in AspectGate(GateOptions(4, 19), seed=0).logits.parameters()
    ]
    hidden = [(1024, 4), (1024,), (1024, 1024), (1024,), (1024, 1024), (1024,)]
    assert shapes == [*hidden, (19, 1024), (19,)]


def test_a_seed_gives_the_same_bits_and_leaves_the_global_dice_alone():
    before = torch.random.get_rng_state()
    one, same, other = (gate(seed)(prompts()) for seed in (3, 3, 4))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(before, torch.random.get_rng_state())


def test_every_prompt_is_weighed_by_itself():
    together = gate()(prompts())
    assert torch.allclose(gate()(prompts()[2:3])[0], together[2], atol=1e-6)


def test_dropout_is_for_training():
    network = gate(dropout=0.5)
    assert torch.equal(network(prompts()), network(prompts()))
    network.train()
    assert not torch.equal(network(prompts()), network(prompts()))


def test_every_parameter_is_taught():
    network = gate()
    draw = ops.generator(1)
    chosen, rejected = (torch.randn(7, 5, generator=draw) for _ in range(2))
    loss = gated_bradley_terry(chosen, rejected, network(prompts()), torch.eye(5))
    loss.sum().backward()
    for name, own in network.named_parameters():
        assert own.grad is not None, name
        assert own.grad.abs().max() > 0, name


@pytest.mark.parametrize("null", [None, 2])
def test_a_saved_gate_comes_back_to_the_bit(tmp_path, null):
    network = gate(seed=9, null=null, scale=3.0)
    network.save(tmp_path / "gate")
    loaded = AspectGate.load(tmp_path / "gate").eval()
    assert loaded.options == network.options
    assert torch.equal(loaded(prompts()), network(prompts()))
    assert sorted(own.name for own in (tmp_path / "gate").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_folder_that_holds_something_else_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError):
        AspectGate.load(tmp_path)
    gate().save(tmp_path)
    said = json.loads((tmp_path / "config.json").read_text())
    for change, words in (
        ({"kind": "Other"}, "'kind' must be AspectGate; found 'Other'"),
        ({"hidden": 32}, "options and weights of one AspectGate are needed"),
        ({"colour": "blue"}, "options and weights of one AspectGate are needed"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(said | change))
        with pytest.raises(ValueError, match=words):
            AspectGate.load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"temperature": 0.0}, "temperature must be"),
        ({"scale": 0.0}, "scale must be"),
        ({"dropout": 1.0}, "dropout must be"),
        ({"layers": 0}, "layers must be at least 1"),
        ({"null": 5}, "null must be"),
    ],
)
def test_a_wrong_option_gets_its_sentence(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(SMALL, **changes)


def test_weights_cut_short_are_refused(tmp_path):
    gate().save(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    for length in (4, len(whole) // 2):
        (tmp_path / "model.safetensors").write_bytes(whole[:length])
        with pytest.raises(ValueError, match="options and weights of one AspectGate are needed"):
            AspectGate.load(tmp_path)
