"""A step without numbers: what a pass forward and back holds at each moment, byte by byte.

The code that is rehearsed is the code that trains (forest, attention, output layer, recomputation)
on tensors that have shapes and no memory. Every storage that an operation makes is counted until
nothing refers to it any more. Weights are not among them, and a weight's gradient only for the
moment in which it is handed over: both are a matter of counting parameters.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig

from melior.data.forest import Forest, plant
from melior.models.attention import Layout
from melior.models.language import checkpoint_activations, core
from melior.models.layout import EXACT_KINDS, packed_hidden, padded_hidden
from melior.models.output import output_layer
from melior.models.skeleton import n_layers, period, skeleton, with_zeros, without_numbers
from melior.options import ModelOptions


@dataclass(frozen=True)
class Held:
    """Bytes that one portion holds, beyond weights and the sums of their gradients."""

    kept: int
    """What waits for the backward pass when the forward pass is over."""
    forward: int
    """The most at one moment of the forward pass, ..."""
    head: int
    """... while the output layer goes back, ..."""
    layers: int
    """... while the layers do, ..."""
    embedding: int
    """... and while the embedding does, for which no layer keeps anything any more."""

    @property
    def peak(self) -> int:
        """The most at any moment."""
        return max(self.forward, self.head, self.layers, self.embedding)

    def deeper(self, shallower: Held, times: float) -> Held:
        """Return what a deeper model holds: what each layer keeps adds up, what passes does not."""
        more = round(times * (self.kept - shallower.kept))
        return Held(
            self.kept + more, self.forward + more, self.head + more, self.layers + more,
            self.embedding,
        )  # fmt: skip


@dataclass(frozen=True)
class Rehearsal:
    """How a model's step is rehearsed."""

    options: ModelOptions
    config: PreTrainedConfig
    checkpointing: bool
    is_padded: bool
    on_cpu: bool = True
    """Attention by the CPU's flash kernel; elsewhere it is segment by segment, under masks."""

    def held(self, forest: Forest) -> Held:
        """Return what a portion holds, from the model's first layers and how they add up."""
        each, whole = period(self.config), n_layers(self.config)
        if whole <= 3 * each:
            return self.at_depth(forest, whole)
        two, three = (self.at_depth(forest, times * each) for times in (2, 3))
        return three.deeper(two, (whole - 3 * each) / each)

    def at_depth(self, forest: Forest, depth: int) -> Held:
        """Rehearse the first layers; on real zeros where the model wants to know a number."""
        layout = Layout(forest, on_cpu=self.on_cpu)
        try:
            model = self._model(depth)
            with without_numbers(model):
                return self._pass(model, forest, layout)
        except RuntimeError:
            model = self._model(depth)
            with_zeros(model)
            return self._pass(model, forest, layout)

    def _model(self, depth: int) -> nn.Module:
        model = skeleton(self.options, self.config, depth=depth, is_padded=self.is_padded)
        model.train(self.options.lora_dropout > 0)
        if self.checkpointing:
            checkpoint_activations(model)
        return model

    def _pass(self, model: nn.Module, forest: Forest, layout: Layout) -> Held:
        """Go forward and back once."""
        inner, seen = core(model), dict[str, int]()
        given = (forest.tokens, forest.positions, forest.before, forest.targets)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_drop_gradient)
        with Live((*model.parameters(), *model.buffers(), *given)) as live:

            def enters(_: nn.Module, __: Any, embedded: Tensor) -> None:
                if embedded.requires_grad:
                    embedded.register_hook(lambda _: seen.update(layers=live.most()))

            inner.get_input_embeddings().register_forward_hook(enters)
            if self.is_padded:
                hidden = padded_hidden(inner, forest, forest.before)
            else:
                hidden = packed_hidden(inner, forest, layout)[forest.before]
            hidden.register_hook(lambda _: seen.update(head=live.most()))
            log_probs = output_layer(inner).log_probs(hidden, forest.targets)
            del hidden  # the loss alone holds on to the graph
            seen |= {"kept": live.now, "forward": live.most()}
            log_probs.sum().backward()
            seen |= {"embedding": live.most()}
        return Held(**{"layers": seen["embedding"]} | seen)


def takes_forest(options: ModelOptions, config: PreTrainedConfig) -> bool:
    """Say whether a model's layers are of the right kinds, and all ask for the forest's layout.

    Whether its numbers are right, too, only a model with numbers can show (`why_padded`).
    """
    kinds = list(getattr(config.get_text_config(), "layer_types", None) or ["full_attention"])
    if not set(kinds) <= EXACT_KINDS:
        return False
    depth = min(period(config), n_layers(config))
    model = core(skeleton(options, config, depth=depth))
    forest = plant([_Sequence((1, 2, 3, 4), (0, 0, 1, 1))])
    layout = Layout(forest)
    try:
        with torch.no_grad(), without_numbers(model):
            packed_hidden(model, forest, layout)
    except (TypeError, RuntimeError, ValueError):
        return False
    return layout.n_calls == depth


class Live(TorchDispatchMode):
    """Inside, the bytes of all storages that operations made and that are still there.

    Args:
        apart: tensors that were there before, and are not counted where operations look at them.
    """

    def __init__(self, apart: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # of torch
        self.now = 0
        self._most = 0
        self._sizes = {tensor.untyped_storage()._cdata: 0 for tensor in apart}

    def most(self) -> int:
        """Return the most at one moment since the last call."""
        most, self._most = self._most, self.now
        return most

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Do as asked, and look at what came of it."""
        made = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return made

    def _note(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += self._sizes[key]
        self._most = max(self._most, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self._sizes.pop(key)


@dataclass(frozen=True)
class _Sequence:
    tokens: tuple[int, ...]
    mask: tuple[int, ...]


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None
