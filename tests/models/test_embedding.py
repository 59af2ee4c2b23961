"""The head of preference embeddings: lengths, gates, seeds, precision, saving."""

import dataclasses
import math

import pytest
import torch

from melior import ops
from melior.losses.general import general_preference, skew_score
from melior.models.embedding import GATES, EmbeddingOptions, GateOptions, PlaneGate, PreferenceHead

SMALL = EmbeddingOptions(16)


def hidden(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, 16, generator=ops.generator(seed))


def head(seed: int = 0, **changes) -> PreferenceHead:
    return PreferenceHead(dataclasses.replace(SMALL, **changes), seed=seed)


def test_embeddings_have_the_length_one_where_asked():
    assert torch.allclose(head()(hidden(3, 4)).norm(dim=-1), torch.ones(3, 4))
    plain = head(is_normalised=False)
    assert torch.equal(plain(hidden(3)), hidden(3) @ plain.embedding.weight.T)


def test_nothing_has_no_direction_and_is_not_nan():
    assert (head()(torch.zeros(2, 16)) == 0).all()


@pytest.mark.parametrize("name", GATES)
def test_gates(name):
    scales = head(gate=name).gate(100 * hidden(5))
    assert scales.shape == (5, 3)
    assert (scales >= 0).all()
    wanted = {"mean-one": 3.0, "sum-one": 1.0, "none": 3.0}[name]
    assert torch.allclose(scales.sum(-1), torch.full((5,), wanted))
    assert torch.equal(scales, torch.ones_like(scales)) == (name == "none")


def test_the_logits_of_mean_one_are_divided_by_the_root_of_the_width():
    network, prompts = head(), 100 * hidden(2)
    logits = (prompts @ network.gate.logits.weight.T / math.sqrt(16)).double()
    wanted = 3 * logits.exp() / logits.exp().sum(-1, keepdim=True)
    assert torch.allclose(network.gate(prompts).double(), wanted, rtol=1e-5)


def test_layers_are_drawn_as_in_the_released_code_by_the_seed_alone():
    before = torch.random.get_rng_state()
    wide = PreferenceHead(EmbeddingOptions(4095, 8), seed=1)
    assert wide.embedding.bias is None
    # 32760 draws: the deviation is known to 0.4 %, and off by five such one time in a million.
    assert wide.embedding.weight.std().item() == pytest.approx(1 / 4096, rel=0.02)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(head(2)(hidden(3)), head(2)(hidden(3)))
    assert not torch.equal(head(2)(hidden(3)), head(3)(hidden(3)))


def test_scores_are_computed_in_the_heads_precision():
    network = head()
    assert network(hidden(3).bfloat16()).dtype == torch.float32
    assert network.gate(hidden(3).bfloat16()).dtype == torch.float32


def test_every_layer_is_taught_and_no_gate_stays_as_it_is():
    for name in GATES:
        network = head(gate=name)
        first, second, prompts = (hidden(6, seed=own) for own in range(3))
        score = skew_score(network(first), network(second), network.gate(prompts))
        general_preference(score, torch.ones(6), beta=0.1).sum().backward()
        assert network.embedding.weight.grad.abs().max() > 0
        assert (network.gate.logits.weight.grad is not None) == (name != "none")


@pytest.mark.parametrize("name", GATES)
def test_a_saved_gate_comes_back_to_the_bit(tmp_path, name):
    gate = head(seed=7, dimensions=4, gate=name).gate
    gate.save(tmp_path)
    loaded = PlaneGate.load(tmp_path)
    assert loaded.options == gate.options == GateOptions(16, 2, name)
    assert torch.equal(loaded(hidden(2)), gate(hidden(2)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dimensions": 3}, "dimensions must be even, two to a plane; found 3"),
        ({"dimensions": 0}, "dimensions must be at least 2"),
        ({"gate": "mean-on"}, "did you mean 'mean-one'"),
    ],
)
def test_a_wrong_option_gets_its_sentence(changes, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(SMALL, **changes)
