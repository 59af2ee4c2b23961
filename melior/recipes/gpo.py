"""GPO: general preference optimisation, for preferences that need not be a single number.

Zhang et al. 2024, arXiv 2410.02197, sec. 5: in each round K answers from the model as it is, all
compared with each other; each answer's log-ratio to that model is regressed on its mean score
against the others. Such a step is one of multiplicative weights, pi_t exp(s / beta), and on
preferences that go in circles the iterates circle, too: what comes to rest is their mixture. SPPO
(Wu et al. 2024, arXiv 2405.00675) is the same with win rates for scores.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import tyro

from melior.checks import in_range
from melior.objectives.objective import Objective
from melior.options import JudgeOptions, ModelOptions, OptimConfig
from melior.records import Group, text
from melior.stages.inputs import check_prompted
from melior.stages.online.options import (
    ChoiceOptions,
    PromptOptions,
    ProposalOptions,
    RoundLoop,
    RoundOptions,
    ServingOptions,
)

if TYPE_CHECKING:
    from melior.stages.learn import Plan
    from melior.stages.method import Method
    from melior.stages.online.rounds import Setting
    from melior.training.run import Run

PAPER = "Zhang et al. 2024, arXiv 2410.02197"


@dataclass(frozen=True)
class Gpo(Objective):
    """Regress each answer's log-ratio on its score against the others."""

    paper: ClassVar[str] = PAPER
    data = "lists"

    beta: float = 0.001
    """Log-ratios go to scores over beta; one over SPPO's eta."""
    target: Literal["score", "win-rate"] = "score"
    """GPO's mean score against the others, a log-odds; or SPPO's mean win rate less one half."""
    target_limit: float = 1000.0
    """Targets beyond it, on either side, are cut to it, in nats; a choice of ours, as the paper has
    none and its released scripts export a clamp of 1000."""
    score_scale: float = 1.0
    """Scores, which are log-odds here, are multiplied by it. The paper's scores are log-odds times
    its model's beta, 0.1; its released tables hold twice the log-odds."""
    length_power: float = 0.0
    """Log-ratios are divided by the answer's tokens to this power; 1 is the paper's LN-GPO."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("beta", self.beta, 0, above=True)
        in_range("target_limit", self.target_limit, 0, above=True)
        in_range("score_scale", self.score_scale, 0, above=True)
        in_range("length_power", self.length_power, 0)

    def method(self) -> Method:
        """Return GPO's loss on lists of two, and DPO's reward; the loss is in nats squared."""
        from melior.losses.preference import gpo
        from melior.stages.method import Method, pairwise

        def loss(a: Any) -> Any:
            share = a.lengths.clamp(min=1) ** -self.length_power
            return gpo(
                pairwise(a.policy * share), pairwise(a.reference * share), pairwise(a.scores),
                beta=self.beta, limit=self.target_limit,
            )  # fmt: skip

        return Method(loss, lambda a: self.beta * a.log_ratio, has_reference=True, data="lists")

    def targets(self, group: Group, *, length_penalty: float = 0.0) -> Group:
        """Return a scored group with each answer's mean score against all of them, itself too.

        Sec. 4 of the paper: s(y > pi) is estimated as 1/K sum_j s(y > y_j). Of a scorer that gives
        numbers, s(y > y') is their difference, so that every scorer serves. A price on length is
        taken off s as the difference of both answers' prices, so that targets stay about 0.
        """
        prices = [length_penalty * len(text(one.response)) for one in group.candidates]
        means = [
            self._mean([None if s is None else s - mine + other
                        for s, other in zip(row, prices, strict=True)])
            for row, mine in zip(compared(group), prices, strict=True)
        ]  # fmt: skip
        both = zip(group.candidates, means, strict=True)
        return replace(group, candidates=tuple(replace(one, score=mean) for one, mean in both))

    def _mean(self, row: Sequence[float | None]) -> float | None:
        known = [value * self.score_scale for value in row if value is not None]
        if len(known) < 2:  # itself alone
            return None
        if self.target == "win-rate":
            known = [1 / (1 + math.exp(-max(-700.0, value))) - 0.5 for value in known]
        return sum(known) / len(known)


@dataclass(frozen=True)
class GpoLoop(RoundLoop):
    """How long each round learns, and what it leaves behind."""

    epochs: Annotated[float, tyro.conf.arg(aliases=["--num-train-epochs"])] = 1.0
    batch_size: int = 64
    """Examples per optimizer step, however many portions they are computed in."""


@dataclass(frozen=True)
class Config:
    """Regress log-ratios on preference scores, in rounds: GPO, and SPPO with win rates."""

    model: ModelOptions
    prompts: PromptOptions
    """About 20,000 in each of 3 rounds in the paper."""
    loop: GpoLoop
    rounds: RoundOptions = RoundOptions(reference="previous", keep="last", max_length=2048)
    proposal: ProposalOptions = ProposalOptions(k=5, temperatures=(0.7,), top_p=0.9)
    """At most 2048 new tokens in the paper."""
    choice: ChoiceOptions = ChoiceOptions()
    objective: Gpo = field(default_factory=Gpo)
    average: bool = False
    """Leave the mean of all rounds' weights in `average/`, too, judged as a round is. It stands in
    for the mixture of policies that the theorem is about, and is not it."""
    optim: OptimConfig = OptimConfig(learning_rate=5e-7, lr_scheduler_type="linear")
    """The paper's released scripts take RMSprop."""
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    serving: ServingOptions = ServingOptions()

    def __post_init__(self) -> None:
        """Check that what is regressed is of the model that answered."""
        own = self.rounds
        if (own.reference, own.history, own.warm_start) != ("previous", "new", True):
            raise ValueError(
                "gpo needs reference previous, history new and a warm start: its targets are of the"
                f" model that answered; found {own.reference}, {own.history} and {own.warm_start}"
            )
        if self.choice.select == "all":
            raise ValueError("select must give two answers, as gpo regresses two; found all")

    @classmethod
    def tiny(cls, model: str, prompts: str, out: str) -> Config:
        """Return a config that runs in seconds on a tiny model."""
        return cls(
            ModelOptions(model=model, dtype="fp32"),
            PromptOptions((prompts,), rounds=2, n_prompts=6, n_eval_prompts=4),
            GpoLoop(out=out, batch_size=4, save_steps=2),
            proposal=ProposalOptions(k=4, temperatures=(1.0,), max_new_tokens=8),
            objective=Gpo(beta=0.1),
            optim=OptimConfig(learning_rate=1e-2),
        )


def run(config: Config) -> None:
    """Go through the rounds; end with the last iterate, beside the mixture of all."""
    scoring = check_prompted(
        config.model, config.prompts, config.rounds, config.loop, judge=config.judge
    )
    from melior.report.rounds import present
    from melior.stages.online import rounds
    from melior.stages.online.choose import choose, score
    from melior.stages.online.judge import judge
    from melior.stages.online.propose import propose

    setting = rounds.begin(
        config.model, config.prompts, config.rounds, config.loop,
        max_new_tokens=config.proposal.max_new_tokens,
        length_penalty=config.choice.length_penalty, scoring=scoring,
    )  # fmt: skip
    made_of = setting.made_of
    with rounds.opened("gpo", PAPER, config, config.loop, made_of=made_of) as record:
        results, policies = [rounds.judge_start(setting)], [setting.start]
        for number in range(1, config.prompts.rounds + 1):
            here, seeds, began = setting.here(number), setting.seeds(number), time.monotonic()
            propose(here, policies, config.proposal, config.serving, seed=seeds["answers"])
            score(here, setting.scorer)
            price = config.choice.length_penalty
            targets = partial(config.objective.targets, length_penalty=price)
            unpriced = replace(config.choice, length_penalty=0.0)
            counts = choose(
                here, unpriced, seed=seeds["choice"], fits=setting.fits, targets=targets
            )
            if not rounds.has_lessons(record, number, counts):
                break
            policies.append(rounds.learn_round(here, _plan(config, setting, policies[-1], number)))
            results.append(judge(here, policies[-1], setting.panel, number))
            rounds.close(setting, results[-1], counts, policies[-2:], began=began)
            record.append(number, rounds.metrics_of(results[-1], counts))
            budget = config.loop.kl_budget
            if not rounds.may_go_on(record, results[-1], config.rounds, kl_budget=budget):
                break
        rounds.finish(setting, results, keep_best=config.rounds.keep == "best", record=record)
        _tell_of_all(config, setting, results, policies[1:], record)
    present(Path(config.loop.out))


def compared(group: Group) -> list[list[float | None]]:
    """Return the logits that each answer of a group beats each, of whatever scored it."""
    if "comparisons" in group.facts:
        from melior.rewards.comparisons import completed

        return completed(group.facts["comparisons"])
    scores = [one.score for one in group.candidates]
    return [[None if a is None or b is None else a - b for b in scores] for a in scores]


def _plan(config: Config, setting: Setting, policy: ModelOptions, number: int) -> Plan:
    """Return what a round learns: from the model that answered, relative to it."""
    from melior.stages.learn import Plan
    from melior.stages.online import rounds

    begins, reference = rounds.ends_of(config.model, policy, config.rounds)
    data = rounds.learning_data(setting.here(number), number, config.rounds)
    loop = rounds.learning_loop(config.loop, setting.seeds(number))
    return Plan(
        "gpo", PAPER, config.objective.method(), begins, data, config.optim, loop, config, reference
    )


def _tell_of_all(
    config: Config,
    setting: Setting,
    results: Sequence[dict[str, Any]],
    policies: Sequence[ModelOptions],
    record: Run,
) -> None:
    """Note what the mixture of all iterates came to, beside the last one and the mean of weights.

    The mixture, which the paper's theorem is about, draws one iterate for each prompt, the start
    model among them, and lets it answer: its expected score is the mean of theirs.
    """
    import json

    from melior.stages.online.judge import judge
    from melior.training.run import write_json

    if not policies:
        return
    path = setting.out / "evaluation.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    iterates = [one["means"]["reward"] for one in results if "reward" in one["means"]]
    facts: dict[str, float] = {}
    if len(iterates) == len(results):
        facts["reward of the mixture of all iterates"] = sum(iterates) / len(iterates)
        facts["reward of the last round"] = iterates[-1]
    if config.average:
        mean = replace(setting.start, model=str(_averaged(policies, setting.out / "average")))
        here = Path(mean.model).parent
        judged = judge(here, mean, setting.panel, len(results))
        if "reward" in judged["means"]:
            facts["reward of the mean of all weights"] = judged["means"]["reward"]
    if facts:
        said = ", ".join(f"{name} {value:.3g}" for name, value in facts.items())
        record.note(f"the run ends: {said}")
    write_json(path, {**found, "facts": {**found["facts"], **facts}})


def _averaged(policies: Sequence[ModelOptions], here: Path) -> Path:
    """Leave a model whose weights are the mean of several, unless it is there."""
    import shutil

    import torch

    from melior.models.loading import load, save_model

    place, beside = here / "model", here / ".model.partial"
    if place.exists():
        return place
    mean = load(policies[0], trainable=False)
    sums = {name: weight.double() for name, weight in mean.model.named_parameters()}
    for one in policies[1:]:
        for name, weight in load(one, trainable=False).model.named_parameters():
            sums[name] += weight.double()
    with torch.no_grad():
        for name, weight in mean.model.named_parameters():
            weight.copy_(sums[name] / len(policies))
    shutil.rmtree(beside, ignore_errors=True)
    save_model(mean, beside)
    beside.replace(place)
    return place
