"""Forest or padding: how a model's hidden states are computed, and whether a forest is exact."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from melior.data.forest import Forest, plant
from melior.models.attention import Layout
from melior.models.output import OutputLayer

EXACT_KINDS = {"full_attention", "sliding_attention"}
"""Kinds of layers through which tokens meet only in attention."""


def forest_hidden(model: PreTrainedModel, forest: Forest) -> Float[Tensor, "s d"]:
    """Return hidden states before the scored tokens, every distinct token computed once."""
    return packed_hidden(model, forest, Layout(forest))[forest.before.to(model.device)]


def packed_hidden(model: PreTrainedModel, forest: Forest, layout: Layout) -> Float[Tensor, "t d"]:
    """Run the model without its output layer over the one row of a forest."""
    device = model.device
    # A ready-made 4-D mask is passed on untouched; our attention reads the layout instead.
    unused = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)
    result = model.base_model(
        input_ids=forest.tokens[None].to(device),
        position_ids=forest.positions[None].to(device),
        attention_mask=unused,
        forest=layout,
        use_cache=False,
    )
    return result.last_hidden_state[0]


def padded_hidden(model: PreTrainedModel, forest: Forest) -> Float[Tensor, "s d"]:
    """Return the same, each sequence in a row of its own, padded on the right."""
    paths = [forest.rows(index) for index in range(forest.n)]
    longest = max(len(path) for path in paths)
    tokens = torch.zeros(forest.n, longest, dtype=torch.long)
    mask = torch.zeros(forest.n, longest, dtype=torch.long)
    # Where each row of the forest stands in the padded layout; any of its owners will do.
    place = torch.zeros(len(forest.tokens), dtype=torch.long)
    for index, path in enumerate(paths):
        tokens[index, : len(path)] = forest.tokens[path]
        mask[index, : len(path)] = 1
        place[path] = index * longest + torch.arange(len(path))
    device = model.device
    result = model.base_model(
        input_ids=tokens.to(device), attention_mask=mask.to(device), use_cache=False
    )
    return result.last_hidden_state.flatten(0, 1)[place[forest.before].to(device)]


def why_padded(model: PreTrainedModel, output: OutputLayer) -> str:
    """Say why this model must not be run on forests; an empty string means that it may.

    Decided from the kinds of its layers, from how many of them asked for the forest's layout, and
    from a probe: changing one leaf must leave its sibling's hidden states as they were to the
    last bit, which a model whose layers mix neighbours (convolution, recurrence) cannot do.
    """
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    if not kinds <= EXACT_KINDS:
        return f"it has layers of kind {', '.join(sorted(kinds - EXACT_KINDS))}"
    with torch.no_grad():
        try:
            first, calls = _probe(model, leaf=(7, 8, 9, 10))
            second, _ = _probe(model, leaf=(11, 12, 13, 14))
            alone, _ = _probe(model, leaf=())
        except (TypeError, RuntimeError, ValueError) as error:
            return f"its forward pass does not take a forest ({type(error).__name__}: {error})"
    n_layers = model.config.num_hidden_layers
    if calls != n_layers:
        return f"{calls} of its {n_layers} layers use the attention interface"
    if not torch.equal(first, second):
        return "its layers mix neighbouring answers"
    distance = float((first - alone).norm() / alone.norm())
    if not distance < 0.05:  # of bfloat16 rounding; a wrong position or mask gives far more
        return f"its hidden states differ from a plain run's by {distance:.2g}"
    return ""


class _Probe:
    """A sequence of which the second half is scored."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.tokens = tokens
        self.mask = (False,) * 4 + (True,) * (len(tokens) - 4)


def _probe(model: PreTrainedModel, leaf: tuple[int, ...]) -> tuple[Tensor, int]:
    """Return the hidden states of one path of a small tree, with or without a sibling."""
    vocabulary = model.config.vocab_size
    trunk, own = (1, 2, 3, 4), (5, 6, 5, 6)
    paths = [tuple(t % vocabulary for t in trunk + end) for end in (own, leaf) if end]
    forest = plant([_Probe(path) for path in paths], min_shared=1)
    layout = Layout(forest)
    if leaf:
        hidden = packed_hidden(model, forest, layout)[forest.rows(0)]
        return hidden, layout.n_calls
    rows = torch.tensor([paths[0]], device=model.device)
    return model.base_model(input_ids=rows, use_cache=False).last_hidden_state[0], 0
