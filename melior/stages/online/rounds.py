"""Rounds of learning from one's own answers: what each leaves, and how a stopped one goes on.

A round's folder fills up stage by stage, each file whole or not there, and is closed by its
`manifest.json`. A stage looks whether its file is there before it begins, so that going on is
nothing but running the same lines again; what a stage does depends on files and seeds only.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from melior.data.files import content_hash
from melior.models.loading import folder_of, load_chat, merge, n_positions
from melior.models.names import adapter_base
from melior.options import DataOptions, LoopOptions, ModelOptions, ScoringOptions
from melior.records import Metrics
from melior.rewards.named import about_scorer, load_scorer
from melior.stages.learn import Plan, learn, whole, write_card
from melior.stages.online.choose import CHOSEN, SCORED, Counts, Fits, within
from melior.stages.online.judge import (
    HELD_OUT,
    JUDGED,
    Panel,
    judge,
    side_by_side,
    spread,
    verdict,
)
from melior.stages.online.manifest import MADE_OF, MANIFEST, identity, refuse_others, write_manifest
from melior.stages.online.options import PromptOptions, RoundOptions
from melior.stages.online.propose import (
    CANDIDATES,
    PROMPTS,
    Asked,
    asked_before,
    divide,
    seed_of,
    write_prompts,
)
from melior.training.run import Run, write_json, write_json_lines
from melior.types import Scorer

LEARNED = "learn"
"""In a round's folder: the run of its learning."""
ENDINGS = ("stopped", "the run ends")
"""How notes begin that say how a run ended; one that goes on ends anew."""
FILES = (PROMPTS, CANDIDATES, SCORED, CHOSEN, HELD_OUT, JUDGED)


@dataclass(frozen=True)
class Setting:
    """What all rounds of a run have in common."""

    out: Path
    start: ModelOptions
    """The start model as it is, without an adapter to be trained."""
    asked: Asked
    fits: Fits
    scorer: Scorer
    panel: Panel
    seed: int
    made_of: Mapping[str, Any]
    """All that the run is made of besides its options, by its hash."""

    def here(self, number: int) -> Path:
        """Return a round's folder, with its prompts in it; round 0 is the start model."""
        here = self.out / f"round-{number}"
        write_prompts(here, self.asked.rounds[number - 1] if number else self.asked.held_out)
        return here

    def seeds(self, number: int) -> dict[str, int]:
        """Return the seeds of a round's draws."""
        return {
            "answers": seed_of(self.seed, number, "answers"),
            "choice": seed_of(self.seed, number, "choice"),
            "learning": self.seed + number,
        }


def opened(
    name: str, paper: str, config: object, loop: LoopOptions, *, made_of: Mapping[str, Any]
) -> Run:
    """Begin a run of several rounds in its folder, or go on with it; earlier rounds may go.

    It comes after all that may be wrong with a run was looked at.

    Raises:
        ValueError: the run to go on with was made of something else.
    """
    out = Path(loop.out)
    if loop.resume and not loop.allow_changes:
        refuse_others(out, made_of)
    if not loop.resume:
        (out / MADE_OF).unlink(missing_ok=True)
    if loop.overwrite:
        for folder in out.glob("round-*"):
            shutil.rmtree(folder, ignore_errors=True)
    if loop.overwrite or loop.allow_changes:
        shutil.rmtree(out / "average", ignore_errors=True)  # of the rounds there were
    run = Run.create(
        loop.out, name, config, sys.argv, paper=paper, resume=loop.resume,
        overwrite=loop.overwrite, allow_changes=loop.allow_changes, report_to=loop.report_to,
    )  # fmt: skip
    write_json(out / MADE_OF, made_of)
    run.rewind(0)  # finished rounds write their line again
    run.retract(ENDINGS)
    return run


def begin(
    model: ModelOptions,
    prompts: PromptOptions,
    rounds: RoundOptions,
    loop: LoopOptions,
    *,
    max_new_tokens: int,
    length_penalty: float,
    scoring: ScoringOptions,
) -> Setting:
    """Divide the prompts among the rounds, and load the scorers.

    Raises:
        ValueError: there are too few prompts, or a server cannot be reached.
    """
    out, chat = Path(loop.out), load_chat(model)
    max_length = min(rounds.max_length, n_positions(model))
    # A finished answer's end token is one of its tokens, and a cut one has none.
    asked = divide(
        prompts, chat, longest=max_length - max_new_tokens, seed=loop.seed,
        earlier=asked_before(out) if loop.resume else {},
    )  # fmt: skip
    named = {"reward": rounds.scorer}
    named |= {"judge": rounds.judge_with} if rounds.judge_with else {}
    scorers = {name: load_scorer(own, scoring) for name, own in named.items()}
    start = whole(model, model.model)
    about = {name: about_scorer(own, scorers[name], scoring) for name, own in named.items()}
    made_of = {
        "start": identity(start, out),
        "prompts": content_hash(list(prompts.prompts)),
        "eval_prompts": content_hash(list(prompts.eval_prompts)) if prompts.eval_prompts else "",
        "scorers": about,
    }
    panel = Panel(start, scorers, max_new_tokens, loop.max_tokens, loop.seed, length_penalty)
    fits = within(chat, max_length)
    return Setting(out, start, asked, fits, scorers["reward"], panel, loop.seed, made_of)


