"""What costs nearly nothing to compute is computed again in the backward pass, not kept.

Of a decoder layer's activations autograd keeps more than half for passes over single numbers: a
norm's intermediate results, one bfloat16 copy of the same float32 rows for each projection that
reads them, an activation's result and its product with the gate. Here norms and gated activations
keep their inputs alone, and rows are rounded once for all projections.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

_GATED = "self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))"
"""What a gated MLP computes, as transformers' models write it."""


def keep_inputs_alone(model: PreTrainedModel) -> None:
    """Let a model's norms and gated MLPs keep less, and round their rows once; values stay."""
    once = _RoundedOnce()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(once)
        elif type(module).__name__.endswith("RMSNorm"):
            module.forward = partial(_again, module.forward)
        elif type(module).__name__.endswith("MLP") and _is_gated(module):
            module.forward = partial(_gated, module)


def _again(function: Callable[..., Tensor], *inputs: Any, **options: Any) -> Tensor:
    """Apply a function whose backward pass applies it once more; it must not be random."""
    if not torch.is_grad_enabled():
        return function(*inputs, **options)
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False, **options)


def _gated(mlp: Any, rows: Tensor) -> Tensor:
    gate, up = mlp.gate_proj(rows), mlp.up_proj(rows)
    if type(mlp.down_proj) is nn.Linear:
        # What its product reads is computed again; the product itself, coming last, is not.
        return _again(lambda *parts: mlp.down_proj(_product(mlp, *parts)), gate, up)
    return mlp.down_proj(_again(partial(_product, mlp), gate, up))  # an adapter may drop out


def _product(mlp: Any, gate: Tensor, up: Tensor) -> Tensor:
    return mlp.act_fn(gate) * up


def _is_gated(mlp: nn.Module) -> bool:
    """Whether the code of its forward pass is that of a gated MLP and nothing else."""
    try:
        code = inspect.getsource(type(mlp).forward).split("\n", 1)[1]
    except OSError:
        return False
    return code.split() in (
        f"down_proj = {_GATED} return down_proj".split(),
        f"return {_GATED}".split(),
    )


class _RoundedOnce:
    """Hands linear layers the bfloat16 copy of float32 rows that the layer before was handed."""

    def __init__(self) -> None:
        self._rows: Callable[[], Tensor | None] = lambda: None
        self._rounded: Callable[[], Tensor | None] = lambda: None

    def __call__(self, linear: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...] | None:
        rows = inputs[0]
        if rows.dtype != torch.float32 or not torch.is_autocast_enabled(rows.device.type):
            return None
        rounded = self._rounded() if self._rows() is rows else None
        if rounded is None:
            rounded = rows.to(torch.get_autocast_dtype(rows.device.type))
            self._rows, self._rounded = weakref.ref(rows), weakref.ref(rounded)
        return (rounded, *inputs[1:])
