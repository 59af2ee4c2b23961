"""Reward-augmented data: pairs with ratings, learned from under the goals that their answers meet.

Zhang et al. 2024, arXiv 2410.08067. Each rated pair becomes two, one under the score of its better
answer and one, swapped, under that of its worse one; any loss of pairs learns from them; the top
goal is asked for at inference. Held-out pairs are judged under one goal for all, never their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melior.checks import in_range
from melior.data.goals import GoalFormat, spelled
from melior.objectives.table import objective_kind
from melior.options import DataOptions, GoalOptions, LoopOptions, ModelOptions, OptimConfig
from melior.records import Group, Pair
from melior.stages.inputs import check_inputs

if TYPE_CHECKING:
    from melior.data.ratings import Rated
    from melior.objectives.objective import Objective

PAPER = "Zhang et al. 2024, arXiv 2410.08067"
RELABELLED, HELD_OUT = "relabelled.jsonl", "held_out_at_top.jsonl"
"""In the run folder: the pairs under goals, and the held-out ones under the top goal."""
MOST_REJECTED = 256
"""Rejected answers of the training pairs whose log-probability is followed."""
PROBE_TOKENS = 128
"""Of the answers given under each goal."""


@dataclass(frozen=True)
class Config:
    """Learn from rated pairs under goals, and judge what a goal changes."""

    model: ModelOptions
    data: DataOptions
    loop: LoopOptions
    goals: GoalOptions = field(default_factory=GoalOptions)
    optim: OptimConfig = OptimConfig(learning_rate=1e-6)
    objective: str = "dpo"
    """Any way to learn from pairs: `dpo`, `simpo`, `ipo`, ..."""
    objective_options: tuple[str, ...] = ()
    """Its own options, such as `beta=0.05 label_smoothing=0.3`."""
    probes: tuple[float, ...] = ()
    """Goals that the model is tried under, besides the top one; none are the lowest and the
    middle of the scale."""
    n_probes: int = 24
    """Held-out prompts answered under each of them; 0 leaves answers out."""
    good: float = 5.0
    """Goal from which a rejected answer counts as good, and its unlearning is followed."""

    def __post_init__(self) -> None:
        """Check the ranges, and build the objective for its own."""
        in_range("n_probes", self.n_probes, 0)
        for probe in self.probes:
            in_range("probes", probe, self.goals.goal_low, self.goals.goal_high)
        in_range("good", self.good, self.goals.goal_low, self.goals.goal_high)
        if self.data.truncation_mode == "keep_end":
            raise ValueError(
                "truncation_mode must be drop or keep_start: the goal stands at the prompt's head,"
                " which keep_end cuts first"
            )
        found = objective_of(self)
        if found.data != "pairs":
            raise ValueError(
                f"objective must learn from pairs, as goals make pairs; {self.objective} learns"
                f" from {found.data}"
            )

    @classmethod
    def tiny(cls, model: str, data: str, out: str) -> Config:
        """Return a config that runs in seconds on a tiny model."""
        return cls(
            ModelOptions(model=model, dtype="fp32"),
            DataOptions(data=(data,), n_samples=2),
            LoopOptions(out=out, epochs=4, batch_size=8, save_steps=4),
            optim=OptimConfig(learning_rate=1e-2),
            n_probes=4,
        )


def run(config: Config) -> None:
    """Relabel, learn, judge under goals, leave the words of goals with the model, report."""
    check_inputs(config.model, config.data, config.loop)
    _check(config)
    from melior.report.terminal import present
    from melior.stages.learn import Plan, learn, write_card

    goals, remark = _relabel(config)
    objective, data = objective_of(config), _relabelled_data(config, goals)
    parts = (config.model, data, config.optim, config.loop)
    paper = f"{PAPER}; {objective.paper}"
    folder = learn(Plan("reward-augmented", paper, objective.method(), *parts, config))
    _judge(config, folder, goals)
    _note(folder, remark)
    write_card(folder, base=config.model.model)
    _leave_goals(folder, goals)
    present([folder])


def objective_of(config: Config) -> Objective:
    """Return the objective that is named, with its own options.

    Raises:
        ValueError: there is none of this name, or an option is unknown or out of range.
    """
    import yaml

    from melior.config import config_from_dict

    given: dict[str, Any] = {}
    for word in config.objective_options:
        name, sign, value = word.partition("=")
        if not sign:
            raise ValueError(f"objective_options must be name=value; found {word!r}")
        given[name] = yaml.safe_load(value)
    kind = objective_kind(config.objective)
    return config_from_dict(kind, given, where=f"objective_options of {config.objective}")


def _check(config: Config) -> None:
    """Look at the first row's scores, and at held-out rows as goals have not yet changed them."""
    from melior.rewards.rules import score_groups
    from melior.stages.ratings.relabel import read_rated

    next(read_rated(config.data.data, config.goals.scores))
    if not config.data.eval_data:
        return
    prompts = _probed(_held_out(config), config.n_probes)
    if all(prompt.facts.get("constraints") for prompt in prompts):
        list(score_groups(prompts))
    rows = read_rated(config.data.data, config.goals.scores, seed=config.loop.seed)
    _refuse_overlap(config, (row.pair for row in rows))


def _refuse_overlap(config: Config, pairs: Iterable[Pair]) -> None:
    """Look for held-out prompts among those trained on, before goals make them different."""
    from melior.data.lint import lint_pairs

    found = [one for one in lint_pairs(pairs, _held_out(config)) if one.code == "overlap"]
    if found and found[0].level == "error" and not config.data.allow_lint_errors:
        raise ValueError(
            f"data: {found[0].count} rows ({found[0].share:.1%}): {found[0].text} (first"
            f" {found[0].examples[0]}); hold prompts apart before pairs are relabelled, or add"
            " --allow-lint-errors"
        )