def judge_start(setting: Setting) -> dict[str, Any]:
    """Judge the start model, as round 0."""
    here, began = setting.here(0), time.monotonic()
    found = judge(here, setting.start, setting.panel, 0)
    close(setting, found, Counts(), [setting.start], began=began)
    return found


def learned_from(here: Path, number: int, history: str) -> tuple[str, ...]:
    """Return the files that a round learns from: its own choice, or those of all rounds so far."""
    first = 1 if history == "all" else number
    paths = [here.parent / f"round-{n}" / CHOSEN for n in range(first, number + 1)]
    return tuple(map(str, paths))


def learning_data(here: Path, number: int, rounds: RoundOptions) -> DataOptions:
    """Return what a round learns from; nothing in it is held out, and no row stops the run."""
    return DataOptions(
        data=learned_from(here, number, rounds.history), max_length=rounds.max_length,
        max_long_share=1.0, allow_lint_errors=True, n_samples=0,
    )  # fmt: skip


def learning_loop(loop: LoopOptions, seeds: Mapping[str, int]) -> LoopOptions:
    """Return how long a round learns; the whole run's trackers are not told of its steps."""
    return replace(loop, seed=seeds["learning"], eval_steps=0, report_to=(), overwrite=False)


def ends_of(
    start: ModelOptions, policy: ModelOptions, rounds: RoundOptions
) -> tuple[ModelOptions, str]:
    """Return where a round's learning begins, and what it is relative to, if not to that.

    Args:
        start: the model of the first round, with the adapter that is to be trained, if any.
        policy: what the round before has learned.
        rounds: what the user wants.
    """
    begins = policy.model if rounds.warm_start else start.model
    held_to = start.model if rounds.reference == "start" else policy.model
    return replace(start, model=begins), "" if held_to == begins else held_to


def learn_round(here: Path, plan: Plan) -> ModelOptions:
    """Learn from a round's choice, or go on with that, and return what came of it."""
    return learned(here, plan.model, plan.loop, lambda loop: learn(replace(plan, loop=loop)))


def learned(
    here: Path, model: ModelOptions, loop: LoopOptions, learn: Callable[[LoopOptions], object]
) -> ModelOptions:
    """Return what a round has learned, after learning it as far as that is still to do.

    Args:
        here: the round's folder.
        model: where learning begins.
        loop: how long, and the like.
        learn: does so, in the folder that it is told.
    """
    folder = here / LEARNED
    if _status(folder) != "finished":
        if not (folder / "run.json").exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a start that was cut off at once
        learn(replace(loop, out=str(folder), resume=folder.exists(), overwrite=False))
    return policy_of(model, here)


def policy_of(start: ModelOptions, here: Path) -> ModelOptions:
    """Return what a round has learned, as a whole model: an adapter is folded into its base."""
    left = here / LEARNED / "model"
    if not adapter_base(left):
        return whole(start, str(left))
    folded, beside = here / "model", here / ".model.partial"
    if not folded.exists():
        shutil.rmtree(beside, ignore_errors=True)
        merge(left, beside, dtype=start.dtype)
        beside.replace(folded)
    return whole(start, str(folded))


def close(
    setting: Setting,
    judged: Mapping[str, Any],
    counts: Counts,
    policies: Sequence[ModelOptions],
    *,
    began: float,
) -> None:
    """Complete the round's run folder with its judgement, and write the manifest, last of all.

    All of it but `cost` is the same whether the round was stopped on its way or not. `policies` are
    what answered in the round, and what it learned; `began` is when it did so in this process.
    """
    number = int(judged["round"])
    here = setting.here(number)
    if (here / MANIFEST).exists():
        return
    if number:
        _complete(here, judged, counts, base=policies[0].model)
    remarks = {name: one.remarks() for name, one in setting.panel.scorers.items()}
    write_manifest(
        here, policies, learned=here / LEARNED, files=FILES,
        about={
            "round": number,
            "seeds": setting.seeds(number),
            "counts": counts.to_json() if number else {"left_out": setting.asked.counts},
            "means": judged["means"],
            "parts": judged.get("parts", ""),
            "cost": {"seconds": round(time.monotonic() - began, 2), "scorers": remarks},
        },
    )  # fmt: skip


