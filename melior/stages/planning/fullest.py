"""A run's memory at its fullest moment, under its own options or under others."""

from __future__ import annotations

from dataclasses import dataclass

from melior.models.loading import folder_of
from melior.models.names import adapter_base
from melior.models.rehearsal import Rehearsal
from melior.models.skeleton import skeleton
from melior.options import LoopOptions, ModelOptions
from melior.stages.learn import SAMPLE_TOKENS
from melior.stages.planning.memory import (
    Part,
    States,
    cache_bytes,
    gathered,
    overhead,
    states,
    total,
    training,
)
from melior.stages.planning.subject import Subject
from melior.stages.planning.work import Portion


@dataclass(frozen=True)
class Memory:
    """The parts of a training step's memory, and what other moments of the run come to."""

    training: tuple[Part, ...]
    reading: float
    """While the weights are read."""
    answering: float
    """While answers are drawn, and measured against the start model."""

    @property
    def most(self) -> float:
        """At the run's fullest moment."""
        return max(total(self.training), self.reading, self.answering)

    @property
    def fullest(self) -> str:
        """Which moment that is."""
        moments = {
            "training": total(self.training),
            "reading the weights": self.reading,
            "answering": self.answering,
        }
        return max(moments, key=lambda name: moments[name])


def memory(subject: Subject, options: ModelOptions, loop: LoopOptions, portion: Portion) -> Memory:
    """Return what a run takes whose largest portion is this one."""
    is_own = options == subject.plan.model
    model = subject.model if is_own else skeleton(options, subject.config)
    rehearsal = Rehearsal(
        options, subject.config, loop.gradient_checkpointing, subject.is_padded,
        on_cpu=subject.machine.is_cpu,
    )  # fmt: skip
    whole, held = states(model), rehearsal.held(portion.forest)
    count, base = subject.machine.count, subject.base
    parts = training(base, whole.shard(count), held)
    if count > 1:
        parts.append(Part("gathered from others for a moment", gathered(model), "FSDP"))
    if subject.machine.is_here and subject.machine.is_cpu:
        parts.append(overhead(held))
    if not subject.machine.is_here:  # weights are read into another memory, and shared out
        return Memory(tuple(parts), 0.0, 0.0)
    itemsize = 2 if options.dtype == "bf16" else 4
    lengths = [len(prompt) for prompt in subject.prompts]
    cache = cache_bytes(subject.config, lengths, SAMPLE_TOKENS, itemsize)
    start = 0 if options.lora_r or not lengths else _again(options, whole)
    kept = base + whole.weights + whole.masters
    reading = base + whole.original + whole.masters if subject.machine.is_cpu else 0
    return Memory(tuple(parts), reading, kept + max(cache, start))


def _again(options: ModelOptions, whole: States) -> int:
    """Return what the start model takes when it is read again, to be compared, not to be learned.

    That is what its weights take, but for one that is an adapter: it is folded in in float32.
    """
    return whole.original if adapter_base(folder_of(options.model)) else whole.weights
