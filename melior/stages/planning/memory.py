"""The parts of a run's memory, by counting parameters and adding up: arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from melior.models.decoding import GROWTH
from melior.models.language import core
from melior.models.rehearsal import Held
from melior.models.skeleton import ModelConfig, n_layers

KERNELS, BETWEEN = 160 << 20, 0.3
"""Bytes that oneDNN keeps for the shapes of its products, and what the C library's heap keeps free
between the blocks of a step, as a share of these: set after the runs of `docs/plan.md`."""


@dataclass(frozen=True)
class Part:
    """Something that takes memory, or time."""

    name: str
    amount: float
    """Bytes, or seconds."""
    how: str = ""
    """Where the number is from."""


@dataclass(frozen=True)
class States:
    """Bytes that stay from step to step."""

    weights: int
    masters: int
    """In float32, of weights that are trained in bfloat16."""
    moments: int
    """AdamW's two."""
    gradients: int
    """Their sums, in float32."""
    original: int
    """Of the weights while they are read: in float32 where they are learned."""

    def shard(self, processes: int) -> States:
        """Return what each of several processes keeps under FSDP.

        There, weights that are trained in bfloat16 are rounded from the masters whenever a block
        needs them, and are not kept.
        """
        if processes == 1:
            return self
        rounded = self.masters // 2
        return States(
            (self.weights - rounded) // processes, self.masters // processes,
            self.moments // processes, self.gradients // processes, self.original,
        )  # fmt: skip


def states(model: nn.Module) -> States:
    """Count the states of a model that is to be trained, from its parts alone."""
    parameters = list(model.parameters())
    trained = [one for one in parameters if one.requires_grad]
    rounded = [one for one in trained if one.dtype in (torch.bfloat16, torch.float16)]
    return States(
        weights=sum(one.numel() * one.element_size() for one in parameters),
        masters=sum(4 * one.numel() for one in rounded),
        moments=sum(8 * one.numel() for one in trained),
        gradients=sum(4 * one.numel() for one in trained),
        original=sum(
            (4 if one.requires_grad else one.element_size()) * one.numel()
            for one in core(model).parameters()
        ),
    )


def gathered(model: nn.Module) -> int:
    """Return what a process under FSDP has whole for a moment, beyond its shards.

    The largest block and the one that is fetched meanwhile, all that is in no block (embedding and
    output layer), its gradient, and that of a block, once as it comes and once in float32.
    """
    inner = core(model)
    blocks = [
        sum(one.numel() * one.element_size() for one in block.parameters())
        for blocks in inner.modules()
        if isinstance(blocks, nn.ModuleList) and len(blocks) == n_layers(inner.config)
        for block in blocks
    ]
    root = sum(one.numel() * one.element_size() for one in model.parameters()) - sum(blocks)
    there = 2 * max(blocks) + root
    is_trained = all(one.requires_grad for one in inner.parameters())
    return there + (3 * max(blocks) + root if is_trained else 0)


def cache_bytes(config: ModelConfig, lengths: Sequence[int], new: int, itemsize: int) -> int:
    """Return what keys and values of prompts and of their answers take, and the logits.

    Args:
        config: of the model.
        lengths: of the prompts, in tokens.
        new: tokens of an answer.
        itemsize: bytes of a key's number.
    """
    if not lengths:
        return 0
    text = config.get_text_config()
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    room = max(lengths) + -(-new // GROWTH) * GROWTH
    kept = 2 * len(lengths) * room * heads * width * itemsize * n_layers(config)
    return kept + 3 * 4 * len(lengths) * int(text.vocab_size)


def training(base: int, kept: States, held: Held) -> list[Part]:
    """Return the parts of a training step's memory at its fullest moment."""
    parts = [
        ("the program itself", base, ""),
        ("weights", kept.weights, ""),
        ("float32 masters", kept.masters, ""),
        ("AdamW's two moments", kept.moments, "float32"),
        ("gradients", kept.gradients, "float32"),
        ("kept for the backward pass", held.kept, ""),
        ("what comes and goes", max(0, held.peak - held.kept), ""),
    ]
    return [Part(*part) for part in parts if part[1]]


def overhead(held: Held) -> Part:
    """Return what a step on a processor holds and no tensor does."""
    return Part("kernels, and the heap's gaps", KERNELS + BETWEEN * held.peak, "as measured")


def total(parts: Sequence[Part]) -> float:
    """Add up."""
    return sum(part.amount for part in parts)
