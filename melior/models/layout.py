"""Forest or padding: how a model's hidden states are computed, and whether a forest is exact."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from melior.data.forest import Forest, plant
from melior.models.attention import Layout

EXACT_KINDS = {"full_attention", "sliding_attention"}
"""Kinds of layers through which tokens meet only in attention."""


def forest_hidden(
    model: PreTrainedModel, forest: Forest, rows: Int[Tensor, " r"]
) -> Float[Tensor, "r d"]:
    """Return hidden states of some rows of a forest, every distinct token computed once."""
    return packed_hidden(model, forest, Layout(forest))[rows.to(model.device)]


def packed_hidden(model: PreTrainedModel, forest: Forest, layout: Layout) -> Float[Tensor, "t d"]:
    """Run the model without its output layer over the one row of a forest."""
    return _packed(model, forest, layout).last_hidden_state[0]


def _packed(model: PreTrainedModel, forest: Forest, layout: Layout, **options: bool) -> Any:
    return _run(
        model,
        forest.tokens[None],
        position_ids=forest.positions[None].to(model.device),
        # A ready-made 4-D mask is passed on untouched; our attention reads the layout instead.
        attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=model.device),
        forest=layout,
        **options,
    )


def _run(model: PreTrainedModel, tokens: Tensor, **options: Any) -> Any:
    """Run the layers; under bfloat16 weights their sum, the residual stream, stays in float32."""
    tokens = tokens.to(model.device)
    # torch's own LayerNorm takes no float32 rows with bfloat16 weights; models' RMSNorms do.
    is_torch_norm = any(isinstance(module, nn.LayerNorm) for module in model.modules())
    if model.dtype != torch.bfloat16 or is_torch_norm:
        return model.base_model(input_ids=tokens, use_cache=False, **options)
    with torch.autocast(model.device.type, torch.bfloat16):
        embedded = model.get_input_embeddings()(tokens).float()
        return model.base_model(inputs_embeds=embedded, use_cache=False, **options)


def padded_hidden(
    model: PreTrainedModel, forest: Forest, rows: Int[Tensor, " r"]
) -> Float[Tensor, "r d"]:
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
    result = _run(model, tokens, attention_mask=mask.to(model.device))
    return result.last_hidden_state.flatten(0, 1)[place[rows].to(model.device)]


def why_padded(model: PreTrainedModel) -> str:
    """Say why this model must not be run on forests; an empty string means that it may.

    Decided from the kinds of its layers, from how many of them asked for the forest's layout, and
    from two probes of a small tree. Changing one leaf must leave its sibling as it was to the last
    bit, through all layers, which a model that mixes neighbours (convolution, recurrence) cannot
    do. And the first layers, one of each kind, must agree with a plain run: there a wrong position
    or mask shows at once, while rounding has not yet grown.
    """
    kinds = list(getattr(model.config, "layer_types", None) or ["full_attention"])
    if not set(kinds) <= EXACT_KINDS:
        return f"it has layers of kind {', '.join(sorted(set(kinds) - EXACT_KINDS))}"
    depth = max(kinds.index(kind) for kind in set(kinds)) + 1
    with torch.no_grad():
        try:
            last, early, calls = _probe(model, depth, sibling=(8, 9, 10, 11))
            again, _, _ = _probe(model, depth, sibling=(12, 13, 14, 15))
            _, alone, _ = _probe(model, depth, sibling=())
        except (TypeError, RuntimeError, ValueError) as error:
            return f"its forward pass does not take a forest ({type(error).__name__}: {error})"
    n_layers = model.config.num_hidden_layers
    if calls != n_layers:
        return f"{calls} of its {n_layers} layers use the attention interface"
    if not torch.equal(last, again):
        return "its layers mix neighbouring answers"
    distance = float((early - alone).norm() / alone.norm())
    if not distance < (0.05 if model.dtype == torch.bfloat16 else 1e-3):
        return f"its first layers differ from a plain run's by {distance:.2g}"
    return ""


class _Probe:
    """A sequence of which the second half is scored."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.tokens = tokens
        self.mask = (False,) * 4 + (True,) * (len(tokens) - 4)


def _probe(
    model: PreTrainedModel, depth: int, sibling: tuple[int, ...]
) -> tuple[Tensor, Tensor, int]:
    """Run one path of a small tree, with a sibling or plainly.

    Returns:
        Its hidden states after the last and after the layer `depth`, and how many layers asked.
    """
    paths = [(0, 1, 2, 3, *leaf) for leaf in ((4, 5, 6, 7), sibling) if leaf]
    # Ordinary words, spread over the vocabulary: the first tokens are often control tokens.
    vocabulary = model.config.vocab_size
    tokens = [tuple((301 + 37 * i) % vocabulary for i in path) for path in paths]
    if not sibling:
        result = _run(model, torch.tensor([tokens[0]]), output_hidden_states=True)
        return result.last_hidden_state[0], result.hidden_states[depth][0], 0
    forest = plant([_Probe(path) for path in tokens], min_shared=1)
    layout = Layout(forest)
    result = _packed(model, forest, layout, output_hidden_states=True)
    own = forest.rows(0)
    return result.last_hidden_state[0][own], result.hidden_states[depth][0][own], layout.n_calls
