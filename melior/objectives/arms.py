"""Arms of an experiment: an objective with its data and its settings, tuned before compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melior.evaluation.grid import Value
from melior.objectives.objective import Objective
from melior.objectives.table import objective_kind
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig

if TYPE_CHECKING:
    from melior.stages.bakeoff.cell import Cell
    from melior.stages.bakeoff.exam import Exam


@dataclass(frozen=True)
class Arm:
    """One way to train."""

    label: str
    """Short, and unlike those of the other arms."""
    name: str
    """The objective's."""
    objective: Objective
    learning_rate: float
    data: str
    """The rows that are trained on ..."""
    validation: str
    """... and those held apart from the same source."""
    steps: int
    setting: Mapping[str, Value] = field(default_factory=dict)
    """Its values of the grid's factors, but for the seed."""

    @property
    def strength(self) -> dict[str, float]:
        """The option that is swept, and its value; nothing where there is none."""
        return {name: getattr(self.objective, name) for name in self.objective.sweep}

    def at_rates(self, rates: Sequence[float]) -> list[Arm]:
        """Return the arm at each learning rate."""
        return [replace(self, learning_rate=rate) for rate in rates]

    def at_other_strengths(self) -> list[Arm]:
        """Return the arm at each strength that its objective tries besides the present one."""
        return [
            replace(self, objective=replace(self.objective, **{name: value}))
            for name, values in self.objective.sweep.items()
            for value in values
            if value != getattr(self.objective, name)
        ]


@dataclass(frozen=True)
class Training:
    """What all cells of an experiment have in common."""

    out: Path
    model: ModelOptions
    max_length: int
    allow_lint_errors: bool
    batch_size: int
    max_tokens: int

    def cost(self, data: str, name: str) -> tuple[int, int]:
        """Return the tokens and the steps of one pass over rows, as an objective reads them."""
        from melior.data.forest import size
        from melior.models.loading import load_chat
        from melior.stages.data import as_it_was_said, prepare

        method = objective_kind(name)().method()
        options = DataOptions(data=(data,), max_length=self.max_length, max_long_share=1.0)
        prepared = prepare(
            options.data, load_chat(self.model), options, data=method.data,
            has_strangers=method.has_strangers, encode=as_it_was_said, seed=0,
        )  # fmt: skip
        prepared.refuse_errors(allowed=self.allow_lint_errors)
        tokens = sum(size(group.answers) for group in prepared.groups)
        return tokens, ceil(len(prepared.groups) / self.batch_size)

    def cell(
        self, arm: Arm, exam: Exam, *, steps: int, seed: int, about: Mapping[str, Any]
    ) -> Cell:
        """Return an arm's cell; its folder is named after all that decides what comes out."""
        from melior.stages.bakeoff.cell import Cell, digest

        judged = [about["comparisons"], about["prompts"], asdict(self.model), asdict(exam)]
        start = self.out / "start" / f"{digest(judged)}.json"
        cell = Cell(
            label=arm.label,
            name=arm.name,
            objective=arm.objective,
            model=self.model,
            data=DataOptions(
                data=(arm.data,), max_length=self.max_length, n_samples=0, max_long_share=1.0,
                allow_lint_errors=self.allow_lint_errors,
            ),
            loop=LoopOptions(
                out="", max_steps=steps, batch_size=self.batch_size, max_tokens=self.max_tokens,
                save_steps=0, seed=seed,
            ),
            optim=OptimConfig(learning_rate=arm.learning_rate),
            exam=exam,
            start=str(start),
            about=about,
        )  # fmt: skip
        folder = self.out / "cells" / f"{arm.label.replace('/', '-')}-{seed}-{cell.key()}"
        return replace(cell, loop=replace(cell.loop, out=str(folder)))


def best(arms: Sequence[Arm], score: Callable[[Arm], float | None]) -> Arm | None:
    """Return the arm with the highest score, the first of equal ones; None where none has one."""
    scored = [(value, arm) for arm in arms if (value := score(arm)) is not None]
    return max(scored, key=lambda one: one[0])[1] if scored else None
