"""Weights that lie as products with few rows read them: on CPUs, in bfloat16, while answers grow.

oneDNN multiplies by weights in blocks of its own. Where they lie otherwise it lays them out anew in
every product, which for eight rows takes longer than the product.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

ROWS = 8
"""For so many the blocks are chosen; they serve any number."""


class PackedLinear(nn.Module):
    """A linear layer in oneDNN's blocks, with the same products bit for bit; it does not learn."""

    packed: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        packed = _op("_reorder_linear_weight")(linear.weight.detach(), ROWS)
        self.register_buffer("packed", packed, persistent=False)
        self.bias = None if linear.bias is None else linear.bias.detach().clone()

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The weights as they were, laid out anew whenever they are asked for."""
        return self.packed.to_dense()

    def forward(self, x: Float[Tensor, "*n in"]) -> Float[Tensor, "*n out"]:
        """Multiply."""
        x = x.to(self.packed.dtype).contiguous()  # as under autocast; other strides it may refuse
        return _op("_linear_pointwise")(x, self.packed, self.bias, "none", [], "")


def pack(model: nn.Module) -> None:
    """Put packed layers in place of a model's linear ones, where that is of use.

    Where those can be let go the model is held once, as before.
    """
    linear = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and _fits(child.weight)
    ]
    if not linear or not _is_there():
        return
    for parent, name, child in linear:
        setattr(parent, name, PackedLinear(child))
    for (
        kept
    ) in model.parameters():  # a file that weights were read from stays mapped by any of them
        kept.data = kept.data.clone()


def _fits(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16


def _is_there() -> bool:
    """Say whether this torch has the operators, which its own compiler uses, and they work here."""
    try:
        PackedLinear(nn.Linear(16, 16, dtype=torch.bfloat16))(torch.zeros(1, 16).bfloat16())
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return True


def _op(name: str) -> Any:
    return getattr(torch.ops.mkldnn, name)
