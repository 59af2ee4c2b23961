"""How fast this machine is: one real step on the model's first layers, with the real code.

Layers are alike, so that a few of them tell of all; the output layer, the embedding and the
optimizer are timed apart, since they are there once, or go with the number of weights. The weights
are random: how long a product takes does not depend on its numbers.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from melior.data.chat import ChatFormat
from melior.data.forest import Forest
from melior.models.generation import complete
from melior.models.language import LanguageModel
from melior.models.loading import held
from melior.models.packed import pack
from melior.models.skeleton import ModelConfig, drawn, n_layers, period
from melior.ops import generator
from melior.options import ModelOptions, OptimConfig, Sampling
from melior.records import Metrics
from melior.training.loop import descend

PATIENCE = 30.0
"""Seconds after which no second round of measurements begins."""
DRAWN = 8
"""Tokens by which answers are drawn to see how fast that goes."""
WRITTEN = 64 * 2**20
"""Bytes that are written to see how fast that goes."""


@dataclass(frozen=True)
class Seconds:
    """What a step on one portion took, part by part."""

    layers: float
    head: float
    layers_back: float
    head_back: float
    embedding_back: float
    update: float


class Clock:
    """The first layers of a model on this machine, as the run would hold them.

    Args:
        options: of the model, and how it is held.
        config: of the whole model.
        chat: its tokens.
        optim: of the optimizer.
        checkpointing: activations are made again in the backward pass.
    """

    def __init__(
        self,
        options: ModelOptions,
        config: ModelConfig,
        chat: ChatFormat,
        optim: OptimConfig,
        *,
        checkpointing: bool,
    ) -> None:
        self.depth = depth(config)
        first = drawn(options, config, self.depth)
        model, masters = held(first, options, trainable=True, seed=0)
        self.model = LanguageModel(model, chat, masters=masters, padded=options.padded)
        self.n_trained = sum(one.numel() for one in self.model.trainable().values())
        if checkpointing:
            self.model.checkpoint_activations()
        self._marks: dict[str, float] = {}
        self._watch()
        self._step = descend(
            self._objective, self.model.trainable(), optim, total_steps=1,
            masters=self.model.masters,
        )  # fmt: skip

    def learning(self, forests: Sequence[Forest]) -> list[Seconds]:
        """Take a step on each portion, and one before that does not count; twice if time allows."""
        began = time.monotonic()
        self._time(min(forests, key=lambda forest: len(forest.tokens)))
        rounds = [[self._time(forest) for forest in forests]]
        if time.monotonic() - began < PATIENCE:
            rounds.append([self._time(forest) for forest in forests])
        return [
            Seconds(*(sum(same) / len(same) for same in zip(*map(astuple, times), strict=True)))
            for times in zip(*rounds, strict=True)
        ]

    def sampling(self, prompts: Sequence[Sequence[int]]) -> tuple[float, float, float]:
        """Return the seconds in which prompts are read, and of a token more to each answer.

        Returns:
            Reading, a token in the layers, and a token beside them, in the output layer.
        """
        first = self._answer(prompts, 1)  # a trial of the model comes with it
        first = self._answer(prompts, 1)
        more = self._answer(prompts, 1 + DRAWN)
        inside, beside = ((b - a) / DRAWN for a, b in zip(first, more, strict=True))
        return first[0], max(0.0, inside), max(0.0, beside)

    def _answer(self, prompts: Sequence[Sequence[int]], new: int) -> tuple[float, float]:
        """Draw answers; return the seconds inside the layers, and beside them."""
        inside = [0.0]
        model = deepcopy(self.model.core).requires_grad_(False)
        pack(model)  # as in a model that is loaded to answer
        body: nn.Module = model.base_model
        handles = [
            body.register_forward_pre_hook(lambda *_: inside.append(-self._now())),
            body.register_forward_hook(lambda *_: inside.append(self._now())),
        ]
        began = self._now()
        complete(
            model, prompts, Sampling(max_new_tokens=new),
            stop_token_ids=(), decode=lambda tokens: "", generator=generator(0),
        )  # fmt: skip
        whole = self._now() - began
        for handle in handles:
            handle.remove()
        return sum(inside), whole - sum(inside)

    def _time(self, forest: Forest) -> Seconds:
        self._marks = {"start": self._now()}
        self._step([forest])
        self._mark("end")
        marks = self._marks
        ends = ("hidden", "loss", "head", "layers", "embedding", "end")
        last, found = marks["start"], []
        for name in ends:  # what an adapter leaves out, such as the embedding's gradient, takes 0 s
            now = marks.get(name, marks["end"] if name == "layers" else last)
            found.append(max(0.0, now - last))
            last = now
        layers, head, head_back, layers_back, embedding_back, update = found
        return Seconds(layers, head, layers_back, head_back, embedding_back, update)

    def _objective(self, forest: Forest) -> tuple[Float[Tensor, ""], Metrics]:
        hidden = self.model.hidden(forest)
        self._mark("hidden")
        hidden.register_hook(lambda _: self._mark("head"))
        targets = forest.targets.to(self.model.device)
        loss = -self.model.output.log_probs(hidden, targets).mean()
        self._mark("loss")
        return loss, {}

    def _watch(self) -> None:
        """Mark when gradients come to the embedding's output, and to its weight."""

        def enters(_: nn.Module, __: Any, embedded: Tensor) -> None:
            if embedded.requires_grad:
                embedded.register_hook(lambda _: self._mark("layers"))

        embedding = self.model.core.get_input_embeddings()
        embedding.register_forward_hook(enters)
        if embedding.weight.requires_grad:
            embedding.weight.register_post_accumulate_grad_hook(lambda _: self._mark("embedding"))

    def _mark(self, name: str) -> None:
        self._marks[name] = self._now()

    def _now(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()


def depth(config: ModelConfig) -> int:
    """Return how many layers are timed: each kind, and two at least, where there are so many."""
    return min(n_layers(config), max(2, period(config)))


def saving(beside: Path) -> float:
    """Return the seconds in which a byte of a checkpoint is written and hashed there."""
    place = next(one for one in (beside.absolute(), *beside.absolute().parents) if one.is_dir())
    content = os.urandom(2**20) * (WRITTEN // 2**20)
    began = time.perf_counter()
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            file.seek(0)
            hashlib.file_digest(file, "sha256")
    except OSError:
        return 0.0  # where nothing can be written the run will say so itself
    return (time.perf_counter() - began) / WRITTEN
