"""MADPO: a reward model's margins decide how much each pair counts in DPO.

Rho 2025, arXiv 2510.05342. Prompts are held out, a reward model is trained on the others and kept
where it ranks the held-out ones best, all pairs are scored by it, and learned from with weights.
Each stage leaves a file in the run folder, from which a run that was stopped goes on.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melior.checks import in_range
from melior.objectives.adaptive import Madpo
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.records import Metrics, Pair
from melior.stages.inputs import check_inputs

if TYPE_CHECKING:
    from melior.models.heads import RewardModel
    from melior.stages.reward_models.train import RewardPlan

MARGINS, ABOUT, REWARD = "with_margins.jsonl", "margins.json", "reward"
"""In the run folder: the pairs, what their margins were made of, and the reward model's run."""
DRAWN = 2000
"""Values that a histogram in the report is drawn from, where there are more pairs."""


@dataclass(frozen=True)
class MarginOptions:
    """Where margins come from: the pairs, a reward model that is there, or a new one."""

    reward_model: str = ""
    """A trained one, such as `runs/rm/model`; without, one is trained on pairs without margins."""
    cross_fit: int = 0
    """Train one reward model for each fold of the prompts on all the others and let it score that
    one, so that no margin knows its own label; 0 trains a single one on most prompts."""
    new_margins: bool = False
    """Make new margins although the pairs hold some."""
    calibrate: bool = False
    """Divide rewards by the temperature that makes them most likely on pairs held out."""
    reward_learning_rate: float = 1e-5
    reward_epochs: float = 3.0
    """Up to 12 in the paper, with early stopping."""
    validation_share: float = 0.1
    """Share of the prompts held out to keep the best reward model and to calibrate it."""
    patience: int = 3
    """Epochs in a row without a better reward model, after which its training stops."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("cross_fit", self.cross_fit, 0)
        in_range("reward_learning_rate", self.reward_learning_rate, 0, above=True)
        in_range("reward_epochs", self.reward_epochs, 0, above=True)
        in_range("validation_share", self.validation_share, 0, 1, below=True)
        in_range("patience", self.patience, 0)
        if self.cross_fit == 1:
            raise ValueError("cross_fit must be 0, or 2 and more: one is trained on none; found 1")
        if self.reward_model and self.cross_fit:
            raise ValueError("reward_model and cross_fit exclude each other; found both; give one")
        if self.calibrate and self.reward_model:
            raise ValueError(
                "calibrate needs pairs that the reward model was not trained on, which are not"
                " known of one that is given; use melior margins --calibrate first"
            )
        if self.calibrate and not (self.cross_fit or self.validation_share):
            raise ValueError("calibrate needs pairs held out; found validation_share 0")

    @property
    def are_asked_for(self) -> bool:
        """Say whether new ones are to be made, whatever the pairs hold."""
        return bool(self.new_margins or self.reward_model or self.cross_fit)


@dataclass(frozen=True)
class Config:
    """Learn from pairs with DPO, each weighted by a reward model's margin."""

    model: ModelOptions
    data: DataOptions
    loop: LoopOptions
    objective: Madpo = field(default_factory=Madpo)
    optim: OptimConfig = OptimConfig(learning_rate=1e-6)
    margins: MarginOptions = MarginOptions()
    tau_percentile: float = 0.0
    """Take tau from the margins: this percentile of their sizes, such as 90; 0 takes --tau."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("tau_percentile", self.tau_percentile, 0, 100)
        if self.data.truncation_mode == "keep_start":
            raise ValueError(
                "truncation_mode must be drop or keep_end, so that the reward model and the policy"
                " judge the same answers; found keep_start, which cuts their ends"
            )

    @classmethod
    def tiny(cls, model: str, data: str, out: str) -> Config:
        """Return a config that runs in seconds on a tiny model."""
        return cls(
            ModelOptions(model=model, dtype="fp32"),
            DataOptions(data=(data,), n_samples=2),
            LoopOptions(out=out, epochs=4, batch_size=8, save_steps=4),
            optim=OptimConfig(learning_rate=1e-2),
            margins=MarginOptions(reward_learning_rate=1e-2, validation_share=0.2),
        )


def run(config: Config) -> None:
    """Train a reward model, store margins, weigh the pairs, learn from them, judge and report."""
    loop = replace(config.loop, resume=_resumes(config))
    check_inputs(config.model, config.data, loop)
    _check(config)
    from melior.report.terminal import present
    from melior.stages.learn import Plan, learn

    sources = _sources(config)
    margins = _margins_of(sources, seed=loop.seed)
    objective = _objective(config, margins)
    data = replace(config.data, data=sources)
    parts = (config.model, data, config.optim, loop)
    folder = learn(Plan("madpo", objective.paper, objective.method(), *parts, config))
    _tell(folder, objective, margins)
    present([folder])


def weights(objective: Madpo, margins: Sequence[float]) -> list[float]:
    """Return the weight of each pair."""
    import torch

    from melior.losses.weights import madpo_weight

    given = torch.tensor(margins, dtype=torch.float32)
    found = madpo_weight(given, c_max=objective.c_max, tau=objective.tau, lam=objective.lam)
    return [float(weight) for weight in found]


def weight_facts(objective: Madpo, margins: Sequence[float]) -> Metrics:
    """Return how the weights are spread, for people."""
    found, n = weights(objective, margins), len(margins)
    return {
        "mean weight of a pair": sum(found) / n,
        "share of weights below 0.1": sum(weight < 0.1 for weight in found) / n,
        "share of margins below 0": sum(margin < 0 for margin in margins) / n,
        "share of margins within tau": sum(abs(margin) < objective.tau for margin in margins) / n,
        "tau": objective.tau,
    }


def _resumes(config: Config) -> bool:
    """Say whether learning began before the run was stopped; else only its margins are kept."""
    place = Path(config.loop.out)
    left = (REWARD, f"{REWARD}-train.jsonl", "fold-1-others.jsonl", MARGINS, ABOUT)
    is_at_margins = any((place / name).exists() for name in left)
    return config.loop.resume and ((place / "run.json").exists() or not is_at_margins)


def _check(config: Config) -> None:
    """Look for a reward model that is named, and for enough prompts."""
    from melior.models.names import find

    if config.margins.reward_model:
        find(config.margins.reward_model)
    if config.margins.calibrate and not _needs_margins(config):
        raise ValueError(
            f"{', '.join(config.data.data)}: calibrate needs a reward model; found pairs that hold"
            " margins; leave it out, or add --new-margins"
        )


def _needs_margins(config: Config) -> bool:
    margins = _margins_of(config.data.data, seed=config.loop.seed)
    return config.margins.are_asked_for or not any(margins)


def _margins_of(sources: Sequence[str], *, seed: int) -> list[float]:
    from melior.data.files import read_pairs

    return [pair.margin for pair in read_pairs(sources, seed=seed)]


def _sources(config: Config) -> tuple[str, ...]:
    """Return where pairs with margins lie; make them where there are none."""
    if not _needs_margins(config):
        return config.data.data
    from melior.training.checkpoint import refuse_changes
    from melior.training.run import write_json

    out, loop = Path(config.loop.out), config.loop
    made_of = _made_of(config)
    if loop.resume and (out / ABOUT).exists():
        was = json.loads((out / ABOUT).read_text(encoding="utf-8"))["made_of"]
        if not loop.allow_changes:
            refuse_changes(was, made_of, where=out)
        return (str(out / MARGINS),)
    out.mkdir(parents=True, exist_ok=True)
    (out / ABOUT).unlink(missing_ok=True)
    temperature = _cross_fitted(config) if config.margins.cross_fit else _scored(config)
    # Last of all: it says that the pairs are whole.
    write_json(out / ABOUT, {"made_of": made_of, "temperature": temperature})
    return (str(out / MARGINS),)


def _made_of(config: Config) -> dict[str, Any]:
    """Return all that margins depend on."""
    from melior.data.files import content_hash

    loop, data = config.loop, config.data
    own = {
        "data": content_hash(list(data.data)),
        "model": config.model.model,
        "batch_size": loop.batch_size,
        "seed": loop.seed,
        "max_length": data.max_length,
    }
    return own | asdict(config.margins)


def _scored(config: Config) -> float:
    """Score all pairs by one reward model, and return the temperature."""
    from melior.data.files import read_pairs
    from melior.rewards.scalar import load_scorer
    from melior.stages.reward_models.margins import (
        fitted_temperature,
        rewards,
        spread,
        write_margins,
    )
    from melior.training.hooks import counted

    pairs = list(read_pairs(config.data.data, seed=config.loop.seed))
    apart: list[Pair] = []
    name = config.margins.reward_model
    if not name:
        kept, apart = _held_out(config, pairs)
        name = str(_trained(config, kept, apart) / "model")
    held = ModelOptions(
        model=name, dtype=config.model.dtype, device=config.model.device,
        padded=config.model.padded,
    )  # fmt: skip
    scorer = load_scorer(held, max_tokens=config.loop.max_tokens, max_length=config.data.max_length)
    temperature = 1.0
    if config.margins.calibrate:
        known = rewards(scorer, apart, leaves_out=True)
        temperature, said = fitted_temperature([better - worse for _, better, worse in known])
        print(said, file=sys.stderr)
    with counted("scoring pairs") as progress:
        margins = write_margins(
            Path(config.loop.out) / MARGINS, pairs, scorer, name,
            temperature=temperature, leaves_out=True, on_progress=progress,
        )  # fmt: skip
    for line in [*scorer.remarks(), *spread(margins)]:
        print(line, file=sys.stderr)
    return temperature


def _held_out(config: Config, pairs: list[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Return the pairs that a reward model is trained on, and those that choose its best step."""
    from melior.data.split import split_by_prompt

    share = config.margins.validation_share
    return split_by_prompt(pairs, share=share, seed=config.loop.seed) if share else (pairs, [])


