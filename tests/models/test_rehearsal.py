"""A step rehearsed on shapes alone holds, byte for byte, what a real step holds."""

import random
from dataclasses import dataclass

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoConfig

from melior.data.forest import plant
from melior.models.attention import Layout
from melior.models.layout import packed_hidden, padded_hidden, plug_in
from melior.models.loading import DTYPES
from melior.models.output import output_layer
from melior.models.rehearsal import Live, Rehearsal, takes_forest
from melior.models.skeleton import n_layers, of_depth, period, skeleton, without_numbers
from melior.options import ModelOptions, OptimConfig
from melior.training.loop import descend
from tests.tiny import FAMILIES, SMALL, tiny_folder, tiny_model

LFM2 = {"layer_types": ["conv", "full_attention"], "block_ff_dim": 48, "conv_L_cache": 3}


@dataclass(frozen=True)
class Marked:
    tokens: tuple[int, ...]
    mask: tuple[bool, ...]


def forest_of(n: int, prompt: int = 40, answer: int = 30):
    """Pairs of random words, their prompts shared."""
    draw, sequences = random.Random(0), []
    for _ in range(n):
        trunk = [draw.randrange(3, 300) for _ in range(prompt)]
        for _ in range(2):
            leaf = [draw.randrange(3, 300) for _ in range(draw.randrange(answer // 2, answer))]
            mask = (False,) * prompt + (True,) * len(leaf)
            sequences.append(Marked((*trunk, *leaf), mask))
    return plant(sequences)


def config_of(family: str, **changes):
    kind, settings = FAMILIES[family]
    return AutoConfig.for_model(kind, **settings | changes)


@pytest.fixture
def options(tmp_path):
    folder = tiny_folder(tmp_path / "tiny")
    return lambda **more: ModelOptions(model=str(folder), **more)


def real_model(family: str, dtype: torch.dtype, *, is_padded: bool = False):
    model = tiny_model(family, dtype)
    model.config.use_cache = False
    if not is_padded:  # else it is left as it is, as one that no forest is right for
        assert not plug_in(model)
    return model


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_kept_is_what_autograd_saves(options, family, is_padded, dtype):
    """The truth is counted by other means: hooks on each tensor that autograd saves."""
    forest, saved = forest_of(2), dict[int, int]()
    model = real_model(family, DTYPES[dtype], is_padded=is_padded)
    there = {tensor.untyped_storage().data_ptr() for tensor in model.parameters()}
    there |= {tensor.untyped_storage().data_ptr() for tensor in model.buffers()}
    there |= {
        value.data_ptr() for value in vars(forest).values() if isinstance(value, torch.Tensor)
    }

    def save(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(save, lambda tensor: tensor):
        if is_padded:
            hidden = padded_hidden(model, forest, forest.before)
        else:
            hidden = packed_hidden(model, forest, Layout(forest))[forest.before]
        log_probs = output_layer(model).log_probs(hidden, forest.targets)
    rehearsal = Rehearsal(options(dtype=dtype), config_of(family), False, is_padded)
    kept = rehearsal.held(forest).kept
    # The result is there, too, and saved by nobody yet.
    assert kept == pytest.approx(sum(saved.values()) + log_probs.nbytes, rel=0.005)


@pytest.mark.parametrize(
    ("family", "checkpointing", "lora_r"),
    [("llama", False, 0), ("llama", True, 4), ("gemma2", False, 4), ("gemma2", True, 0)],
)
def test_shapes_alone_hold_what_numbers_hold(options, family, checkpointing, lora_r, monkeypatch):
    forest = forest_of(2)
    rehearsal = Rehearsal(options(lora_r=lora_r), config_of(family), checkpointing, False)
    without = rehearsal.held(forest)

    def refuse(model):
        raise RuntimeError("this model wants to know a number")

    monkeypatch.setattr("melior.models.rehearsal.without_numbers", refuse)
    real = rehearsal.held(forest)
    indices = 4 * 8 * len(forest.tokens)  # of rows: what shapes are made of is not counted alike
    for name, amount in vars(without).items():
        assert amount == pytest.approx(getattr(real, name), abs=indices), name


@pytest.mark.parametrize(
    ("family", "checkpointing", "on_cpu"),
    [
        ("llama", False, True),
        ("llama", True, False),
        ("gemma2", True, True),
        pytest.param("gpt2", False, True, marks=pytest.mark.slow),
        pytest.param("gemma2", False, False, marks=pytest.mark.slow),
    ],
)
def test_a_few_layers_tell_of_many(options, family, checkpointing, on_cpu):
    forest, config = forest_of(1), of_more(config_of(family), 8)
    rehearsal = Rehearsal(options(), config, checkpointing, False, on_cpu=on_cpu)
    assert rehearsal.held(forest) == rehearsal.at_depth(forest, 8)


def of_more(config, depth):
    config.num_hidden_layers = depth
    if getattr(config, "layer_types", None):
        config.layer_types = (list(config.layer_types)[:2] * depth)[:depth]
    return config


def test_a_real_steps_fullest_moment_is_states_and_what_was_rehearsed(options):
    """The step's own code, gradients moved into masters and all."""
    forest, model = forest_of(4), real_model("llama", torch.bfloat16)

    def objective(part):
        hidden = packed_hidden(model, part, Layout(part))[part.before]
        return -output_layer(model).log_probs(hidden, part.targets).mean(), {}

    step = descend(objective, dict(model.named_parameters()), OptimConfig(), total_steps=3)
    step([forest])  # the moments are made
    there = [value for value in step.state().values() if isinstance(value, torch.Tensor)]
    with Live((*model.parameters(), *model.buffers(), *there)) as live:
        step([forest, forest])
    n = sum(one.numel() for one in model.parameters())
    held = Rehearsal(options(), config_of("llama"), False, False).held(forest)
    assert live.most() == pytest.approx(4 * n + held.peak, rel=0.02)


def test_a_smaller_portion_holds_less_in_a_straight_line(options):
    rehearsal = Rehearsal(options(), config_of("llama"), False, False)
    forests = [forest_of(n) for n in (2, 4, 8)]
    t = [len(forest.tokens) for forest in forests]
    two, four, eight = (rehearsal.held(forest).peak for forest in forests)
    assert (eight - four) / (t[2] - t[1]) == pytest.approx((four - two) / (t[1] - t[0]), rel=0.03)


def test_recomputation_keeps_less(options):
    forest, config = forest_of(2), of_more(config_of("llama"), 6)
    all_kept, few_kept = (
        Rehearsal(options(), config, checkpointing, False).held(forest)
        for checkpointing in (False, True)
    )
    assert few_kept.kept < all_kept.kept / 4
    assert few_kept.peak < all_kept.peak


@pytest.mark.parametrize("family", FAMILIES)
def test_whether_a_model_takes_the_forest_is_told_without_its_numbers(options, family):
    assert takes_forest(options(), config_of(family))
    assert not plug_in(tiny_model(family))


@pytest.mark.parametrize(("kind", "more"), [("lfm2", LFM2), ("falcon", {})])
def test_layers_that_mix_neighbours_or_do_not_ask_are_told_without_numbers(options, kind, more):
    settings = {key: value for key, value in SMALL.items() if key != "head_dim"}
    assert not takes_forest(options(), AutoConfig.for_model(kind, **settings | more))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_skeleton_has_the_parameters_of_the_model(options, family):
    found = skeleton(options(dtype="fp32"), config_of(family))
    model = tiny_model(family)
    shapes = {name: one.shape for name, one in model.named_parameters()}
    assert {name: one.shape for name, one in found.named_parameters()} == shapes
    assert all(one.is_meta for one in found.parameters())


def test_ties_stay_ties_without_numbers(options):
    model = skeleton(options(), config_of("llama"))
    with without_numbers(model):
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_kinds_of_layers_repeat():
    assert period(config_of("llama")) == 1
    assert period(of_more(config_of("gemma2"), 12)) == 2
    assert n_layers(of_depth(config_of("gemma2"), 1)) == 1