def metrics_of(judged: Mapping[str, Any], counts: Counts) -> Metrics:
    """Return a round's numbers as a line of the run's metrics."""
    found = {f"round/{name}": value for name, value in judged["means"].items()}
    for side, against in judged.get("against", {}).items():
        for name, wins in against["wins"].items():
            found[f"round/{name}_win_rate_against_{side}"] = wins["win_rate"]
    if counts.prompts:
        found["round/pairs"] = counts.chosen
        found["round/share_dropped"] = 1 - counts.chosen / counts.prompts
    if judged.get("agreement") is not None:
        found["round/agreement"] = judged["agreement"]
    return found


def has_lessons(record: Run, number: int, counts: Counts) -> bool:
    """Say what a round chose from; and whether there is anything to learn."""
    record.note(f"round {number}: {counts.sentence()}")
    if not counts.chosen:
        record.note(f"stopped before round {number} could learn; the others are kept")
    return counts.chosen > 0


def may_go_on(
    record: Run, judged: Mapping[str, Any], rounds: RoundOptions, *, kl_budget: float
) -> bool:
    """Note what there is to worry about in a round; say whether the run goes on all the same.

    That is where scorer and held-out scorer part, what the latter does not judge, and a model that
    has moved too far.
    """
    name, moved = f"round {judged['round']}", judged["means"]["kl"]
    if kl_budget and moved > kl_budget:
        record.note(f"{name}: {moved:.3g} nats an answer from the start, above --kl-budget")
    silent = judged["numbers"].get("judge", ()).count(None)
    asked = len(judged["numbers"]["kl"])
    if silent:
        record.note(f"{name}: no held-out score for {silent} of {asked} held-out prompts")
    is_blind = rounds.stop_on_overoptimisation and silent == asked
    if is_blind:
        record.note("stopped there, as over-optimisation cannot be seen without held-out scores")
    if not judged["parts"]:
        return not is_blind
    record.note(judged["parts"])
    if rounds.stop_on_overoptimisation:
        record.note("stopped there, as --stop-on-overoptimisation asks")
    return not rounds.stop_on_overoptimisation


def finish(
    setting: Setting, judged: Sequence[Mapping[str, Any]], *, keep_best: bool, record: Run
) -> None:
    """End the run with one round's model and its judgement in the run folder."""
    last = int(judged[-1]["round"])
    number = best_round(judged) if keep_best else last
    whose = f"of round {number} of {last}" if number else "that it began with, which none improved"
    record.note(f"the run ends with the model {whose}")
    here = setting.here(number)
    for name in ("evaluation.json", "samples.jsonl", "scores.jsonl", "data.json"):
        told = setting.here(number or last) / LEARNED / name
        if told.exists():
            shutil.copyfile(told, setting.out / name)
    keep(setting.out, policy_of(setting.start, here) if number else setting.start)
    if number:
        write_card(setting.out, base=setting.start.model)


def best_round(judged: Sequence[Mapping[str, Any]]) -> int:
    """Return the round with the highest held-out score: of the held-out scorer, where there is one.

    Else it is the scorer's, less the price on length, if there is one; over the prompts that have
    it in every round. Of equal rounds it is the first, so that a round has to earn its place; the
    start model is one.
    """
    for key in ("judge", "ranked", "reward"):
        if any(key not in one["numbers"] for one in judged):
            continue
        rows = zip(*(one["numbers"][key] for one in judged), strict=True)
        if known := [row for row in rows if None not in row]:
            sums = [sum(column) for column in zip(*known, strict=True)]
            return int(judged[sums.index(max(sums))]["round"])
    return int(judged[0]["round"])


def keep(out: Path, model: ModelOptions) -> None:
    """Put a copy of a model's folder at `model/` in the run folder, whole or not at all."""
    source, place, beside = folder_of(model.model), out / "model", out / ".model.partial"
    if not isinstance(source, Path):
        return  # lies on a hub, where whoever reads the manifest finds it
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside)
    shutil.rmtree(place, ignore_errors=True)
    beside.replace(place)


def _complete(here: Path, judged: Mapping[str, Any], counts: Counts, *, base: str) -> None:
    """Leave the run of a round's learning as other runs are: judged, with a card, without steps."""
    learned = here / LEARNED
    write_json(learned / "evaluation.json", verdict(judged, counts.to_json()))
    write_json_lines(learned / "samples.jsonl", side_by_side(here, judged))
    write_json_lines(learned / "scores.jsonl", spread(here, judged))
    write_card(learned, base=base)
    shutil.rmtree(learned / "checkpoints", ignore_errors=True)


def _status(folder: Path) -> str:
    path = folder / "run.json"
    return str(json.loads(path.read_text(encoding="utf-8"))["status"]) if path.exists() else ""