def _trained(config: Config, kept: Sequence[Pair], apart: Sequence[Pair]) -> Path:
    """Train a reward model, or go on with it, and return its run folder."""
    from melior.data.files import write_pairs
    from melior.report.page import write_report
    from melior.stages.reward_models.train import train_reward

    out = Path(config.loop.out)
    sides = {"train": kept, "held-out": apart}
    files = {name: out / f"{REWARD}-{name}.jsonl" for name in sides}
    for name, pairs in sides.items():
        write_pairs(files[name], pairs)
    data = replace(
        config.data,
        data=(str(files["train"]),),
        eval_data=(str(files["held-out"]),) if apart else (),
    )
    folder = out / REWARD
    has_begun = (folder / "run.json").exists()
    loop = replace(_reward_loop(config), out=str(folder), resume=config.loop.resume and has_begun)
    train_reward(_reward_plan(config, data, loop))
    write_report([folder])
    return folder


def _cross_fitted(config: Config) -> float:
    """Score each fold of the prompts by a model of the others, and return the temperature."""
    from melior.data.files import read_pairs, write_pairs
    from melior.stages.reward_models.folds import cross_fit
    from melior.stages.reward_models.margins import fitted_temperature, spread

    place = cross_fit(
        lambda data, loop: _reward_plan(config, data, loop),
        config.model, config.data, _reward_loop(config), folds=config.margins.cross_fit,
    )  # fmt: skip
    pairs, temperature = list(read_pairs(str(place))), 1.0
    if config.margins.calibrate:
        temperature, said = fitted_temperature([pair.margin for pair in pairs])
        print(said, file=sys.stderr)
    pairs = [_divided(pair, temperature) for pair in pairs]
    write_pairs(Path(config.loop.out) / MARGINS, pairs)
    for line in spread([pair.margin for pair in pairs]):
        print(line, file=sys.stderr)
    return temperature


