"""A bake-off from rows to results: split, tune, train, judge, each cell in a process of its own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from melior.data.files import content_hash, read_pairs
from melior.data.tables import TableRow, write_csv, write_parquet
from melior.evaluation.bakeoff import QUANTITIES, Numbers, Outcome, outcome
from melior.evaluation.grid import Setting, Value, unlike, varied
from melior.objectives.arms import Arm, Training, best
from melior.objectives.table import objective_kind
from melior.ops import generator
from melior.stages.bakeoff.cell import (
    JUDGED,
    Cell,
    Scoring,
    judge_start,
    store_margins,
    train_and_judge,
)
from melior.stages.bakeoff.exam import Exam
from melior.stages.reward_models.apart import Apart, deciding, held_out, validation
from melior.training.hooks import counted
from melior.training.jobs import Ended, in_processes

SEVERAL = "\n"
"""Between the sources of one value of the factor `data`."""


@dataclass(frozen=True)
class Plan:
    """What a bake-off needs to know, as values."""

    training: Training
    exam: Exam
    """The final one, but for its rows."""
    eval_data: tuple[str, ...]
    budget: int
    max_steps: int
    learning_rates: tuple[float, ...]
    sweep_share: float
    validation_share: float
    validation_k: int
    metric: str
    kl_budget: float
    jobs: int
    keep_models: bool


class Experiment:
    """All arms of a bake-off, on the same folder, judged by the same examinations."""

    def __init__(
        self, plan: Plan, settings: Sequence[Setting], note: Callable[[str], None]
    ) -> None:
        self.plan = plan
        self.note = note
        self.seeds = list(dict.fromkeys(int(setting["seed"]) for setting in settings))
        place = plan.training.out / "split"
        judged_on = held_out(plan.eval_data, place)
        self.splits = {
            data: validation(
                data.split(SEVERAL), place, judged_on, share=plan.validation_share,
                seed=self.seeds[0], allows_overlap=plan.training.allow_lint_errors,
            )
            for data in dict.fromkeys(str(setting["data"]) for setting in settings)
        }  # fmt: skip
        apart = [own for _, own in self.splits.values()]
        self.metric = deciding(plan.metric, plan.exam.scorer, judged_on, apart)
        self.exam = _final(plan.exam, judged_on)
        arms = unlike({key: s[key] for key in s if key != "seed"} for s in settings)
        self.wanted = [({key: s[key] for key in s if key != "seed"}, s["seed"]) for s in settings]
        self.budget = plan.budget
        labels = named(arms)
        self.arms = [self._arm(one, label) for one, label in zip(arms, labels, strict=True)]
        self.tried: list[tuple[Arm, Cell]] = []
        self.reasons: dict[Path, str] = {}

    def tune(self) -> None:
        """Choose each arm's learning rate, then its strength, on the prompts held apart."""
        rates = self.plan.learning_rates
        if not self.plan.sweep_share:
            return
        first = {arm.label: arm.at_rates(rates) for arm in self.arms}
        self._try(arm for tries in first.values() for arm in tries)
        at_best = [self._best(first[arm.label]) or arm for arm in self.arms]
        second = {arm.label: arm.at_other_strengths() for arm in at_best}
        self._try(arm for tries in second.values() for arm in tries)
        self.arms = [self._best([arm, *second[arm.label]]) or arm for arm in at_best]

    def compare(self) -> Outcome:
        """Train every arm at its chosen setting with every seed, and judge all of them."""
        cells = [
            (arm, self._cell(arm, self.exam, arm.steps, seed=int(seed)))
            for arm in self.arms
            for setting, seed in self.wanted
            if setting == arm.setting
        ]
        self._run([cell for _, cell in cells], "runs")
        rows = [self._row(arm, cell, "sweep") for arm, cell in self.tried]
        rows += [self._row(arm, cell, "run") for arm, cell in cells]
        folder = self.plan.training.out
        write_csv(folder / "results.csv", rows)
        if not write_parquet(folder / "results.parquet", rows):
            self.note("results.parquet is left out: it needs pip install 'melior[data]'")
        done = [(arm, cell) for arm, cell in cells if cell.is_done]
        if not done:
            first = next(iter(self.reasons.values()), "")
            raise ValueError(f"{folder}: no run could be finished; the first: {first}")
        arms: dict[str, dict[int, Numbers]] = {}
        for arm, cell in done:
            arms.setdefault(arm.label, {})[cell.loop.seed] = _judged(cell)["numbers"]
        arms_of = [arm.setting for arm in self.arms]
        return outcome(
            self.metric, rows, _numbers(Path(done[0][1].start)), arms,
            factors=[name for name in varied(arms_of) if name != "objective"],
            folders={arm.label: cell.folder for arm, cell in reversed(done)},
            generator=generator(self.seeds[0]),
        )  # fmt: skip

    def _try(self, arms: Iterable[Arm]) -> None:
        tried = [(arm, self._tried(arm)) for arm in arms]
        self.tried += tried
        self._run([cell for _, cell in tried], "settings tried")

    def _tried(self, arm: Arm) -> Cell:
        """Return the cell of a setting that is tried: a share of the budget, the first seed."""
        plan = self.plan
        validation = replace(
            self.exam, comparisons=arm.validation, k=plan.validation_k,
            prompts="" if self.metric == "accuracy" else arm.validation,
            has_rules=self.metric == "rules",
        )  # fmt: skip
        steps = max(1, round(plan.sweep_share * arm.steps))
        return self._cell(arm, validation, steps, seed=self.seeds[0])

    def _best(self, arms: Sequence[Arm]) -> Arm | None:
        def score(arm: Arm) -> float | None:
            cell = self._tried(arm)
            return float(np.mean(_judged(cell)["numbers"][self.metric])) if cell.is_done else None

        return best(arms, score)

    def _cell(self, arm: Arm, exam: Exam, steps: int, *, seed: int) -> Cell:
        about = {
            "data": content_hash(arm.data),
            "comparisons": content_hash(exam.comparisons) if exam.comparisons else "",
            "prompts": content_hash(exam.prompts) if exam.prompts else "",
        }
        return self.plan.training.cell(arm, exam, steps=steps, seed=seed, about=about)

    def _run(self, cells: Sequence[Cell], what: str) -> None:
        """Run the cells that are not done yet; the start model is judged before them."""
        todo = [cell for cell in cells if not cell.is_done]
        starts = {cell.start: cell for cell in todo if not Path(cell.start).exists()}
        for ended in self._in_processes(judge_start, list(starts.values())):
            if ended.reason:
                raise ValueError(
                    f"{ended.job.model.model}: the start model could not be judged:"
                    f" {ended.reason}; see {_log(ended.job)}"
                )
        n_done = len(cells) - len(todo)
        running = self._in_processes(train_and_judge, todo)
        with counted(what, len(cells)) as progress, closing(running):
            progress(n_done)
            for ended in running:
                self._ended(ended.job, ended.reason, cells)
                n_done += 1
                progress(n_done)

    def _in_processes(
        self, act: Callable[[Cell], None], cells: Sequence[Cell]
    ) -> Generator[Ended[Cell], None, None]:
        return in_processes(act, cells, at_once=self.plan.jobs, log=_log)

    def _ended(self, cell: Cell, reason: str, beside: Sequence[Cell]) -> None:
        """Note a failure; of what was trained keep the weights of each arm's best run."""
        if reason:
            self.reasons[cell.folder] = reason
            self.note(f"{cell.folder.name}: {reason}; the others go on; see {_log(cell)}")
        if self.plan.keep_models or not cell.is_done:
            return
        is_tried = cell.exam != self.exam
        done = [one for one in beside if one.is_done and one.label == cell.label]
        keep = None if is_tried else max(done, key=self._score)
        for one in done:
            if one is not keep:
                shutil.rmtree(one.folder / "model", ignore_errors=True)

    def _score(self, cell: Cell) -> float:
        return float(np.mean(_judged(cell)["numbers"][self.metric]))

    def _arm(self, setting: Mapping[str, Value], label: str) -> Arm:
        name = str(setting["objective"])
        objective = objective_kind(name)()
        data, validation = self.splits[str(setting["data"])]
        if objective.reads_margins:
            if setting["reward_model"]:
                data = self._with_margins(data, str(setting["reward_model"]))
            objective = objective.fitted([pair.margin for pair in read_pairs(data)])
        steps = self.plan.max_steps or self._steps(data, name)
        rate = self.plan.learning_rates[0]
        return Arm(label, name, objective, rate, data, validation, steps, setting)

    def _steps(self, data: str, name: str) -> int:
        """Return how many optimizer steps the budget pays for."""
        tokens, n_steps = self.plan.training.cost(data, name)
        self.budget = self.budget or tokens
        in_a_batch = tokens / n_steps
        if self.budget < in_a_batch:
            raise ValueError(
                f"budget must pay for a batch: {name} computes {in_a_batch:.0f} tokens in one of"
                f" {self.plan.training.batch_size} rows; found {self.budget}; raise it, or lower"
                " --batch-size"
            )
        return round(self.budget / in_a_batch)

    def _with_margins(self, data: str, reward_model: str) -> str:
        """Return the rows with a reward model's margins, stored once."""
        job = Scoring(data, reward_model, self.plan.training.max_length)
        if not Path(job.out).exists():
            for ended in in_processes(store_margins, [job], at_once=1, log=_log_of_scoring):
                if ended.reason:
                    raise ValueError(f"{reward_model}: {ended.reason}; see {_log_of_scoring(job)}")
        return job.out

    def _row(self, arm: Arm, cell: Cell, stage: str) -> TableRow:
        """Return what is known of a cell, tidy."""
        row: dict[str, Any] = {
            "cell_id": cell.folder.name, "stage": stage, "arm": arm.label,
            **{key: str(value).replace(SEVERAL, " ") for key, value in arm.setting.items()},
            "seed": cell.loop.seed, "learning_rate": arm.learning_rate,
            "strength": ", ".join(f"{name} {value:g}" for name, value in arm.strength.items()),
            "steps": cell.loop.max_steps,
        }  # fmt: skip
        found = _judged(cell) if cell.is_done else {"numbers": {}}
        numbers: Numbers = found["numbers"]
        start = _numbers(Path(cell.start))
        row["n_pairs"] = found.get("n_rows")
        row |= {name: _mean(numbers.get(name)) for name in QUANTITIES}
        before, after = _mean(start.get(self.metric)), _mean(numbers.get(self.metric))
        row["metric"] = self.metric
        row["delta_vs_start"] = None if before is None or after is None else after - before
        row["kl_error"] = _error(numbers.get("kl"))
        over = bool(self.plan.kl_budget) and (row["kl"] or 0.0) > self.plan.kl_budget
        row |= {name: found.get(name) for name in ("train_s", "wall_s", "peak_mem")}
        row |= {"over_kl_budget": over, "config_hash": cell.key()}
        row["status"] = "finished" if cell.is_done else "failed"
        return row | {"reason": "" if cell.is_done else self.reasons.get(cell.folder, "")}


