"""Models of which each process holds a part of the weights: FSDP2 (`fully_shard`), block by block.

Zhao et al. 2023, arXiv 2304.11277, in torch's second design. The parts are the float32 weights that
the optimizer updates. Before a block computes, its weights are gathered, rounded to what the model
computes in; after it they are freed. Gradients are summed in float32, never averaged: the shares of
an optimizer batch add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MethodType
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from melior.training import processes
from melior.training.shards import is_divided

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

T = TypeVar("T")

NAME = "_melior_gathered"
"""The method that gathers a divided model's outer weights while it computes."""


def mesh_of(device: torch.device) -> DeviceMesh:
    """Return all processes in a row, with their devices."""
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (processes.count(),))


def divide(model: PreTrainedModel, mesh: DeviceMesh, masters: Mapping[str, Tensor]) -> None:
    """Leave each process a part of a model that all have read alike, on its device.

    Args:
        model: on the CPU, an adapter inside or not.
        mesh: of all processes.
        masters: float32 originals of bfloat16 weights, by name, which the parts are made of.
    """
    from torch.distributed.fsdp import (
        FSDPModule,
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    # A frozen model, and the one below an adapter, is held as it computes.
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    computed = torch.bfloat16 if torch.bfloat16 in trained else None
    policy = MixedPrecisionPolicy(computed, torch.float32, cast_forward_inputs=False)
    originals = {p: masters.get(name, p.detach()) for name, p in model.named_parameters()}
    kinds = set(model._no_split_modules or ())
    blocks = [module for module in model.modules() if type(module).__name__ in kinds]
    for module in (*blocks, model):
        for parameter in [p for p in module.parameters() if p in originals]:
            original = originals.pop(parameter)
            if computed and parameter.requires_grad:
                parameter.data = original.to(torch.float32)
        # The outermost, too: left gathered, its weights would outlive a step or a resumption.
        fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=True)
        assert isinstance(module, FSDPModule)
        module.set_gradient_divide_factor(1.0)
        module.set_force_sum_reduction_for_comms(True)
    setattr(model, NAME, MethodType(lambda _, compute: compute(), model))
    register_fsdp_forward_method(model, NAME)


def gathered(model: nn.Module, compute: Callable[[], T]) -> T:
    """Compute tensors with a model's weights at hand, which processes may hold parts of.

    Args:
        model: of transformers.
        compute: what uses its weights or layers otherwise than by calling the model; it returns a
            tensor, or a dictionary or tuple of tensors.
    """
    run = getattr(model, NAME, None)
    found: T = run(compute) if run else compute()
    return found


def computed_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return the type of weights in which a model computes, also where its parts are wider."""
    found: dict[str, torch.dtype] = gathered(model, lambda: {"": model.dtype})
    return found[""]


def whole_state(
    model: nn.Module, *, only_trained: bool = False, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Put a divided model's weights together in the first process, one by one; elsewhere, none.

    Args:
        model: whose weights.
        only_trained: leave out those that are not.
        dtype: of all weights, where it is not that of their parts.
    """
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    found: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    for name, part in model.state_dict(keep_vars=True).items():
        if only_trained and name not in trained:
            continue
        if id(part) not in seen:  # a tied weight is one
            whole = part.detach().full_tensor() if is_divided(part) else part.detach()
            kind = dtype if dtype and whole.is_floating_point() else whole.dtype
            seen[id(part)] = whole.to("cpu", kind) if processes.is_first() else whole.new_empty(0)
        found[name] = seen[id(part)]
    return found if processes.is_first() else {}
