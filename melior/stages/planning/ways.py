"""Which options would make a run fit, and what it would come to; best first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from melior.options import LoopOptions, ModelOptions
from melior.stages.planning.fullest import memory
from melior.stages.planning.subject import Subject
from melior.stages.planning.work import Portion, learning_flops

RANK = 16
"""Of the adapter that is proposed."""
STEP = 64
"""Tokens by which a smaller budget is rounded down."""


@dataclass(frozen=True)
class Way:
    """Options that make a run fit."""

    options: str
    memory: float
    """Bytes at the run's fullest moment."""
    slower: float
    """FLOPs of a step, relative to the run as it was asked for."""
    is_same: bool
    """The run learns the same, up to rounding."""


def ways(subject: Subject, most: float) -> list[Way]:
    """Return what would make a run fit that does not: first what changes no number, then speed.

    Args:
        subject: the run as it was asked for.
        most: bytes that it takes.
    """
    found = [way for way in _tried(subject, most) if way.memory <= subject.machine.memory]
    return sorted(found, key=lambda way: (not way.is_same, way.slower, -way.memory))


def _tried(subject: Subject, asked: float) -> Iterator[Way]:
    model, loop = subject.plan.model, subject.plan.loop
    models = {"": model}
    if not model.lora_r:
        models[f"--lora-r {RANK}"] = replace(model, lora_r=RANK)
    if model.dtype == "fp32":
        models["--dtype bf16"] = replace(model, dtype="bf16")
    loops = {"": loop}
    if not loop.gradient_checkpointing:
        loops["--gradient-checkpointing"] = replace(loop, gradient_checkpointing=True)
    for (held, options), (said, longer) in product(models.items(), loops.items()):
        words = " ".join(word for word in (held, said) if word)
        cost = _cost(subject, options, longer) / _cost(subject, model, loop)
        largest = subject.work.largest
        most = memory(subject, options, longer, largest).most if words else asked
        if words:
            yield Way(words, most, cost, is_same=not held)
        if most > subject.machine.memory:
            fewer = _fewer_tokens(subject, options, longer, most)
            if fewer:
                text = f"{words} --max-tokens {fewer[0]}".strip()
                yield Way(text, fewer[1], cost, is_same=not held)


def _fewer_tokens(
    subject: Subject, options: ModelOptions, loop: LoopOptions, most: float
) -> tuple[int, float] | None:
    """Return the largest budget of tokens that fits, and what it comes to.

    Memory is a straight line over the tokens of a portion, told from two of them.
    """
    work, largest = subject.work, subject.work.largest
    other = _smaller(work.portions, largest)
    if other is None:
        return None
    less = memory(subject, options, loop, other).most
    each = (most - less) / (largest.tokens - other.tokens)
    if each <= 0:
        return None
    fits = largest.tokens - (most - subject.machine.memory) / each
    tokens = int(fits) // STEP * STEP
    if tokens < max(work.least_tokens, STEP):
        return None
    return tokens, most - each * (largest.tokens - tokens)


def _smaller(portions: list[Portion], largest: Portion) -> Portion | None:
    """Return the portion that comes nearest to half of the largest; None where all are as large."""
    nearest = min(portions, key=lambda portion: abs(portion.tokens - largest.tokens / 2))
    return nearest if nearest.tokens < 0.9 * largest.tokens else None


def _cost(subject: Subject, options: ModelOptions, loop: LoopOptions) -> float:
    from melior.models.flops import shape_of
    from melior.models.skeleton import skeleton

    shape = shape_of(skeleton(options, subject.config))
    return learning_flops(
        shape, subject.work.largest,
        checkpointing=loop.gradient_checkpointing, is_coupled=subject.plan.method.is_coupled,
    )  # fmt: skip
