"""SCIR: the model judges itself in two ways and learns from pairs on which it agrees with itself.

Zhou et al. 2025, arXiv 2502.08922. The paper's full text was not at hand; docs/scir.md says which
parts are ours.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig, in_range
from melior.stages.inputs import check_inputs, check_rounds
from melior.stages.internal.options import ConsistencyOptions, SelfProposal
from melior.stages.online.options import PromptOptions

if TYPE_CHECKING:
    from melior.stages.internal.learn import ConsistencyPlan

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
    from melior.models.loading import load_chat, n_positions
    from melior.stages.internal.rounds import learn_round, pair_up, told
    from melior.stages.learn import whole
    from melior.stages.online import rounds
    from melior.stages.online.propose import divide, propose, seed_of, write_prompts

    out, seed = Path(config.loop.out), config.loop.seed
    longest = (
        min(config.data.max_length, n_positions(config.model)) - config.proposal.max_new_tokens
    )
    wanted = PromptOptions(config.prompts, rounds=config.rounds, n_prompts=config.n_prompts)
    asked = divide(
        wanted, load_chat(config.model), longest=longest, seed=seed, fewest=0,
        apart=config.data.eval_data,
    )  # fmt: skip
    policies, learned = [whole(config.model, config.model.model)], list[Path]()
    with rounds.opened("scir", PAPER, config, config.loop) as record:
        for number in range(1, config.rounds + 1):
            here = out / f"round-{number}"
            write_prompts(here, asked.rounds[number - 1])
            propose(here, policies, config.proposal, seed=seed_of(seed, number, "answers"))
            n_pairs, n_prompts = pair_up(here, seed=seed_of(seed, number, "pairs"))
            record.note(
                f"round {number}: {n_pairs} pairs of different answers to {n_prompts} of"
                f" {len(asked.rounds[number - 1])} prompts"
            )
            if not n_pairs:
                record.note(f"stopped before round {number} could learn; the others are kept")
                break
            begins = replace(config.model, model=policies[-1].model)
            loop = rounds.learning_loop(config.loop, {"learning": seed + number})
            policies.append(learn_round(here, replace(_plan(config), model=begins, loop=loop)))
            learned.append(here / rounds.LEARNED)
            record.append(number, told(here, n_pairs, n_prompts))
        rounds.keep(out, policies[-1])
        if learned:
            shutil.copyfile(learned[-1] / "evaluation.json", out / "evaluation.json")
    return learned or [out]


def _plan(config: Config) -> ConsistencyPlan:
    from melior.stages.internal.learn import ConsistencyPlan

    return ConsistencyPlan(
        "scir", PAPER, config.consistency, config.unlabelled, config.model, config.data,
        config.optim, config.loop, config,
    )  # fmt: skip
