"""What a model says of a forest is what it says of each sequence alone: value and gradient."""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from melior.data.forest import filled, plant, size
from melior.models import attention, layout
from melior.models.layout import forest_hidden, packed_hidden, padded_hidden, plug_in, why_padded
from melior.models.output import output_layer
from tests.tiny import EXPERTS, FAMILIES, PADDED, tiny_model

attention.register()


@dataclass(frozen=True)
class Marked:
    tokens: tuple[int, ...]
    mask: tuple[bool, ...]


def model_of(family: str, dtype: torch.dtype = torch.float64, **changes):
    model = tiny_model(family, dtype, **changes)
    model.set_attn_implementation(attention.NAME)
    return model


@st.composite
def trees(draw) -> list[Marked]:
    """Ragged trees of any depth: sequences that grow from one another's prefixes."""
    token = st.integers(3, 30)
    sequences: list[list[int]] = []
    for _ in range(draw(st.integers(1, 6))):
        trunk: list[int] = []
        if sequences and draw(st.booleans()):
            source = draw(st.sampled_from(sequences))
            trunk = source[: draw(st.integers(0, len(source)))]
        sequences.append(trunk + draw(st.lists(token, min_size=1, max_size=12)))
    marked = []
    for tokens in sequences:
        mask = draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens)))
        marked.append(Marked(tuple(tokens), (False, *mask[1:])))
    return marked


def plain(model, sequences: list[Marked]) -> torch.Tensor:
    """Sum of scored log-probabilities of each sequence, run alone: eager, full logits, no mask."""
    totals = []
    for sequence in sequences:
        tokens = torch.tensor(sequence.tokens)
        logits = model(input_ids=tokens[None], use_cache=False).logits[0, :-1]
        log_probs = logits.log_softmax(-1).gather(-1, tokens[1:, None]).squeeze(-1)
        totals.append(log_probs[torch.tensor(sequence.mask[1:], dtype=torch.bool)].sum())
    return torch.stack(totals)


def weighted_gradient(model, totals: torch.Tensor) -> torch.Tensor:
    weights = torch.linspace(-1.0, 2.0, len(totals), dtype=totals.dtype)
    model.zero_grad()
    (totals * weights).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize(
    ("family", "compute"),
    [(family, forest_hidden) for family in FAMILIES | EXPERTS]
    + [(family, padded_hidden) for family in FAMILIES | EXPERTS | PADDED],
)
@settings(max_examples=8)
@given(sequences=trees(), min_shared=st.sampled_from([1, 3]))
def test_forest_and_padding_equal_each_sequence_run_alone(family, compute, sequences, min_shared):
    dtype = torch.float64 if family in FAMILIES else torch.float32  # experts know no wider one
    model, reference = tiny_model(family, dtype), tiny_model(family, dtype)
    reference.set_attn_implementation("eager")
    assert (plug_in(model) == "") == (family not in PADDED)
    forest = plant(sequences, min_shared=min_shared)
    log_probs = output_layer(model).log_probs(compute(model, forest, forest.before), forest.targets)
    ours, theirs = forest.totals(log_probs), plain(reference, sequences)
    # Rotary tables and eager softmax are float32 in transformers, which bounds the agreement.
    assert torch.allclose(
        ours, theirs.double(), rtol=1e-6, atol=1e-5 if family in FAMILIES else 1e-4
    )
    if any(any(s.mask) for s in sequences):
        left, right = weighted_gradient(model, ours), weighted_gradient(reference, theirs)
        assert (left - right).norm() <= 1e-5 * right.norm() + 1e-6


@given(sequences=trees())
def test_every_distinct_prefix_stands_once(sequences):
    forest = plant(sequences, min_shared=1)
    prefixes = {s.tokens[:i] for s in sequences for i in range(1, len(s.tokens) + 1)}
    assert len(forest.tokens) == len(prefixes)


@given(sequences=trees(), min_shared=st.integers(1, 20))
def test_the_size_is_known_before_planting(sequences, min_shared):
    forest = plant(sequences, min_shared=min_shared)
    assert size(sequences, min_shared=min_shared) == len(forest.tokens)


@given(sequences=trees(), min_shared=st.integers(1, 20))
def test_paths_read_back_the_sequences(sequences, min_shared):
    forest = plant(sequences, min_shared=min_shared)
    for index, sequence in enumerate(sequences):
        rows = forest.rows(index)
        assert tuple(forest.tokens[rows].tolist()) == sequence.tokens
        assert forest.positions[rows].tolist() == list(range(len(rows)))
        assert int(forest.lengths[index]) == sum(sequence.mask)


