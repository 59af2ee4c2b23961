"""The chunked output layer against the whole matrix."""

import pytest
import torch
from torch import nn

from melior.models import output
from melior.models.output import OutputLayer, output_layer, refuse_other_logits
from tests.tiny import EXPERTS, FAMILIES, PADDED, SMALL, tiny_model


@pytest.mark.parametrize("softcap", [0.0, 5.0])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("has_bias", [True, False])
def test_chunks_give_the_value_and_gradient_of_the_whole(monkeypatch, softcap, scale, has_bias):
    monkeypatch.setattr(output, "CHUNK_BYTES", 4 * 50 * 3)  # three rows at once
    draw = torch.Generator().manual_seed(0)
    linear = nn.Linear(8, 50, bias=has_bias, dtype=torch.float64)
    hidden = torch.randn(11, 8, generator=draw, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(50, (11,), generator=draw)
    weights = torch.randn(11, generator=draw, dtype=torch.float64)
    leaves = [hidden, *linear.parameters()]

    logits = linear(hidden) * scale
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    whole = logits.log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    wanted = torch.autograd.grad((whole * weights).sum(), leaves)
    ours = OutputLayer(linear, scale, softcap).log_probs(hidden, targets)
    found = torch.autograd.grad((ours * weights).sum(), leaves)

    assert torch.allclose(ours, whole, rtol=1e-12)
    for left, right in zip(found, wanted, strict=True):
        assert torch.allclose(left, right, rtol=1e-10, atol=1e-12)


def test_no_scored_token_gives_an_empty_answer():
    linear = nn.Linear(8, 50, bias=False)
    hidden = torch.zeros(0, 8, requires_grad=True)
    log_probs = OutputLayer(linear).log_probs(hidden, torch.zeros(0, dtype=torch.long))
    log_probs.sum().backward()
    assert log_probs.shape == (0,)
    assert not linear.weight.grad.any()


def test_bfloat16_inputs_give_float32_log_probs():
    linear = nn.Linear(8, 50, bias=False, dtype=torch.bfloat16)
    log_probs = OutputLayer(linear).log_probs(
        torch.ones(2, 8, dtype=torch.bfloat16), torch.tensor([1, 2])
    )
    assert log_probs.dtype == torch.float32


def test_bfloat16_weights_give_logits_that_are_summed_and_kept_in_float32():
    """A margin is a small difference of sums: logits rounded to bfloat16 would drown it."""
    draw = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 500, bias=False, dtype=torch.bfloat16)
    exact = nn.Linear(64, 500, bias=False, dtype=torch.float64)
    exact.weight.data.copy_(linear.weight.data.normal_(generator=draw))
    hidden = torch.randn(20, 64, generator=draw).bfloat16()
    targets = torch.randint(500, (20,), generator=draw)
    ours = OutputLayer(linear).log_probs(hidden, targets).double()
    wanted = OutputLayer(exact).log_probs(hidden.double(), targets)
    assert torch.allclose(ours, wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES | EXPERTS | PADDED)
def test_the_output_layer_of_every_family_is_found(family, dtype):
    model = tiny_model(family, dtype)
    refuse_other_logits(model, output_layer(model))


def test_logits_that_are_made_in_an_unknown_way_are_refused():
    """This model multiplies by what others of that name divide by."""
    from transformers import HyperCLOVAXConfig, HyperCLOVAXForCausalLM

    model = HyperCLOVAXForCausalLM(HyperCLOVAXConfig(**SMALL, logits_scaling=0.5)).eval()
    with pytest.raises(ValueError, match="HyperCLOVAXForCausalLM: its logits must be its output"):
        refuse_other_logits(model, output_layer(model))


def test_bfloat16_gradients_are_as_near_as_their_own_rounding():
    """Of rows with a word that is nearly certain, and of rows with none: large and small sums."""
    draw = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 500, bias=False, dtype=torch.bfloat16)
    linear.weight.data.normal_(generator=draw)
    targets = torch.randint(500, (40,), generator=draw)
    near = linear.weight.data[targets].double()
    hidden = (near * torch.linspace(0, 0.5, 40)[:, None]).bfloat16().requires_grad_()
    exact = nn.Linear(64, 500, bias=False, dtype=torch.float64)
    exact.weight.data.copy_(linear.weight.data)
    wide = hidden.detach().double().requires_grad_()
    weights = torch.randn(40, generator=draw, dtype=torch.float64)
    found = OutputLayer(linear).log_probs(hidden, targets)
    wanted = exact(wide).log_softmax(-1).gather(-1, targets[:, None]).squeeze(-1)
    ours = torch.autograd.grad((found * weights).sum(), [hidden, linear.weight])
    theirs = torch.autograd.grad((wanted * weights).sum(), [wide, exact.weight])
    for left, right in zip(ours, theirs, strict=True):
        assert (left.double() - right).norm() < 4e-3 * right.norm()
