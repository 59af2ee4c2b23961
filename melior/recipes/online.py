"""Online learning: sample from the model that is trained, score, choose, learn, judge, again.

Any scorer, any choice and any objective of the house in the same rounds; RLHF Workflow (Dong et al.
2024, arXiv 2405.07863, algorithm 2) with another name for each of its parts.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melior.config import config_from_dict
from melior.objectives.objective import Objective
from melior.objectives.table import objective_kind
from melior.options import (
    JudgeOptions,
    LoopOptions,
    ModelOptions,
    OptimConfig,
)
from melior.stages.inputs import check_prompted
from melior.stages.online.options import (
    ChoiceOptions,
    PromptOptions,
    ProposalOptions,
    RoundOptions,
    ServingOptions,
)

if TYPE_CHECKING:
    from melior.stages.learn import Plan
    from melior.stages.online.rounds import Setting

PAPER = "Dong et al. 2024, arXiv 2405.07863"


@dataclass(frozen=True)
class Config:
    """Learn from one's own answers, in rounds: sample, score, choose, learn, judge, again."""

    model: ModelOptions
    prompts: PromptOptions
    loop: LoopOptions
    rounds: RoundOptions = RoundOptions()
    proposal: ProposalOptions = ProposalOptions()
    choice: ChoiceOptions = ChoiceOptions()
    objective: str = "dpo"
    """Any that `melior compare` knows."""
    objective_options: tuple[str, ...] = ()
    """Its options, such as `beta=0.05 label_smoothing=0.1`."""
    optim: OptimConfig = OptimConfig(learning_rate=1e-6)
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    serving: ServingOptions = ServingOptions()

    def __post_init__(self) -> None:
        """Check the ranges, and that choice and objective belong together."""
        kind = type(self.built())
        if (self.choice.select == "all") != (kind.data == "lists"):
            raise ValueError(
                f"select must be all for objectives of lists, and only for them; found"
                f" {self.choice.select} with {self.objective}, which learns from {kind.data}"
            )

    def built(self) -> Objective:
        """Return the objective with its options."""
        import yaml

        given: dict[str, Any] = {}
        for word in self.objective_options:
            name, equals, value = word.partition("=")
            if not equals:
                raise ValueError(f"objective_options must be name=value; found {word!r}")
            given[name] = yaml.safe_load(value)
        return config_from_dict(objective_kind(self.objective), given, where=self.objective)

    @classmethod
    def tiny(cls, model: str, prompts: str, out: str) -> Config:
        """Return a config that runs in seconds on a tiny model."""
        return cls(
            ModelOptions(model=model, dtype="fp32"),
            PromptOptions((prompts,), rounds=2, n_prompts=6, n_eval_prompts=4),
            LoopOptions(out=out, batch_size=4, save_steps=2),
            proposal=ProposalOptions(k=4, max_new_tokens=8),
            optim=OptimConfig(learning_rate=1e-2),
        )


def run(config: Config) -> None:
    """Go through the rounds; each is judged, and leaves all that it was made of."""
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
    with rounds.opened("online", PAPER, config, config.loop, made_of=made_of) as record:
        results, policies = [rounds.judge_start(setting)], [setting.start]
        for number in range(1, config.prompts.rounds + 1):
            here, seeds, began = setting.here(number), setting.seeds(number), time.monotonic()
            propose(here, policies, config.proposal, config.serving, seed=seeds["answers"])
            score(here, setting.scorer)
            counts = choose(here, config.choice, seed=seeds["choice"], fits=setting.fits)
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
    present(Path(config.loop.out))


def _plan(config: Config, setting: Setting, policy: ModelOptions, number: int) -> Plan:
    """Return what a round learns: from where, of which answers, relative to which model."""
    from melior.stages.learn import Plan
    from melior.stages.online import rounds

    objective, here = config.built(), setting.here(number)
    begins, reference = rounds.ends_of(config.model, policy, config.rounds)
    return Plan(
        "online", objective.paper, objective.method(), begins,
        rounds.learning_data(here, number, config.rounds), config.optim,
        rounds.learning_loop(config.loop, setting.seeds(number)), config, reference,
    )  # fmt: skip
