"""Models without weights: parts and shapes by the config alone, so that any size fits anywhere."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PreTrainedConfig

from melior.models import attention
from melior.models.lean import keep_inputs_alone
from melior.models.loading import DTYPES, forget_dropout, with_adapter
from melior.options import ModelOptions

ModelConfig = PreTrainedConfig
"""How transformers describes a model."""


def skeleton(
    options: ModelOptions, config: PreTrainedConfig, *, depth: int = 0, is_padded: bool = False
) -> nn.Module:
    """Return the model that would be trained, on the `meta` device: nothing is read or allocated.

    Args:
        options: how it is held, an adapter included.
        config: of the whole model.
        depth: layers, the first ones; 0 is all.
        is_padded: its attention is its own, not that over forests.
    """
    attention.register()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            of_depth(config, depth) if depth else config,
            dtype=DTYPES[options.dtype],
            trust_remote_code=options.trust_remote_code,
        )
        forget_dropout(model)
        model.config.use_cache = False
        if not is_padded:
            model.set_attn_implementation(attention.NAME)
            keep_inputs_alone(model)
        if options.lora_r:
            model.requires_grad_(False)
            return with_adapter(model, options, seed=0)
    return model


def drawn(options: ModelOptions, config: PreTrainedConfig, depth: int) -> nn.Module:
    """Return a model's first layers with random weights in float32, the same ones each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = AutoModelForCausalLM.from_config(
            of_depth(config, depth),
            dtype=torch.float32,
            trust_remote_code=options.trust_remote_code,
        )
    return model.eval()


def of_depth(config: PreTrainedConfig, depth: int) -> PreTrainedConfig:
    """Return the config of a model's first layers."""
    cut = copy.deepcopy(config)
    text = cut.get_text_config()
    text.num_hidden_layers = depth
    if getattr(text, "layer_types", None):
        text.layer_types = list(text.layer_types)[:depth]
    return cut


def n_layers(config: PreTrainedConfig) -> int:
    """Return how many layers a config has."""
    return int(config.get_text_config().num_hidden_layers)


def period(config: PreTrainedConfig) -> int:
    """Return after how many layers their kinds repeat: 1 where all are alike."""
    kinds = list(getattr(config.get_text_config(), "layer_types", None) or ["one"])
    repeats = (
        p
        for p in range(1, len(kinds))
        if all(a == b for a, b in zip(kinds, kinds[p:], strict=False))
    )
    return next(repeats, len(kinds) if len(set(kinds)) > 1 else 1)


@contextmanager
def without_numbers(model: nn.Module) -> Iterator[None]:
    """Inside, a skeleton computes as on a CPU, but with shapes only: its tensors hold no numbers.

    Raises:
        RuntimeError: where the model's own code wants to know a number.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fill(model)
        yield


def with_zeros(model: nn.Module) -> None:
    """Give a skeleton's weights real memory, all zeros: for code that wants to know numbers."""
    _fill(model)


def _fill(model: nn.Module) -> None:
    """Put tensors of the CPU in the place of all that are on the `meta` device; ties stay ties."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                if id(weight) not in made:
                    whole = torch.zeros_like(weight, device="cpu")
                    made[id(weight)] = nn.Parameter(whole, requires_grad=weight.requires_grad)
                module._parameters[name] = made[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros_like(buffer, device="cpu")
