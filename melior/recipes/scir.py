"""SCIR: the model judges itself in two ways and learns from pairs on which it agrees with itself.

Zhou et al. 2025, arXiv 2502.08922. The paper's full text was not at hand; docs/scir.md says which
parts are ours.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from melior.checks import in_range
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.stages.inputs import check_inputs, check_rounds
from melior.stages.internal.options import (
    ConsistencyOptions,
    ConsistencyPlan,
    SelfProposal,
    StopOptions,
)
from melior.stages.online.options import PromptOptions

if TYPE_CHECKING:
    from melior.stages.online.propose import Asked

PAPER = "Zhou et al. 2025, arXiv 2502.08922"


@dataclass(frozen=True)
class Config:
    """Learn from pairs on which a model's own judges agree, held to labelled ones."""

    model: ModelOptions
    data: DataOptions
    """The labelled pairs."""
    loop: LoopOptions
    unlabelled: tuple[str, ...] = ()
    """Unlabelled pairs, for one round; which answer their rows call chosen is not read. Sources as
    in `--data`."""
    prompts: tuple[str, ...] = ()
    """Prompts that the model answers itself, in rounds, in place of unlabelled pairs."""
    rounds: int = 1
    """With prompts: how often it answers new ones and learns."""
    n_prompts: int = 0
    """New prompts in each round: no prompt is drawn twice. 0 divides all there are."""
    proposal: SelfProposal = SelfProposal()
    consistency: ConsistencyOptions = ConsistencyOptions()
    stops: StopOptions = field(default_factory=StopOptions)
    optim: OptimConfig = OptimConfig(learning_rate=1e-6)

    def __post_init__(self) -> None:
        """Check the ranges, and what only the whole can tell."""
        in_range("rounds", self.rounds, 1)
        in_range("n_prompts", self.n_prompts, 0)
        if self.model.lora_dropout:
            raise ValueError(
                "lora_dropout must be 0, so that judge, policy and reference are one model; found"
                f" {self.model.lora_dropout:g}"
            )
        if bool(self.unlabelled) == bool(self.prompts):
            found = "both" if self.prompts else "neither"
            raise ValueError(
                "unlabelled or prompts is needed: pairs for one round, or prompts that the model"
                f" answers in rounds; found {found}"
            )
        if self.unlabelled and self.rounds > 1:
            raise ValueError(
                f"rounds must be 1 with --unlabelled, as later rounds need new answers; found"
                f" {self.rounds}; give --prompts"
            )

    @classmethod
    def tiny(cls, model: str, data: str, out: str) -> Config:
        """Return a config that runs in seconds on a tiny model."""
        return cls(
            ModelOptions(model=model, dtype="fp32"),
            DataOptions(data=(data,), n_samples=2),
            LoopOptions(out=out, epochs=2, batch_size=8, save_steps=2, max_tokens=8192),
            unlabelled=(data,),
            optim=OptimConfig(learning_rate=1e-2),
        )


def run(config: Config) -> None:
    """Ask, choose, learn, judge and report; in rounds where the model answers itself."""
    check_inputs(config.model, config.data, config.loop)
    check_rounds(config.loop)
    check_sources(config)
    from melior.report.terminal import present
    from melior.stages.internal.learn import learn_consistently

    if config.unlabelled:
        present([learn_consistently(_plan(config))])
    else:
        present(_in_rounds(config), Path(config.loop.out) / "report.html")


def check_sources(config: Config) -> None:
    """Look at the first row of each source of unlabelled pairs or prompts.

    Raises:
        FileNotFoundError: a source is not there.
        ValueError: it is empty, or its first row is not what it should hold.
    """
    from melior.data.files import read_pairs, read_prompts

    for source in config.unlabelled:
        if next(read_pairs([source]), None) is None:
            raise ValueError(f"{source}: needs at least one pair; found no row")
    for source in config.prompts:
        if next(read_prompts([source]), None) is None:
            raise ValueError(f"{source}: needs at least one prompt; found no row")


def _in_rounds(config: Config) -> list[Path]:
    """Answer, pair up and learn, round after round; return the rounds' run folders."""
    from melior.stages.internal.rounds import close, learn_round, pair_up, seeds_of, told
    from melior.stages.learn import whole
    from melior.stages.online import rounds
    from melior.stages.online.propose import propose, write_prompts

    out, asked = Path(config.loop.out), _asked(config)
    policies, learned = [whole(config.model, config.model.model)], list[Path]()
    made_of = _made_of(config, policies[0])
    with rounds.opened("scir", PAPER, config, config.loop, made_of=made_of) as record:
        for number in range(1, config.rounds + 1):
            here, began = out / f"round-{number}", time.monotonic()
            seeds = seeds_of(config.loop.seed, number)
            write_prompts(here, asked.rounds[number - 1])
            propose(here, policies, config.proposal, seed=seeds["answers"])
            counts = pair_up(here, seed=seeds["pairs"])
            record.note(f"round {number}: {counts.sentence()}")
            if not counts.pairs:
                record.note(f"stopped before round {number} could learn; the others are kept")
                break
            policies.append(learn_round(here, _round_plan(config, policies[-1], seeds)))
            learned.append(here / rounds.LEARNED)
            close(here, policies[-2:], counts, seeds=seeds, began=began)
            record.append(number, told(here, counts))
        rounds.keep(out, policies[-1])
        if learned:
            shutil.copyfile(learned[-1] / "evaluation.json", out / "evaluation.json")
    return learned or [out]


def _asked(config: Config) -> Asked:
    """Return each round's prompts, after a look at the labelled pairs.

    What is wrong with those would else be known only after a round's answers were drawn.
    """
    from melior.models.loading import load_chat, n_positions
    from melior.stages.internal.material import read_labelled
    from melior.stages.internal.opinions import SelfJudge
    from melior.stages.online.propose import asked_before, divide

    chat, loop = load_chat(config.model), config.loop
    read_labelled(_plan(config), SelfJudge(chat))
    longest = (
        min(config.data.max_length, n_positions(config.model)) - config.proposal.max_new_tokens
    )
    return divide(
        PromptOptions(config.prompts, rounds=config.rounds, n_prompts=config.n_prompts),
        chat, longest=longest, seed=loop.seed, fewest=0, apart=config.data.eval_data,
        earlier=asked_before(Path(loop.out)) if loop.resume else {},
    )  # fmt: skip


def _made_of(config: Config, start: ModelOptions) -> dict[str, Any]:
    """Return what the rounds are made of besides their options, by its hash."""
    from melior.data.files import content_hash
    from melior.stages.online.manifest import identity

    data = config.data
    return {
        "start": identity(start, Path(config.loop.out)),
        "prompts": content_hash(list(config.prompts)),
        "data": content_hash(list(data.data)),
        "eval_data": content_hash(list(data.eval_data)) if data.eval_data else "",
    }


def _plan(config: Config) -> ConsistencyPlan:
    return ConsistencyPlan(
        "scir", PAPER, config.consistency, config.stops, config.unlabelled, config.model,
        config.data, config.optim, config.loop, config, has_own_answers=bool(config.prompts),
    )  # fmt: skip


def _round_plan(config: Config, policy: ModelOptions, seeds: Mapping[str, int]) -> ConsistencyPlan:
    """Return what a round learns, but for its pairs: from the last one's model, relative to it."""
    from melior.stages.online.rounds import learning_loop

    begins = replace(config.model, model=policy.model)
    loop = replace(learning_loop(config.loop, seeds), eval_steps=config.loop.eval_steps)
    return replace(_plan(config), model=begins, loop=loop)
