"""LanguageModel: any transformers causal LM that says how probable answers are, and answers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from melior.data.chat import ChatFormat
from melior.data.forest import Forest
from melior.models.generation import Completion, complete
from melior.models.layout import evaluating, forest_hidden, padded_hidden, plug_in
from melior.models.output import output_layer, refuse_other_logits
from melior.models.sharding import divide, gathered
from melior.options import Sampling
from melior.records import Turns
from melior.training import processes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


class LanguageModel:
    """A causal LM with its chat format.

    Args:
        model: of transformers, or a peft model around one.
        chat: how conversations become its tokens.
        masters: float32 originals of weights that are held in bfloat16, by parameter name.
        padded: compute each sequence in a row of its own, even where a forest would be exact.
    """

    def __init__(
        self,
        model: nn.Module,
        chat: ChatFormat,
        *,
        masters: Mapping[str, Tensor] | None = None,
        padded: bool = False,
    ) -> None:
        self.model = model
        self.chat = chat
        self.masters = dict(masters or {})
        self.output = output_layer(self.core)
        refuse_other_logits(self.core, self.output)
        self.padded_because = "as --padded asks" if padded else plug_in(self.core)
        """Why sequences are computed one by one under padding; empty where the forest is exact."""

    @property
    def core(self) -> PreTrainedModel:
        """The transformers model, inside its adapter if it has one."""
        return core(self.model)

    @property
    def has_adapter(self) -> bool:
        """Whether only an adapter is trained, so that the start model is still there."""
        return hasattr(self.model, "peft_config")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @cached_property
    def start_hash(self) -> str:
        """A fingerprint of what is computed, adapters left out; taken before training."""
        return fingerprint(self.model, self.core.config)

    def divide(self, mesh: DeviceMesh) -> None:
        """Leave this process a part of the weights; all have read the same."""
        if processes.is_first():
            assert self.start_hash  # taken while the weights are whole; the others are told it
        divide(self.core, mesh, self.masters)
        self.masters = {}

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass: less memory, more time."""
        checkpoint_activations(self.model)

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that training may change, by name."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def log_probs(self, forest: Forest) -> Float[Tensor, " s"]:
        """Return the log-probability of each scored token of the forest."""
        targets = forest.targets.to(self.device)
        return gathered(self.core, lambda: self.output.log_probs(self.hidden(forest), targets))

    def hidden(self, forest: Forest, rows: Int[Tensor, " r"] | None = None) -> Float[Tensor, "r d"]:
        """Return the last hidden state of rows; by default of those before the scored tokens.

        Of a divided model: within `gathered`.

        Raises:
            ValueError: a sequence is longer than the model has positions.
        """
        self._check_positions(forest)
        compute = padded_hidden if self.padded_because else forest_hidden
        return compute(self.core, forest, forest.before if rows is None else rows)

    def _check_positions(self, forest: Forest) -> None:
        limit = getattr(self.core.config.get_text_config(), "max_position_embeddings", None)
        longest = int(forest.positions.max()) + 1
        if limit is not None and longest > limit:
            raise ValueError(
                f"max_length must be at most the {limit} positions that the model has; found a"
                f" sequence of {longest} tokens"
            )

    @contextmanager
    def reference(self) -> Iterator[None]:
        """Inside, the model is the one it started as: its adapter is off, no gradient is kept.

        Raises:
            ValueError: all weights are trained, so the start is gone.
        """
        if not self.has_adapter:
            raise ValueError(
                "reference: a model without adapter changes as it trains; compute the reference's"
                " log-probabilities before training"
            )
        with torch.no_grad(), self.model.disable_adapter():  # type: ignore[operator]
            yield

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, nothing is random and no gradient is kept: an adapter's dropout is off."""
        with evaluating(self.model):
            yield

    def complete(
        self, prompts: Sequence[Turns], sampling: Sampling, *, generator: torch.Generator
    ) -> list[list[Completion]]:
        """Answer each prompt `sampling.k` times."""
        tokens = [self.chat.prompt_tokens(prompt) for prompt in prompts]
        return complete(
            self.core,
            tokens,
            sampling,
            stop_token_ids=self.chat.stop_token_ids,
            decode=self.chat.decode,
            generator=generator,
        )


def core(model: nn.Module) -> PreTrainedModel:
    """Return the transformers model, inside its adapter if it has one."""
    return model.get_base_model() if hasattr(model, "peft_config") else model  # type: ignore


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute a transformers or peft model's activations in the backward pass."""
    model.train()
    inner = core(model)
    inner.gradient_checkpointing_enable({"use_reentrant": False})
    if inner is not model:
        inner.enable_input_require_grads()


def fingerprint(model: nn.Module, config: PreTrainedConfig) -> str:
    """Return a hash of all that a model computes with, adapters left out."""
    settings = {k: v for k, v in config.to_dict().items() if k != "_name_or_path"}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, weight in (*model.named_parameters(), *model.named_buffers()):
        if "lora_" not in name:
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            bits = weight.detach().cpu().reshape(-1).view(torch.uint8)
            digest.update(bits.numpy().tobytes())
    return digest.hexdigest()