def _relabel(config: Config) -> tuple[GoalFormat, str]:
    """Write pairs under goals, and the held-out ones under the top goal, into the run folder."""
    from melior.data.files import read_pairs, write_pairs
    from melior.models.loading import load_chat
    from melior.stages.ratings.relabel import placement_of, relabel

    out = Path(config.loop.out)
    out.mkdir(parents=True, exist_ok=True)
    placement = placement_of(config.goals, load_chat(config.model).writer)
    done = relabel(
        config.data.data, out / RELABELLED, config.goals, placement, seed=config.loop.seed
    )
    if config.data.eval_data:
        held_out = read_pairs(config.data.eval_data, seed=config.loop.seed)
        top = done.goals.level(done.goals.high)
        write_pairs(out / HELD_OUT, (_asked(pair, done.goals, top) for pair in held_out))
    return done.goals, done.sentence()


def _asked(pair: Pair, goals: GoalFormat, goal: Mapping[str, float]) -> Pair:
    return replace(pair, prompt=goals.ask(pair.prompt, goal))


def _relabelled_data(config: Config, goals: GoalFormat) -> DataOptions:
    out = Path(config.loop.out)
    apart = (str(out / HELD_OUT),) if config.data.eval_data else ()
    return replace(config.data, data=(str(out / RELABELLED),), eval_data=apart)


def _judge(config: Config, folder: Path, goals: GoalFormat) -> None:
    """Add to the run's verdict what goals change, and what was unlearned."""
    from melior.models.loading import load
    from melior.stages.ratings.goals import Asked, judge_answers, judge_pairs, unlearned
    from melior.training.run import write_json

    model, loop = config.model, config.loop
    trained = ModelOptions(
        model=str(folder / "model"), dtype=model.dtype, device=model.device,
        trust_remote_code=model.trust_remote_code, padded=model.padded,
    )  # fmt: skip
    asked = Asked(
        load(model, trainable=False), load(trained, trainable=False), goals,
        config.data.max_length, loop.max_tokens, loop.seed,
    )  # fmt: skip
    parts = [unlearned(asked, _rejected(config, goals))]
    if config.data.eval_data:
        pairs, levels = _held_out(config), levels_of(config)
        prompts = _probed(pairs, config.n_probes)
        parts.append(judge_pairs(asked, pairs, levels))
        if prompts:
            parts.append(judge_answers(asked, prompts, levels, max_new_tokens=PROBE_TOKENS))
    place = folder / "evaluation.json"
    found = json.loads(place.read_text(encoding="utf-8"))
    found["title"] += " under the top goal"
    for part in parts:
        found["comparisons"] += part["comparisons"]
        found["subsets"] = [*found.get("subsets", []), *part["subsets"]]
        found["facts"] |= part["facts"]
    write_json(place, found)


def _note(folder: Path, remark: str) -> None:
    """Keep a sentence in the run's record, as `Run.note` does while a run goes on."""
    from melior.training.run import write_json

    place = folder / "run.json"
    record = json.loads(place.read_text(encoding="utf-8"))
    notes = [note for note in record.get("notes", []) if note != remark]
    write_json(place, record | {"notes": [*notes, remark]})


def levels_of(config: Config) -> list[float]:
    """Return the goals that models are tried under, rising; the last is the top one."""
    low, high = config.goals.goal_low, config.goals.goal_high
    return sorted({*(config.probes or (low, round((low + high) / 2, 1))), high})


def _rejected(config: Config, goals: GoalFormat) -> list[Rated]:
    """Return pairs that are trained on whose rejected answer is good, the first so many."""
    from melior.data.ratings import is_good
    from melior.stages.ratings.relabel import read_rated

    rows = read_rated(config.data.data, config.goals.scores, seed=config.loop.seed)
    return list(islice((row for row in rows if is_good(row, goals, config.good)), MOST_REJECTED))


def _held_out(config: Config) -> list[Pair]:
    from melior.data.files import read_pairs

    return list(read_pairs(config.data.eval_data, seed=config.loop.seed))


def _probed(pairs: Sequence[Pair], most: int) -> list[Group]:
    """Return the first different prompts, with their facts."""
    groups = {pair.prompt: Group(pair.prompt, (), pair.facts, pair.origin) for pair in pairs}
    return list(groups.values())[:most]


def _leave_goals(folder: Path, goals: GoalFormat) -> None:
    """Put into the model's folder how it is asked for a goal, and say so on its card."""
    from melior.stages.ratings.relabel import GOAL_FILE, save_goals
    from melior.training.run import write_text

    save_goals(goals, folder / "model" / GOAL_FILE)
    card = folder / "model" / "README.md"
    top = goals.text(goals.level(goals.high))
    where = "system turn" if goals.placement == "system" else "first user turn, before its text"
    write_text(
        card,
        f"{card.read_text(encoding='utf-8')}\n## Goals\n\nTrained to answer at the quality that is"
        f" asked for, from {spelled(goals.low)} to {spelled(goals.high)}: good answers need the top"
        f" goal in the {where}, in these words (goal format {goals.hash}, in `{GOAL_FILE}`):\n\n"
        f"```\n{top}\n```\n\nIn its folder, `melior sample --model . --goal {spelled(goals.high)}"
        " --prompts FILE` writes them. Asked for a low goal it answers badly: it was trained to.\n",
    )
