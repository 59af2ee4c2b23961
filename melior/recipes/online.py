"""Online learning: sample from the model that is trained, score, choose, learn, judge, again.

Any scorer, any choice and any objective of the house in the same rounds; RLHF Workflow (Dong et al.
2024, arXiv 2405.07863, algorithm 2) with another name for each of its parts.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melior.config import config_from_dict
from melior.objectives.objective import Objective
from melior.objectives.table import objective_kind
from melior.options import (
    DataOptions,
    JudgeOptions,
    LoopOptions,
    ModelOptions,
    OptimConfig,
    ScoringOptions,
)
from melior.stages.inputs import check_prompted
from melior.stages.round_options import (
    ChoiceOptions,
    PromptOptions,
    ProposalOptions,
    RoundOptions,
)

if TYPE_CHECKING:
    from melior.stages.learn import Plan

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
    scoring = ScoringOptions(
        dtype=config.model.dtype, device=config.model.device, judge=config.judge
    )
    _check(config, scoring)
    from melior.report.rounds import present
    from melior.stages import rounds
    from melior.stages.choose import choose, score
    from melior.stages.judge_rounds import answer, judge
    from melior.stages.propose import propose
    from melior.training.run import Run

    own, loop = config.rounds, config.loop
    if loop.overwrite:
        rounds.delete_rounds(Path(loop.out))
    with Run.create(
        loop.out, "online", config, sys.argv, paper=PAPER, resume=loop.resume,
        overwrite=loop.overwrite, allow_changes=loop.allow_changes, report_to=loop.report_to,
    ) as record:  # fmt: skip
        setting, judged = rounds.begin(
            config.model, config.prompts, own, loop,
            max_new_tokens=config.proposal.max_new_tokens, scoring=scoring,
        )  # fmt: skip
        record.rewind(0)
        results, policy = [judged], setting.start
        for number in range(1, config.prompts.rounds + 1):
            here, seeds, began = setting.here(number), setting.seeds(number), time.monotonic()
            propose(here, policy, config.proposal, seed=seeds["answers"])
            score(here, setting.scorer)
            counts = choose(here, config.choice, seed=seeds["choice"])
            record.note(f"round {number}: {counts.sentence()}")
            if not counts.chosen:
                record.note(f"stopped before round {number} could learn; the others are kept")
                break
            rounds.learn_round(here, _plan(config, here, number, policy))
            models = {"policy": policy, "learned": rounds.policy_of(setting.start, here)}
            policy = models["learned"]
            answer(here, policy, setting.start, setting.panel)
            results.append(judge(here, setting.panel, number))
            rounds.close(
                here, results[-1], counts, models=models, seeds=seeds,
                cost=rounds.spent(setting), began=began,
            )  # fmt: skip
            record.append(number, rounds.metrics_of(results[-1], counts))
            if not rounds.may_go_on(record, results[-1], own):
                break
        rounds.finish(setting, results, keep_best=own.keep == "best", record=record)
    present(Path(loop.out))


def _check(config: Config, scoring: ScoringOptions) -> None:
    sources = (*config.prompts.prompts, *config.prompts.eval_prompts)
    scorers = [name for name in (config.rounds.scorer, config.rounds.judge_with) if name]
    check_prompted(config.model, sources, config.loop, scorers, scoring)


def _plan(config: Config, here: Path, number: int, policy: ModelOptions) -> Plan:
    """Return what a round learns: from where, of which pairs, relative to which model."""
    from melior.stages.learn import Plan
    from melior.stages.rounds import learned_from

    own, objective = config.rounds, config.built()
    begins_at = policy.model if own.warm_start else config.model.model
    held_to = config.model.model if own.reference == "start" else policy.model
    data = DataOptions(
        data=learned_from(here, number, own.history), max_length=own.max_length,
        max_long_share=1.0, allow_lint_errors=True, n_samples=0,
    )  # fmt: skip
    loop = replace(config.loop, seed=config.loop.seed + number, eval_steps=0, report_to=())
    return Plan(
        "online", objective.paper, objective.method(), replace(config.model, model=begins_at),
        data, config.optim, loop, config, reference="" if held_to == begins_at else held_to,
    )  # fmt: skip