def _divided(pair: Pair, temperature: float) -> Pair:
    """Return a scored pair with its rewards divided by a temperature."""
    from melior.rewards.scalar import with_margin

    better, worse = (pair.facts[f"reward_{side}"] / temperature for side in ("chosen", "rejected"))
    return with_margin(
        pair, better, worse, {**pair.facts["reward_model"], "temperature": temperature}
    )


def _reward_loop(config: Config) -> LoopOptions:
    return replace(
        config.loop, epochs=config.margins.reward_epochs, max_steps=0, eval_steps=0,
        kl_budget=0.0, report_to=(),
    )  # fmt: skip


def _reward_plan(config: Config, data: DataOptions, loop: LoopOptions) -> RewardPlan[RewardModel]:
    from melior.stages.reward_models.kinds import scalar
    from melior.stages.reward_models.train import RewardPlan

    own = config.margins
    kind = scalar(margin_weight=0.0, label_smoothing=0.0, center_rewards_coefficient=0.0)
    optim = OptimConfig(learning_rate=own.reward_learning_rate, warmup_ratio=0.03)
    return RewardPlan(
        "madpo, reward model", Madpo.paper, kind, own.validation_share, own.patience,
        config.model, data, optim, loop, config,
    )  # fmt: skip


def _objective(config: Config, margins: Sequence[float]) -> Madpo:
    """Return the objective, with tau from the margins where that is asked for."""
    from melior.stages.reward_models.margins import quantile

    if not config.tau_percentile:
        return config.objective
    tau = quantile([abs(margin) for margin in margins], config.tau_percentile / 100)
    return replace(config.objective, tau=tau)


def _tell(folder: Path, objective: Madpo, margins: Sequence[float]) -> None:
    """Put the weights beside the run's verdict, and what a histogram needs beside its data."""
    from melior.training.run import write_json

    def add(name: str, more: dict[str, Any], *, to: str) -> None:
        found = json.loads((folder / name).read_text(encoding="utf-8"))
        found[to] = found.get(to, {}) | more
        write_json(folder / name, found)

    add("evaluation.json", weight_facts(objective, margins), to="facts")
    drawn = {"margins": list(margins), "weights": weights(objective, margins)}
    add("data.json", {key: _thinned(values) for key, values in drawn.items()}, to="train")


def _thinned(values: Sequence[float]) -> list[float]:
    return sorted(values)[:: ceil(len(values) / DRAWN)]
