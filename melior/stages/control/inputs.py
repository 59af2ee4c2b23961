"""What a run of control learns from: read, checked and written down before anything is learned."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from melior.data.control import Transitions, lint_transitions
from melior.data.control_files import MINARI, About, Reference, read_logged
from melior.data.lint import Finding
from melior.envs.control import (
    RULES,
    Termination,
    check_termination,
    sizes,
    termination,
    unversioned,
)
from melior.stages.control.options import LogOptions, TrainOptions
from melior.training.checkpoint import refuse_changes
from melior.training.folder import check_folder
from melior.training.run import write_json
from melior.training.trackers import check_installed


@dataclass(frozen=True)
class Inputs:
    """A log that is fit to be learned from, and what is known of it."""

    logged: Transitions
    about: About
    """With the task that policies are judged in."""
    findings: Sequence[Finding]
    sha256: str

    @property
    def task(self) -> str:
        """The task's name in Gymnasium."""
        return self.about.task

    @property
    def reference(self) -> Reference | None:
        """The returns between which others are compared."""
        return self.about.reference


def read_inputs(log: LogOptions, train: TrainOptions) -> Inputs:
    """Read a log, and refuse what must not be learned from.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: the run folder or the log is not as it must be, or the task cannot be acted in.
    """
    check_folder(Path(train.out), resume=train.resume, overwrite=train.overwrite)
    check_installed(train.report_to)
    data = read_logged(log.dataset)
    about = _about(log, data.about)
    findings = lint_transitions(data.transitions)
    errors = [finding for finding in findings if finding.level == "error"]
    if errors and not log.allow_lint_errors:
        said = "; ".join(f"{one.code} ({one.text}; {', '.join(one.examples)})" for one in errors)
        raise ValueError(
            f"{log.dataset}: transitions without errors are needed; found {said}; mend them, or "
            "add --allow-lint-errors"
        )
    if train.eval_episodes:
        _check_task(about.task, data.transitions, log.dataset)
    if log.termination or unversioned(about.task) in RULES:
        rule = termination(about.task, log.termination)
        check_termination(rule, data.transitions, where=log.dataset)
    return Inputs(data.transitions, about, findings, digest(data.transitions))


def _about(log: LogOptions, own: About) -> About:
    """Return what is known of a log; returns of another task are no references for it."""
    task = log.task or own.task
    is_same = unversioned(task) == unversioned(own.task or task)
    return About(task, own.reference if is_same else None, own.facts)


def rule_of(log: LogOptions, inputs: Inputs) -> Termination:
    """Return the rule by which the task is over, with which the log has been found to agree.

    Raises:
        ValueError: there is none.
    """
    return termination(inputs.task, log.termination)


def digest(logged: Transitions) -> str:
    """Return the SHA-256 of all columns."""
    found = hashlib.sha256()
    for name, column in sorted(vars(logged).items()):
        found.update(f"{name} {column.dtype} {column.shape}".encode())
        found.update(column.tobytes())
    return found.hexdigest()


def write_inputs(folder: Path, inputs: Inputs, log: LogOptions, train: TrainOptions) -> None:
    """Write what a run learns from into its `data.json`.

    Raises:
        ValueError: it goes on from a checkpoint with other data; the file is as it was.
    """
    path, is_begun = folder / "data.json", any((folder / "checkpoints").glob("*/step-*"))
    if train.resume and not train.allow_changes and is_begun and path.exists():
        was = json.loads(path.read_text(encoding="utf-8"))["train"]["sha256"]
        refuse_changes({"data": was}, {"data": inputs.sha256}, where=folder)
    count = len(inputs.logged)
    source = {"path": log.dataset, "rows": count, "sha256": inputs.sha256}
    part: dict[str, Any] = {
        "rows": count,
        "episodes": len(inputs.logged.returns()),
        "sha256": inputs.sha256,
        "sources": [source],
        "findings": [asdict(finding) for finding in inputs.findings],
        "about": asdict(inputs.about),
    }
    write_json(path, {"train": part})


def read_about(folder: Path) -> About:
    """Return what a run's `data.json` says of its log.

    Raises:
        ValueError: it says nothing of it.
    """
    path = folder / "data.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))["train"]["about"]
        reference = said["reference"]
        return About(
            said["task"], Reference(**reference) if reference else None, said.get("facts", {})
        )
    except OSError as error:
        raise ValueError(
            f"{folder}: the folder of a run on logged transitions is needed; found no {path.name} "
            "there"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: what a run on logged transitions learned from is needed; found {error!r}"
        ) from error


def _check_task(task: str, logged: Transitions, where: str) -> None:
    if not task:
        way = "" if where.startswith(MINARI) else ", which melior collect control writes down"
        raise ValueError(
            f"{where}: the task to judge policies in is needed{way}; found none; give --task, or "
            "--eval-episodes 0 to judge none"
        )
    observations, actions = sizes(task)
    wanted = (logged.observations.shape[1], logged.actions.shape[1])
    if (observations, actions) != wanted:
        raise ValueError(
            f"{where}: transitions of {task} must have {observations} numbers in an observation "
            f"and {actions} in an action; found {wanted[0]} and {wanted[1]}"
        )
