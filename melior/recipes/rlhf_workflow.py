"""RLHF Workflow: online iterative DPO against a reward or preference model.

Dong et al. 2024, arXiv 2405.07863, algorithm 2 in its practical form (sec. 3.3): in each round new
prompts, n answers from the model as it is, half of them at each of two temperatures, the best
against the worst by the scorer under a price on length, and DPO from there, held to the model that
the first round began with. Best and worst of n are how the paper explores: the two sides are as far
apart as the model's own answers get, and still close to it in KL.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from melior.objectives.relative import Dpo
from melior.options import JudgeOptions, ModelOptions, OptimConfig
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
    from melior.stages.online.rounds import Setting

PAPER = "Dong et al. 2024, arXiv 2405.07863"


@dataclass(frozen=True)
class Config:
    """Online iterative DPO: new prompts, best against worst of n, held to the start model."""

    model: ModelOptions
    prompts: PromptOptions
    """20,000 in each of 3 rounds in the paper."""
    loop: RoundLoop
    rounds: RoundOptions = RoundOptions(max_length=2048)
    proposal: ProposalOptions = ProposalOptions()
    """At most 2048 new tokens in the paper."""
    choice: ChoiceOptions = ChoiceOptions()
    """A length penalty of 0.001 is the paper's concise model."""
    objective: Dpo = field(default_factory=Dpo)
    optim: OptimConfig = OptimConfig(learning_rate=5e-7, warmup_ratio=0.03)
    """Sec. 4.1, for 8 billion weights; a model of some hundred million learns at about 1e-5."""
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    serving: ServingOptions = ServingOptions()

    def __post_init__(self) -> None:
        """Check that there are pairs to learn from."""
        if self.choice.select == "all":
            raise ValueError("select must give pairs, which DPO learns from; found all")

    @classmethod
    def tiny(cls, model: str, prompts: str, out: str) -> Config:
        """Return a config that runs in seconds on a tiny model."""
        return cls(
            ModelOptions(model=model, dtype="fp32"),
            PromptOptions((prompts,), rounds=2, n_prompts=6, n_eval_prompts=4),
            RoundLoop(out=out, batch_size=4, save_steps=2),
            proposal=ProposalOptions(k=4, max_new_tokens=8),
            optim=OptimConfig(learning_rate=1e-2),
        )


def run(config: Config) -> None:
    """Go through the rounds, and end with the iterate that the held-out prompts find best."""
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
    with rounds.opened("rlhf-workflow", PAPER, config, config.loop, made_of=made_of) as record:
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
    """Return what a round learns: DPO from the last iterate, relative to the start model."""
    from melior.stages.learn import Plan
    from melior.stages.online import rounds

    begins, reference = rounds.ends_of(config.model, policy, config.rounds)
    data = rounds.learning_data(setting.here(number), number, config.rounds)
    loop = rounds.learning_loop(config.loop, setting.seeds(number))
    return Plan(
        "rlhf-workflow", PAPER, config.objective.method(), begins, data, config.optim, loop,
        config, reference,
    )  # fmt: skip
