"""What is computed again instead of kept: the same values and gradients, fewer bytes."""

import copy

import pytest
import torch
from torch import nn

from melior.data.forest import plant
from melior.models.attention import NAME, Layout, register
from melior.models.layout import packed_hidden, plug_in
from tests.models.test_forest_attention import Marked
from tests.tiny import tiny_model

FAMILIES = ["llama", "qwen3", "gemma2", "gemma3", "mixtral", "gpt2"]
PAIR = [Marked((3, 5, 7, 9, *end), (False,) * 4 + (True,) * len(end)) for end in ((4, 6), (8, 2))]


def plain(family: str, dtype: torch.dtype) -> nn.Module:
    """A model with the attention over forests and nothing else of ours."""
    register()
    model = tiny_model(family, dtype)
    model.set_attn_implementation(NAME)
    model.config.use_cache = False
    return model


def lean(family: str, dtype: torch.dtype) -> nn.Module:
    model = tiny_model(family, dtype)
    assert plug_in(model) == ""
    return model


def computed(model: nn.Module) -> tuple[torch.Tensor, list[torch.Tensor], int]:
    """Return last hidden states, the gradient of every weight, and how many bytes were kept."""
    forest = plant(PAIR, min_shared=1)
    weights = {weight.data_ptr() for weight in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        hidden = packed_hidden(model, forest, Layout(forest))
    probe = torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype).view_as(hidden)
    (hidden * probe).sum().backward()
    grads = [w.grad for w in model.parameters() if w.grad is not None]
    return hidden.detach(), grads, sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_values_are_the_same_bits_and_gradients_the_same_numbers(family, dtype):
    hidden, grads, _ = computed(lean(family, dtype))
    wanted, wanted_grads, _ = computed(plain(family, dtype))
    assert torch.equal(hidden, wanted)
    # Where one rounded copy serves several projections, their gradients are added in bfloat16.
    limit = 1e-6 if dtype == torch.float32 else 2e-2
    for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
        distance = (grad.double() - wanted_grad.double()).norm()
        assert distance <= limit * wanted_grad.double().norm() + 1e-9


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_less_is_kept(family):
    _, _, ours = computed(lean(family, torch.bfloat16))
    _, _, theirs = computed(plain(family, torch.bfloat16))
    assert ours < 0.7 * theirs


def test_an_adapter_that_drops_out_gets_the_gradient_of_what_it_computed():
    from peft import LoraConfig, get_peft_model

    base = tiny_model("llama", torch.float64)
    targets = ["gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=2, lora_dropout=0.5, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(0)
    model = get_peft_model(base, lora).to(torch.float64).train()
    other = copy.deepcopy(model)
    assert plug_in(model.get_base_model()) == ""
    register()
    other.get_base_model().set_attn_implementation(NAME)
    found = []
    for one in (model, other):
        torch.manual_seed(1)
        found.append(computed(one.get_base_model()))
    (hidden, grads, _), (wanted, wanted_grads, _) = found
    assert torch.allclose(hidden, wanted)
    for grad, wanted_grad in zip(grads, wanted_grads, strict=True):
        assert torch.allclose(grad, wanted_grad, rtol=1e-6, atol=1e-9)
