"""Packed layers: the same bits, on every path."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from melior.data.forest import plant
from melior.models.loading import load, load_to_answer
from melior.models.packed import PackedLinear, pack
from melior.ops import generator
from melior.options import ModelOptions, Sampling
from melior.records import Turn
from tests.tiny import FAMILIES, tiny_folder


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 24), (3, 1, 24), (100, 24), (2, 40, 24)])
def test_products_and_weights_are_those_of_the_layer_bit_for_bit(shape, bias):
    torch.manual_seed(0)
    linear = nn.Linear(shape[-1], 40, bias=bias, dtype=torch.bfloat16)
    x = torch.randn(shape).bfloat16()
    packed = PackedLinear(linear)
    with torch.no_grad():
        assert torch.equal(packed(x), linear(x))
        strided = x.repeat_interleave(2, -1)[..., ::2]
        assert torch.equal(packed(strided), linear(x))
    assert torch.equal(packed.weight, linear.weight)
    assert packed.weight.is_contiguous()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_packed_model_answers_and_scores_as_before(family, tmp_path):
    folder = tiny_folder(tmp_path / family, family)
    options = ModelOptions(model=str(folder), dtype="bf16", device="cpu")
    plain, packed = load(options, trainable=False), load_to_answer(options)
    n_packed = sum(isinstance(module, PackedLinear) for module in packed.model.modules())
    assert n_packed == sum(type(module) is nn.Linear for module in plain.model.modules())
    assert n_packed or family == "falcon"  # its linear layers are of a kind of their own
    prompts = [(Turn("user", "what is it?"),), (Turn("user", "how are you today? I am fine"),)]
    sampling = Sampling(k=3, max_new_tokens=12)
    drawn = [one.complete(prompts, sampling, generator=generator(0)) for one in (plain, packed)]
    assert drawn[0] == drawn[1]
    tokens = torch.arange(1, 40)[None]
    with torch.no_grad():
        logits = [one.core(tokens).logits for one in (plain, packed)]
    assert torch.equal(*logits)
    answers = [
        SimpleNamespace(tokens=[*range(1, 30), *own], mask=[0] * 29 + [1] * 6) for own in OWN
    ]
    forest = plant(answers)
    with torch.no_grad():
        assert torch.equal(*(one.log_probs(forest) for one in (plain, packed)))
    hidden = torch.randn(5, plain.core.config.hidden_size, generator=torch.Generator())
    found = [one.output.log_probs(hidden.bfloat16(), torch.arange(5)) for one in (plain, packed)]
    assert torch.equal(*found)


OWN = (range(30, 36), range(40, 46))
"""Tokens of two answers to one prompt."""


def test_what_learns_or_is_held_in_float32_stays_as_it_is(tmp_path):
    folder = tiny_folder(tmp_path / "llama", "llama")
    model = load_to_answer(ModelOptions(model=str(folder), dtype="fp32", device="cpu")).model
    assert not any(isinstance(module, PackedLinear) for module in model.modules())


def test_weights_are_held_once():
    linear = nn.Sequential(nn.Linear(512, 512, bias=False, dtype=torch.bfloat16))
    with torch.no_grad():
        pack(linear)
    assert not list(linear.parameters())
    (name,) = (name for name, _ in linear.named_buffers())
    assert name == "0.packed" and not linear.state_dict()
