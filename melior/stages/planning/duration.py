"""The time of a run: from measurements on this machine, or from FLOPs and an assumed speed."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path

from melior.models.skeleton import n_layers
from melior.stages.learn import SAMPLE_TOKENS
from melior.stages.planning import clock
from melior.stages.planning.clock import Clock, Seconds
from melior.stages.planning.memory import Part, states
from melior.stages.planning.subject import Subject
from melior.stages.planning.work import Portion, learning_flops, reading_flops

MEASURED = 3
"""Portions of the run that are timed: the middle one of each third, by what they compute."""


def step_flops(subject: Subject) -> float:
    """Return the FLOPs of an optimizer step, on average."""
    loop, coupled = subject.plan.loop, subject.plan.method.is_coupled
    each = [
        learning_flops(
            subject.shape, portion, checkpointing=loop.gradient_checkpointing, is_coupled=coupled
        )
        for portion in subject.work.portions
    ]
    return subject.work.a_step(each)


def assumed(subject: Subject, share: float) -> list[Part]:
    """Return the times of a run's parts on devices that give a share of their declared peak."""
    machine, work = subject.machine, subject.work
    rate = machine.count * machine.flops * share

    def read(portions: Sequence[Portion]) -> float:
        return sum(reading_flops(subject.shape, portion) for portion in portions) / rate

    parts = [Part(f"{work.steps} steps", work.steps * step_flops(subject) / rate, "assumed")]
    if subject.plan.method.has_reference:
        parts.insert(0, Part("the reference, once", read(work.passed) / work.passed_share))
    if subject.judged:
        times = _judgements(subject)
        parts.append(Part(f"held-out rows, {times} times", times * read(subject.judged)))
    return parts


def measured(subject: Subject, timer: Clock) -> list[Part]:
    """Return the times of a run's parts, from a few seconds of its own work on this machine."""
    work, method, loop = subject.work, subject.plan.method, subject.plan.loop
    pace = Pace(subject, timer)
    parts = [Part("starting, and reading the data", subject.began, "as just now")]
    if subject.prompts:
        parts.append(Part("answers before and after, at most", 2 * _answers(subject, timer)))
    if method.has_reference:
        once = sum(map(pace.reading, work.passed)) / work.passed_share
        parts.append(Part("the reference, once", once, "nothing where it is kept"))
    if subject.judged:
        times = _judgements(subject)
        seconds = times * sum(map(pace.reading, subject.judged))
        parts.append(Part(f"held-out rows, {times} times", seconds))
    each = work.a_step([pace.learning(portion) for portion in work.portions]) + pace.update
    parts.append(Part(f"{work.steps} steps", work.steps * each, f"{each:.3g} s each"))
    saved = states(subject.model).moments * 3 // 2  # the weights that are updated, besides
    times = ceil(work.steps / loop.save_steps) if loop.save_steps else 1
    rate = clock.saving(Path(loop.out))
    parts.append(Part(f"checkpoints, {times}", times * saved * rate, f"{saved / 1e9:.2g} GB each"))
    return parts


class Pace:
    """Seconds of any portion, told from the timed one that comes nearest."""

    def __init__(self, subject: Subject, timer: Clock) -> None:
        self._subject = subject
        self._layers = n_layers(subject.config) / timer.depth
        timed = _thirds(subject)
        found = timer.learning([portion.forest for portion in timed])
        self._timed: list[tuple[Portion, Seconds]] = list(zip(timed, found, strict=True))
        trained = sum(one.numel() for one in subject.model.parameters() if one.requires_grad)
        updates = sorted(seconds.update for seconds in found)
        self.update = updates[len(updates) // 2] * trained / timer.n_trained
        """Of the optimizer, once a step."""

    def reading(self, portion: Portion) -> float:
        """Return the seconds of a forward pass."""
        near, seconds = self._nearest(portion)
        body, head = self._shares(portion, near)
        return self._layers * seconds.layers * body + seconds.head * head

    def learning(self, portion: Portion) -> float:
        """Return the seconds of a pass forward and back."""
        near, seconds = self._nearest(portion)
        body, head = self._shares(portion, near)
        back = self._layers * seconds.layers_back * body + seconds.head_back * head
        times = 2 if self._subject.plan.method.is_coupled else 1
        return times * self.reading(portion) + back + seconds.embedding_back

    def _nearest(self, portion: Portion) -> tuple[Portion, Seconds]:
        return min(self._timed, key=lambda timed: abs(timed[0].tokens - portion.tokens))

    def _shares(self, portion: Portion, near: Portion) -> tuple[float, float]:
        """Return what a portion computes in the layers and in the head, relative to another."""
        shape = self._subject.shape
        body = shape.layers(portion.tokens, portion.pairs) / shape.layers(near.tokens, near.pairs)
        return body, portion.scored / max(1, near.scored)


def _thirds(subject: Subject) -> list[Portion]:
    """Return a few portions that stand for all."""
    ordered = sorted(subject.work.portions, key=lambda one: reading_flops(subject.shape, one))
    n = min(MEASURED, len(ordered))
    return [ordered[(2 * index + 1) * len(ordered) // (2 * n)] for index in range(n)]


def _answers(subject: Subject, timer: Clock) -> float:
    """Return the seconds in which all prompts are answered to the limit, in rounds of one batch."""
    read, inside, beside = timer.sampling(subject.prompts)
    layers = n_layers(subject.config) / timer.depth
    return layers * read + SAMPLE_TOKENS * (layers * inside + beside)


def _judgements(subject: Subject) -> int:
    """Return how often held-out rows are judged: before, on the way, and after."""
    loop = subject.plan.loop
    return 2 + (subject.work.steps // loop.eval_steps if loop.eval_steps else 0)