@given(sequences=trees())
def test_rectangles_cover_each_path_exactly_once(sequences):
    forest = plant(sequences, min_shared=1)
    t = len(forest.tokens)
    seen = torch.zeros(t, t, dtype=torch.long)
    for part in attention.blocks(forest.segments):
        piece = torch.ones(part.q_stop - part.q_start, part.k_stop - part.k_start, dtype=torch.long)
        assert piece.numel() > 0
        rows, keys = slice(part.q_start, part.q_stop), slice(part.k_start, part.k_stop)
        seen[rows, keys] += piece.tril() if part.is_causal else piece
    wanted = torch.zeros_like(seen)
    for index in range(forest.n):
        rows = forest.rows(index)
        wanted[rows[:, None], rows[None]] = torch.ones(
            len(rows), len(rows), dtype=torch.long
        ).tril()
    assert torch.equal(seen, wanted)


@given(st.integers(1, 5000))
def test_filled_rows_have_32_lengths_to_a_power_of_two(length):
    forest = plant([Marked((5,) * length, (False,) + (True,) * (length - 1))])
    rows = len(filled(forest, 10**6).tokens)
    assert 0 <= rows - length < max(1, length / 32)
    assert rows // (rows & -rows) < 64  # its odd part
    assert len(filled(forest, length + 3).tokens) == min(rows, length + 3)
    assert filled(forest, length - 1) is forest


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("compute", [forest_hidden, padded_hidden])
def test_filling_a_row_changes_nothing_of_what_it_holds(family, compute):
    shared = [3 + i % 28 for i in range(130)]
    sequences = [
        Marked((*shared, *end), (False,) * 130 + (True,) * len(end))
        for end in ((4, 5, 6), (7, 8), (9, 10))
    ]
    bare = plant(sequences, min_shared=1)
    full = filled(bare, 10**6)
    assert len(full.tokens) == len(bare.tokens) + 3
    assert torch.equal(full.last, bare.last)
    model = model_of(family)
    one, other = (compute(model, forest, forest.last) for forest in (bare, full))
    near = 1e-6 if family == "gemma3" else 1e-9  # whose norms of queries and keys are in float32
    assert torch.allclose(one, other, rtol=near, atol=near)
    pieces = [weighted_gradient(model, hidden.sum(-1)) for hidden in (one, other)]
    assert (pieces[0] - pieces[1]).norm() <= near * pieces[1].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES | EXPERTS)
def test_the_forest_is_found_exact(family, dtype):
    model = tiny_model(family, dtype)
    assert plug_in(model) == ""
    assert model.config._attn_implementation == attention.NAME


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("lfm2", "layers of kind conv"),
        ("falcon_h1", "layers of kind hybrid"),
        ("mamba", "layers of kind linear_attention"),
        ("recurrent_gemma", "layers of kind linear_attention"),
        ("falcon", "0 of its 2 layers use the attention interface"),
        ("gpt_oss", "its attention has s_aux"),  # sinks: one more logit in each softmax
    ],
)
def test_what_a_forest_cannot_express_falls_back_to_the_models_own_attention(family, reason):
    model = tiny_model(family)
    own = model.config._attn_implementation
    assert reason in plug_in(model)
    assert model.config._attn_implementation == own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_that_mixes_neighbours_is_found_by_its_numbers(monkeypatch, dtype):
    """All layers of a Falcon H1 attend, and mix neighbours beside it; were that not known..."""
    monkeypatch.setattr(layout, "EXACT_KINDS", layout.EXACT_KINDS | {"hybrid"})
    assert plug_in(tiny_model("falcon_h1", dtype)) == "its layers mix neighbouring answers"