def named(arms: Sequence[Setting]) -> list[str]:
    """Name each arm after its objective and the other factors that vary, no two alike."""
    shown = [key for key in varied(arms) if key != "objective"]
    names: list[str] = []
    for arm in arms:
        others = [Path(str(arm[key])).name for key in shown]
        name = "-".join([str(arm["objective"]), *filter(None, others)])
        n_alike = sum(one == name or one.startswith(f"{name} #") for one in names)
        names.append(f"{name} #{n_alike + 1}" if n_alike else name)
    return names


def _final(exam: Exam, judged_on: Apart) -> Exam:
    return replace(
        exam, comparisons=judged_on.comparisons, prompts=judged_on.prompts,
        has_rules=judged_on.has_rules,
    )  # fmt: skip


def _judged(cell: Cell) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((cell.folder / JUDGED).read_text(encoding="utf-8"))
    return found


def _numbers(place: Path) -> Numbers:
    if not place.exists():
        return {}
    found: Numbers = json.loads(place.read_text(encoding="utf-8"))["numbers"]
    return found


def _mean(values: Sequence[float] | None) -> float | None:
    return float(np.mean(values)) if values else None


def _error(values: Sequence[float] | None) -> float | None:
    """Return the standard error of a mean over examples."""
    if not values or len(values) < 2:
        return None
    return float(np.std(values, ddof=1)) / len(values) ** 0.5


def _log(cell: Cell) -> Path:
    """Return where a cell's process prints: beside its folder, which is begun anew with it."""
    return cell.folder.parents[1] / "logs" / f"{cell.folder.name}.txt"


def _log_of_scoring(job: Scoring) -> Path:
    return Path(job.out).with_suffix(".txt")
