"""FLOPs by arithmetic against those that torch counts while a real model computes."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig

from melior.data.forest import plant
from melior.models import attention
from melior.models.attention import Layout
from melior.models.flops import shape_of
from melior.models.layout import packed_hidden
from melior.models.loading import held
from melior.models.output import output_layer
from melior.models.skeleton import skeleton
from melior.options import ModelOptions
from tests.models.test_forest_attention import Marked
from tests.models.test_rehearsal import config_of, forest_of, real_model
from tests.tiny import FAMILIES, SMALL, tiny_folder

NO_PAIRS = 0.0
"""Attention is counted by itself: torch knows no FLOPs of the CPU's flash kernel."""


def counted(work) -> float:
    """Count matrix products; those of attention come in batches, and are left out."""
    with FlopCounterMode(display=False) as counter:
        work()
    found = counter.get_flop_counts()["Global"]
    return sum(n for op, n in found.items() if str(op) in ("aten.mm", "aten.addmm"))


@pytest.mark.parametrize("family", FAMILIES)
def test_weights_that_multiply_and_their_gradients(family):
    forest, model = forest_of(2), real_model(family, torch.float32)
    shape, t, s = shape_of(model), len(forest.tokens), len(forest.scored)
    hidden = []
    forward = counted(
        lambda: hidden.append(packed_hidden(model, forest, Layout(forest))[forest.before])
    )
    assert forward == shape.layers(t, NO_PAIRS)
    log_probs = []
    head = counted(
        lambda: log_probs.append(output_layer(model).log_probs(hidden[0], forest.targets))
    )
    assert head == shape.head(s)
    back = counted(lambda: log_probs[0].sum().backward())
    assert back == shape.layers_back(t, NO_PAIRS) + shape.head_back(s)


def test_an_adapter_trains_little_and_computes_a_little_more(tmp_path):
    options = ModelOptions(model=str(tiny_folder(tmp_path / "tiny")), dtype="fp32", lora_r=4)
    forest, plain = forest_of(2), real_model("llama", torch.float32)
    whole = shape_of(plain)
    model, _ = held(plain, options, trainable=True, seed=0)
    shape, t = shape_of(model), len(forest.tokens)
    assert not shape.trains_head
    assert shape.layer_weights == whole.layer_weights + shape.trained
    inner, hidden = model.get_base_model(), []
    forward = counted(lambda: hidden.append(packed_hidden(inner, forest, Layout(forest))))
    assert forward == shape.layers(t, NO_PAIRS)
    back = counted(lambda: hidden[0].sum().backward())
    # What enters the first layer needs no gradient: there it is less than elsewhere.
    assert 0.8 * shape.layers_back(t, NO_PAIRS) < back <= shape.layers_back(t, NO_PAIRS)


def in_batches(work) -> float:
    """Count the matrix products that come in batches: those of attention alone."""
    with FlopCounterMode(display=False) as counter:
        work()
    found = counter.get_flop_counts()["Global"]
    return sum(n for op, n in found.items() if str(op) in ("aten.bmm", "aten.baddbmm"))


def test_attention_takes_what_torch_counts_of_its_products(monkeypatch):
    """On one tile: forward as products in plain sight, in place of the flash kernel's own.

    A tile's products take the square of its rows: all that is above the diagonal, too, which the
    formula leaves out, as kernels do but for the tiles on it.
    """
    model, t = real_model("llama", torch.float32), 24
    shape, forest = shape_of(model), plant([Marked(tuple(range(3, 3 + t)), (False,) * t)])
    assert len(Layout(forest).tiles) == 1

    def flash(query, key, value, dropout, is_causal, scale):
        groups = query.shape[1] // key.shape[1]
        key, value = (one.repeat_interleave(groups, 1) for one in (key, value))
        logits = (query @ key.mT * scale).masked_fill(~torch.ones(t, t).tril().bool(), -torch.inf)
        return logits.softmax(-1) @ value, logits.logsumexp(-1)

    whole, hidden = packed_hidden(model, forest, Layout(forest)).detach(), []
    monkeypatch.setattr(attention, "_flash", flash)
    forward = in_batches(lambda: hidden.append(packed_hidden(model, forest, Layout(forest))))
    torch.testing.assert_close(hidden[0].detach(), whole)
    assert forward == shape.layers(0, t * t)
    assert in_batches(lambda: hidden[0].sum().backward()) == shape.layers_back(0, t * t)


def test_a_token_meets_only_the_experts_that_it_is_sent_to(tmp_path):
    options = ModelOptions(model=str(tiny_folder(tmp_path / "tiny")))
    config = AutoConfig.for_model(
        "mixtral", **SMALL | {"num_local_experts": 8, "num_experts_per_tok": 2}
    )
    attended = 2 * 32 * 4 * 8 + 2 * 32 * 2 * 8  # queries and output, keys and values
    expert = 3 * 32 * 48
    each = attended + 8 * 32 + 2 * expert
    assert shape_of(skeleton(options, config)).layer_weights == 2 * each


def test_shapes_need_no_weights(tmp_path):
    options = ModelOptions(model=str(tiny_folder(tmp_path / "tiny")))
    for family in FAMILIES:
        found = shape_of(skeleton(options, config_of(family)))
        assert found == shape_of(real_model(family, torch.float32))