def test_checkpointed_layers_recompute_the_same_gradient():
    model = model_of("llama")
    forest = plant(
        [Marked((5, 6, 7, 8), (False, True, True, True)), Marked((5, 6, 9), (False, False, True))],
        min_shared=1,
    )
    layer = output_layer(model)
    plain_grad = weighted_gradient(
        model,
        forest.totals(layer.log_probs(forest_hidden(model, forest, forest.before), forest.targets)),
    )
    model.train()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    again = weighted_gradient(
        model,
        forest.totals(layer.log_probs(forest_hidden(model, forest, forest.before), forest.targets)),
    )
    assert torch.allclose(plain_grad, again, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision_stays_near_float64(dtype):
    sequences = [
        Marked(tuple(range(5, 45)), (False,) * 10 + (True,) * 30),
        Marked((*tuple(range(5, 30)), 50, 51), (False,) * 20 + (True,) * 7),
    ]
    forest = plant(sequences, min_shared=1)
    exact, rough = model_of("llama"), model_of("llama", dtype)
    rough.load_state_dict(exact.state_dict())
    results = []
    for model in (exact, rough):
        log_probs = output_layer(model).log_probs(
            forest_hidden(model, forest, forest.before), forest.targets
        )
        results.append(weighted_gradient(model, forest.totals(log_probs)).double())
    error = (results[0] - results[1]).norm() / results[0].norm()
    assert error < (1e-5 if dtype == torch.float32 else 5e-2)


def test_packed_hidden_counts_its_layers():
    model = model_of("llama")
    forest = plant([Marked((5, 6, 7), (False, True, True))])
    asked = attention.Layout(forest)
    packed_hidden(model, forest, asked)
    assert asked.n_calls == model.config.num_hidden_layers


def test_the_embedded_model_runs_on_forests_in_bfloat16():
    """Its hidden states magnify rounding tenfold, which is no reason to pad."""
    from melior.models.embedded import embedded_folder
    from melior.models.loading import load
    from melior.options import ModelOptions

    assert embedded_folder().is_dir()
    model = load(ModelOptions(model="smollm2"), trainable=True)
    assert model.padded_because == ""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_wrong_position_is_found(monkeypatch, family, dtype):
    """Were a leaf's positions counted from elsewhere, the probe would tell, rounding or not."""

    def shifted(*words, **named):
        forest = plant(*words, **named)
        positions = forest.positions.clone()
        positions[4:] += 1
        return replace(forest, positions=positions)

    monkeypatch.setattr(layout, "plant", shifted)
    assert "differ from a plain run's" in why_padded(model_of(family, dtype))


@given(sequences=trees())
def test_gradients_do_not_depend_on_the_size_of_tiles(sequences):
    model = model_of("llama")
    forest = plant(sequences, min_shared=1)
    hidden_of = lambda: forest_hidden(model, forest, forest.before).sum(0, keepdim=True)  # noqa: E731
    whole = weighted_gradient(model, hidden_of())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention, "TILE_ROWS", 3)
        cut = weighted_gradient(model, hidden_of())
    assert torch.allclose(whole, cut, rtol=1e-9, atol=1e-12)


def test_the_residual_stream_of_a_bfloat16_model_keeps_float32():
    """What layers add to it is rounded, their sum is not."""
    exact, rough = (
        model_of("llama", dtype, num_hidden_layers=16) for dtype in (torch.float64, torch.bfloat16)
    )
    exact.load_state_dict(rough.state_dict())
    sequence = Marked(tuple(range(5, 105)), (False,) + (True,) * 99)
    forest = plant([sequence])
    wanted = forest_hidden(exact, forest, forest.before)
    ours = forest_hidden(rough, forest, forest.before)
    plain = rough.base_model(input_ids=forest.tokens[None]).last_hidden_state[0][forest.before]
    assert ours.dtype == torch.float32
    assert (ours - wanted).norm() < 0.95 * (plain - wanted).norm()


@pytest.mark.parametrize("size", [1.0, 4.0])
def test_bfloat16_gradients_of_attention_are_as_near_as_their_own_rounding(size):
    """Under large logits, too, of which bfloat16 itself would keep but few digits."""
    draw = torch.Generator().manual_seed(0)
    trunk = tuple(range(3, 103))
    forest = plant([Marked((*trunk, *range(3, n)), (False,) * (97 + n)) for n in (43, 63)])
    layout = attention.Layout(forest)
    shapes = [(1, 4, len(forest.tokens), 16), *[(1, 2, len(forest.tokens), 16)] * 2]
    rounded = [(size * torch.randn(s, generator=draw)).bfloat16().requires_grad_() for s in shapes]
    exact = [x.detach().double().requires_grad_() for x in rounded]
    way = torch.randn(1, len(forest.tokens), 4, 16, generator=draw).bfloat16()
    ours, theirs = (
        torch.autograd.grad((attention.attend(model, *x, forest=layout)[0] * way).sum(), x)
        for model, x in ((torch.nn.Module(), rounded), (torch.nn.Module(), exact))
    )
    for left, right in zip(ours, theirs, strict=True):
        assert (left.double() - right).norm() < 2e-2 * right.norm()
