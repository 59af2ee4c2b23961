"""Forest or padding: how a model's hidden states are computed, and whether a forest is exact."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from melior.data.forest import Forest, plant
from melior.models import attention
from melior.models.attention import Layout
from melior.models.lean import keep_inputs_alone

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


def plug_in(model: PreTrainedModel) -> str:
    """Plug the attention over forests into a model, or leave its own where that is not exact.

    Returns:
        Why this model must not be run on forests; an empty string where it may.
    """
    attention.register()
    model.config.use_cache = False
    own = model.config._attn_implementation
    if own == attention.NAME:
        return why_padded(model)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # that a model does not ask is said by why_padded
    try:
        model.set_attn_implementation(attention.NAME)
        reason = why_padded(model)
        if reason:
            model.set_attn_implementation(own)
        else:
            keep_inputs_alone(model)
    finally:
        logging.set_verbosity(verbosity)
    return reason


def why_padded(model: PreTrainedModel) -> str:
    """Say why this model must not be run on forests; an empty string means that it may.

    Decided from the kinds of its layers, from how many of them asked for the forest's layout, and
    from two probes of a small tree. Changing one leaf must leave the leaf behind it as it was to
    the last bit, through all layers, which a model that mixes neighbours (convolution, recurrence)
    cannot do. And the first layers, one of each kind, must agree with a plain run: there a wrong
    position or mask shows at once, while rounding has not yet grown.
    """
    config = model.config.get_text_config()
    kinds = list(getattr(config, "layer_types", None) or ["full_attention"])
    if not set(kinds) <= EXACT_KINDS:
        return f"it has layers of kind {', '.join(sorted(set(kinds) - EXACT_KINDS))}"
    depth = max(kinds.index(kind) for kind in set(kinds)) + 1
    words = _words(config.vocab_size)
    trunk, own = words[:4], words[12:]
    with evaluating(model):
        try:
            last, early, calls = _probe(model, depth, [(*trunk, *words[4:8]), (*trunk, *own)])
            again, _, _ = _probe(model, depth, [(*trunk, *words[8:12]), (*trunk, *own)])
            alone = _run(model, torch.tensor([[*trunk, *own]]), output_hidden_states=True)
        except (TypeError, RuntimeError, ValueError) as error:
            return f"its forward pass does not take a forest ({type(error).__name__}: {error})"
    if calls != config.num_hidden_layers:
        return f"{calls} of its {config.num_hidden_layers} layers use the attention interface"
    if _distance(last, again) > _rounding_of_experts(model):
        return "its layers mix neighbouring answers"
    distance = _distance(early, alone.hidden_states[depth][0])
    if not distance < (0.05 if model.dtype == torch.bfloat16 else 1e-3):
        return f"its first layers differ from a plain run's by {distance:.2g}"
    return ""


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, nothing is random and no gradient is kept."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


class _Probe:
    """A sequence of which the second half is scored."""

    def __init__(self, tokens: tuple[int, ...]) -> None:
        self.tokens = tokens
        self.mask = (False,) * 4 + (True,) * (len(tokens) - 4)


def _words(vocabulary: int) -> tuple[int, ...]:
    """Return 16 ordinary words in rising order; the first tokens are often control tokens."""
    return tuple(sorted((301 + 37 * i) % vocabulary for i in range(16)))


def _probe(
    model: PreTrainedModel, depth: int, paths: Sequence[tuple[int, ...]]
) -> tuple[Tensor, Tensor, int]:
    """Run a small tree whose last path is also the last one laid out.

    Returns:
        Its hidden states after the last and after the layer `depth`, and how many layers asked.
    """
    forest = plant([_Probe(path) for path in paths], min_shared=1)
    layout = Layout(forest)
    result = _packed(model, forest, layout, output_hidden_states=True)
    own = forest.rows(len(paths) - 1)
    return result.last_hidden_state[0][own], result.hidden_states[depth][0][own], layout.n_calls


def _distance(left: Tensor, right: Tensor) -> float:
    """Return how far hidden states are apart, relative to the latter."""
    return float((left - right).norm() / right.norm())


def has_experts(model: PreTrainedModel) -> bool:
    """Say whether a router sends each token to some of several experts."""
    return any("Experts" in type(module).__name__ for module in model.modules())


def _rounding_of_experts(model: PreTrainedModel) -> float:
    """Return by how much a neighbour may move hidden states: not at all, but for experts.

    An expert multiplies all tokens that the router sends to it at once, so that the shape of the
    product, and with it the order of sums, depends on tokens of other answers. Their values do not
    enter.
    """
    if not has_experts(model):
        return 0.0
    return 0.004 if model.dtype == torch.bfloat16 else 1e-5
