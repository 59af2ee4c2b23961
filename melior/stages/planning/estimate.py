"""What a run of one stage will take: its memory, its time, and what would make it fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from melior.models.skeleton import skeleton
from melior.stages.learn import Plan
from melior.stages.planning.clock import Clock, depth
from melior.stages.planning.duration import assumed, measured, step_flops
from melior.stages.planning.fullest import Memory, memory
from melior.stages.planning.machines import Machine
from melior.stages.planning.memory import Part, states, total
from melior.stages.planning.subject import Subject
from melior.stages.planning.ways import Way, ways

SPARE = 0.5
"""Share of the free memory that a measurement may take."""


@dataclass(frozen=True)
class Estimate:
    """A plan: what a run will take."""

    command: str
    model: str
    machine: Machine
    n_weights: int
    n_trained: int
    counts: dict[str, float]
    """Rows, steps, and what a step and the largest portion compute."""
    memory: Memory
    time: tuple[Part, ...]
    ways: tuple[Way, ...]
    notes: tuple[str, ...]

    @property
    def fits(self) -> bool:
        """Whether the memory is there."""
        return self.memory.most <= self.machine.memory

    @property
    def seconds(self) -> float:
        """In all."""
        return total(self.time)

    def to_json(self) -> dict[str, Any]:
        """Return all of it, as JSON can hold it."""
        most = {"most": self.memory.most, "fullest": self.memory.fullest}
        return asdict(self) | {
            "memory": asdict(self.memory) | most, "fits": self.fits, "seconds": self.seconds
        }  # fmt: skip


def estimate(plan: Plan, machine: Machine, *, share: float) -> Estimate:
    """Say what a run will take.

    Args:
        plan: of the run.
        machine: that it is to run on.
        share: of their declared peak that devices give which are not here.
    """
    subject = Subject.of(plan, machine)
    notes = []
    if subject.is_padded:
        why = "as --padded asks" if plan.model.padded else "its layers need it"
        notes.append(f"answers are computed one by one, under padding: {why}")
    found = memory(subject, plan.model, plan.loop, subject.work.largest)
    time, said = _time(subject, share)
    short = found.most > machine.memory
    return Estimate(
        command=plan.recipe,
        model=plan.model.model,
        machine=machine,
        n_weights=sum(one.numel() for one in subject.model.parameters()),
        n_trained=sum(one.numel() for one in subject.model.parameters() if one.requires_grad),
        counts=_counts(subject),
        memory=found,
        time=tuple(time),
        ways=tuple(ways(subject, found.most)) if short else (),
        notes=(*notes, *said),
    )


def _counts(subject: Subject) -> dict[str, float]:
    work, groups = subject.work, subject.train.groups
    padded = [len(group.answers) * len(group) for group in groups]
    return {
        "rows": len(groups),
        "rows left out": len(subject.train.record["left_out"]),
        "steps": work.steps,
        "steps looked at": len(work.batches),
        "portions of a step": work.a_step([1.0] * len(work.portions)),
        "tokens of a step": work.a_step([one.tokens for one in work.portions]),
        "the same, padded": sum(padded) / len(groups) * min(len(groups), _batch(subject)),
        "scored tokens of a step": work.a_step([one.scored for one in work.portions]),
        "tokens of the largest portion": work.largest.tokens,
        "FLOPs of a step": step_flops(subject),
    }


def _batch(subject: Subject) -> int:
    return subject.plan.loop.batch_size


def _time(subject: Subject, share: float) -> tuple[list[Part], Sequence[str]]:
    """Return the parts of the time, and what is to be said of them."""
    plan, machine = subject.plan, subject.machine
    if not machine.is_here:
        whole = states(subject.model).original
        kind = "bfloat16" if plan.model.lora_r and plan.model.dtype == "bf16" else "float32"
        return assumed(subject, share), [
            f"each process first reads all weights, {whole / 2**30:.0f} GiB of {kind}, into the"
            " memory of its host, one process after the other",
            f"time: {machine.count} x {machine.flops:.3g} FLOP/s declared, of which {share:.0%} is"
            " assumed to be reached, communication included; nothing was measured",
        ]
    few = depth(subject.config)
    small = states(skeleton(plan.model, subject.config, depth=few))
    need = sum((small.weights, small.masters, small.moments, small.gradients, small.original))
    if need > SPARE * machine.memory:
        return [], [
            f"time: not measured, as {few} layers alone take {need / 2**30:.1f} GiB here; give"
            " --on with a larger machine"
        ]
    timer = Clock(
        plan.model, subject.config, subject.chat, plan.optim,
        checkpointing=plan.loop.gradient_checkpointing,
    )  # fmt: skip
    return measured(subject, timer), [
        f"time: measured on {few} of the layers, with random weights, in a few seconds of the run's"
        " own portions; other work on this machine will make it longer"
    ]
