"""What can be known to be wrong before anything heavy is imported: a fraction of a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from melior.data.examples import Data, read_examples
from melior.data.files import read_any, read_prompts
from melior.models.names import check_named
from melior.options import (
    DataOptions,
    JudgeOptions,
    LoopOptions,
    ModelOptions,
    ScoringOptions,
)
from melior.records import Group
from melior.rewards.named import check_scorer, find_scorer
from melior.stages.online.options import PromptOptions, RoundOptions
from melior.training.folder import check_folder
from melior.training.trackers import check_installed


def check_inputs(
    model: ModelOptions, data: DataOptions, loop: LoopOptions, *, holds: Data = "pairs"
) -> None:
    """Look at the run folder, for the model and trackers, and at the first row of each source.

    Raises:
        FileNotFoundError: the model, its template or a source is not there.
        ValueError: the folder holds a run, a tracker is not installed, a source is empty, or its
            first row is not what it should hold.
    """
    check_folder(Path(loop.out), resume=loop.resume, overwrite=loop.overwrite)
    _spare(Path(loop.out), [model.model, *data.data, *data.eval_data], overwrite=loop.overwrite)
    check_sources(model, data, loop, holds=holds)


def check_sources(
    model: ModelOptions, data: DataOptions, loop: LoopOptions, *, holds: Data = "pairs"
) -> None:
    """Look at the same, whatever the run folder holds.

    Raises:
        FileNotFoundError: the model, its template or a source is not there.
        ValueError: a tracker is not installed, a source is empty, or its first row is not what it
            should hold.
    """
    check_named(model)
    check_installed(loop.report_to)
    for source in data.data:
        _look(source, holds)
        _keep_goal(source, data)
    for source in data.eval_data:
        _look(source, held_out_data(holds, [source]))
    if loop.kl_budget and not data.n_samples:
        raise ValueError("kl_budget needs sampled answers to tell; found n_samples 0")
    if not data.data:
        raise ValueError(f"data: at least one source of {holds} is needed; found none")


def check_prompted(
    model: ModelOptions,
    prompts: PromptOptions,
    rounds: RoundOptions,
    loop: LoopOptions,
    *,
    judge: JudgeOptions,
) -> ScoringOptions:
    """Look at what a run of several rounds needs, and return how its scorers are held.

    Raises:
        FileNotFoundError: the model, its template, a scorer or a source is not there.
        ValueError: the folder holds a run, a tracker is not installed, a source has no prompt, or
            an option is given that rounds do not read.
    """
    if loop.eval_steps:
        raise ValueError(
            "eval_steps must be 0, as held-out prompts are answered after each round and at no step"
            f" between; found {loop.eval_steps}"
        )
    scoring = ScoringOptions(dtype=model.dtype, device=model.device, judge=judge)
    sources = (*prompts.prompts, *prompts.eval_prompts)
    scorers = [name for name in (rounds.scorer, rounds.judge_with) if name]
    check_folder(Path(loop.out), resume=loop.resume, overwrite=loop.overwrite)
    check_rounds(loop)
    check_named(model)
    check_installed(loop.report_to)
    for scorer in scorers:
        check_scorer(scorer, scoring)
        find_scorer(scorer)
    _spare(Path(loop.out), [model.model, *sources, *scorers], overwrite=loop.overwrite)
    for source in sources:
        if next(read_prompts([source]), None) is None:
            raise ValueError(f"{source}: needs at least one prompt; found no row")
    return scoring


def check_rounds(loop: LoopOptions) -> None:
    """Refuse to take another run's rounds for one's own.

    Raises:
        ValueError: a run that failed, and may be replaced, has left rounds.
    """
    if any(Path(loop.out).glob("round-*")) and not (loop.resume or loop.overwrite):
        raise ValueError(
            f"{loop.out}: a folder without rounds is needed; found those of a failed run; go on"
            " with them by --resume, or replace them by --overwrite"
        )


def held_out_data(data: Data, sources: Sequence[str]) -> Data:
    """Say what held-out rows hold: answers judged alone are best judged on pairs, where given."""
    if data != "answers":
        return data
    first = next(read_any(sources[0]), None)
    return "answers" if isinstance(first, Group) and len(first.candidates) < 2 else "pairs"


def _look(source: str, data: Data) -> None:
    if next(read_examples(data, [source]), None) is None:
        raise ValueError(f"{source}: needs at least one row; found no row")


def _keep_goal(source: str, data: DataOptions) -> None:
    """Refuse to cut the start of prompts that begin with a goal."""
    first = next(read_any([source]), None)
    if data.truncation_mode == "keep_end" and first and "goal_source" in first.facts:
        raise ValueError(
            f"{source}: truncation_mode must be drop or keep_start for pairs under goals, which"
            " stand at the prompt's start; found keep_end, which cuts them first"
        )


def _spare(out: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Refuse to delete, with an old run, what the new one is to learn from."""
    inside = [name for name in names if out.resolve() in Path(name).resolve().parents]
    if overwrite and inside:
        raise ValueError(
            f"{out}: --overwrite would delete {inside[0]}, which this run needs;"
            " choose another folder"
        )
