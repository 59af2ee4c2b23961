"""A run's own first rows, computed both ways before its first step: as a forest, and plainly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from melior.data.forest import Forest, Marked, plant
from melior.models import attention
from melior.models.layout import forest_hidden, has_experts, padded_hidden
from melior.models.sharding import gathered

N_ROWS = 2
"""Of the data that are computed both ways: the shortest, ..."""
N_ANSWERS = 2
"""... the first of their answers, ..."""
N_TOKENS = 256
"""... and of these the tokens around the place where they part: eager attention is quadratic."""
SLACK = 4.0
"""How many times as far as one rounding moves hidden states the two ways may be apart: half of this
passes every family that is tested. With experts it is twice this, as rounding may also send a token
to another one. In bfloat16 a small wrong may hide below it."""

_fit: WeakSet[PreTrainedModel] = WeakSet()
"""Models that were found to fit."""


@runtime_checkable
class Packing(Protocol):
    """A model that computes a shared prompt once, unless there is a reason not to."""

    padded_because: str

    @property
    def core(self) -> PreTrainedModel:
        """The transformers model inside."""

    def evaluating(self) -> AbstractContextManager[None]:
        """Inside, nothing is random and no gradient is kept."""


def refuse_disagreement(model: Packing, rows: Iterable[tuple[str, Sequence[Marked]]]) -> None:
    """Check that a forest gives the hidden states that a model gives by itself, on a few rows.

    By itself: each answer in a row of its own, padded, through the model's own eager attention. How
    far apart rounding may bring the two is measured, on the same rows: the plain computation is
    repeated with the words' embeddings moved by one unit in the last place. Distances are averaged
    over the tokens of a prompt, or of what an answer has for itself, as single ones may be
    ill-conditioned. Nothing random is drawn, and no gradient kept.

    Args:
        model: one that is padded anyway passes, and one that was found to fit before.
        rows: what each is called, and its answers.

    Raises:
        ValueError: the two are apart by more, with the row, the tokens, and the way out.
    """
    if model.padded_because or model.core in _fit:
        return
    asked = [(name, answers[:N_ANSWERS]) for name, answers in rows if answers]
    few = sorted(asked, key=lambda row: sum(len(one.tokens) for one in row[1]))[:N_ROWS]
    if few:
        with model.evaluating():
            _compare(model.core, [(name, _around_the_fork(answers)) for name, answers in few])
        _fit.add(model.core)


@dataclass(frozen=True)
class _Stretch:
    """Some tokens of a sequence, of which none is scored."""

    tokens: tuple[int, ...]

    @property
    def mask(self) -> tuple[bool, ...]:
        return (False,) * len(self.tokens)


def _around_the_fork(answers: Sequence[Marked]) -> list[_Stretch]:
    whole = [tuple(answer.tokens) for answer in answers]
    pairs = zip(min(whole), max(whole), strict=False)
    shared = next((i for i, (left, right) in enumerate(pairs) if left != right), len(min(whole)))
    start = max(0, shared - N_TOKENS // 2)
    return [_Stretch(tokens[start : start + N_TOKENS]) for tokens in whole]


def _compare(model: PreTrainedModel, few: Sequence[tuple[str, Sequence[_Stretch]]]) -> None:
    names = [name for name, answers in few for _ in answers]
    forest = plant([one for _, answers in few for one in answers], min_shared=1)
    packed, plain, rounded = gathered(model, lambda: _both_ways(model, forest))
    apart, rounding = (_distances(forest, hidden, plain) for hidden in (packed, rounded))
    allowed = SLACK * (1 + has_experts(model)) * rounding.clamp_min(float(rounding.mean()))
    if bool((apart <= allowed).all()) or not bool(plain.isfinite().all()):
        return  # numbers that outgrow their dtype are told where they are used
    worst = int((apart / allowed).argmax())
    owner = next(i for i, path in enumerate(forest.paths) if worst in path)
    part = "prompt" if forest.segments[worst].end > forest.segments[worst].stop else "answer"
    raise ValueError(
        f"{names[owner]}: a prompt that is computed once for its answers must give what each answer"
        f" gives by itself; found hidden states of the {part} that differ by"
        f" {float(apart[worst]):.2g} of their length, where rounding explains"
        f" {float(allowed[worst]):.2g}; {type(model).__name__} does not fit: add --padded,"
        " which computes each answer in a row of its own, prompt and all"
    )


def _both_ways(model: PreTrainedModel, forest: Forest) -> tuple[Tensor, Tensor, Tensor]:
    """Return all hidden states of a forest, those of a plain run, and what rounding makes of it."""
    every = torch.arange(len(forest.tokens))
    packed = forest_hidden(model, forest, every)
    with _own_attention(model):
        plain = padded_hidden(model, forest, every)
        with _one_unit_off(model):
            return packed, plain, padded_hidden(model, forest, every)


def _distances(
    forest: Forest, left: Float[Tensor, "t d"], right: Float[Tensor, "t d"]
) -> Float[Tensor, " g"]:
    """Return how far hidden states are apart, relative to the latter, in the mean of a segment."""
    left, right = left.float(), right.float()
    each = (left - right).norm(dim=-1) / right.norm(dim=-1)
    return torch.stack([each[part.start : part.stop].mean() for part in forest.segments])


@contextmanager
def _own_attention(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model attends as its own code does."""
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(attention.NAME)


@contextmanager
def _one_unit_off(model: PreTrainedModel) -> Iterator[None]:
    """Inside, embeddings are moved by one unit in the last place, every other number upwards."""
    unit = torch.finfo(model.dtype).eps

    def move(_: object, __: object, embedded: Tensor) -> Tensor:
        signs = 1 - 2 * (torch.arange(embedded.shape[-1], device=embedded.device) % 2)
        return embedded * (1 + unit * signs).to(embedded.dtype)

    handle = model.get_input_embeddings().register_forward_hook(move)
    try:
        yield
    finally:
        handle.remove()
