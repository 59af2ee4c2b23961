"""OC-GFN: flows that are learned without a reward towards any outcome, and then turned to one.

Pan, Jain, Madan, Bengio 2024, arXiv 2310.03419.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from melior.checks import in_range
from melior.options import OptimConfig
from melior.stages.flows.options import FlowOptions, RewardOptions
from melior.training.folder import check_folder
from melior.training.options import StepOptions
from melior.training.trackers import check_installed

PAPER = "Pan, Jain, Madan, Bengio 2024, arXiv 2310.03419"
GRID = FlowOptions()
OPTIM = OptimConfig(
    learning_rate=1e-3, lr_scheduler_type="constant", warmup_ratio=0, max_grad_norm=100
)


@dataclass(frozen=True)
class PretrainConfig:
    """Learn, without a reward, to build whatever is asked for."""

    loop: StepOptions
    flow: FlowOptions = GRID
    optim: OptimConfig = OPTIM
    explorer: Literal["curious", "wander", "backward"] = "curious"
    """Who builds what becomes a goal: `curious` learns to build what is new (GAFN, the paper's);
    `wander` takes any action; `backward` takes apart objects that can all be listed."""
    edge_reward: Literal["terminal", "teleport"] = "terminal"
    """Where failure counts: at the stop, as in plain detailed balance; or at every step, the
    paper's outcome teleportation, which long strings need for success, and after which a sum over
    outcomes is only to be trusted where what is out of reach is masked."""
    epsilon: float = 1e-4
    """The reward of a failure, whose log must exist."""
    exploration: float = 0.0
    """Share of actions that are drawn evenly, when the network tries. The paper's procedure
    names none: with `teleport` a slip writes failure on every step of a trajectory that was good
    until then."""
    width: int = 256
    """Of the hidden layers."""
    depth: int = 2
    """Hidden layers."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("epsilon", self.epsilon, 0, 1, above=True, below=True)
        in_range("exploration", self.exploration, 0, 1)
        in_range("width", self.width, 1)
        in_range("depth", self.depth, 1)

    @classmethod
    def tiny(cls, out: str) -> PretrainConfig:
        """Return a config that runs in seconds."""
        return cls(
            StepOptions(out=out, steps=8, batch_size=8, save_steps=3, eval_steps=4),
            FlowOptions(height=3), width=16, explorer="backward",
        )  # fmt: skip


@dataclass(frozen=True)
class FinetuneConfig:
    """Turn what was learned without a reward to one: exactly, and by a predictor of the sum."""

    model: str
    """A folder that `melior ocgfn pretrain` left, such as `runs/a/model`."""
    reward: RewardOptions
    loop: StepOptions
    optim: OptimConfig = OPTIM
    most_outcomes: int = 1000
    """That the sum goes over, and the predictor tells apart; of more, some that are drawn evenly
    stand for all."""
    spelled: bool = False
    """Let the predictor write outcomes letter by letter: for strings that are too many to list."""
    exploration: float = 0.1
    """Share of actions, and of outcomes, that are drawn evenly while the predictor learns."""
    width: int = 256
    """Of the predictor's hidden layers."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("most_outcomes", self.most_outcomes, 1)
        in_range("exploration", self.exploration, 0, 1)
        in_range("width", self.width, 1)

    @classmethod
    def tiny(cls, model: str, out: str) -> FinetuneConfig:
        """Return a config that runs in seconds."""
        loop = StepOptions(out=out, steps=8, batch_size=8, save_steps=3, eval_steps=4)
        return cls(model, RewardOptions("corners"), loop, width=16)


@dataclass(frozen=True)
class BuildConfig:
    """Build what is asked for by a network that was pre-trained."""

    model: str
    """A folder that `melior ocgfn pretrain` left, such as `runs/a/model`."""
    outcomes: tuple[str, ...]
    """Objects, each as its numbers with commas between: `3,4`; letters of strings count from 1."""
    n: int = 16
    """Tries at each."""
    seed: int = 0
    out: Annotated[str, tyro.conf.arg(aliases=["--output"])] = ""
    """A file of JSON lines with all that was built; by default only the success is printed."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        if not self.outcomes:
            raise ValueError("outcomes: at least one is needed; found none")
        in_range("n", self.n, 1)
        in_range("seed", self.seed, 0, 2**63 - 1)


def pretrain(config: PretrainConfig) -> None:
    """Explore, learn, judge, save and report."""
    _check(config.loop)
    from melior.losses.flow import detailed_balance
    from melior.losses.flow_outcomes import teleported_balance
    from melior.report.terminal import present
    from melior.stages.flows.learn import Pretraining, pretrain_flows

    balances = {"terminal": detailed_balance, "teleport": teleported_balance}
    plan = Pretraining(
        "ocgfn pretrain", PAPER, config.flow, config.explorer, balances[config.edge_reward],
        config.epsilon, config.exploration, config.width, config.depth, config.optim, config.loop,
        config,
    )  # fmt: skip
    present([pretrain_flows(plan)])


def finetune(config: FinetuneConfig) -> None:
    """Convert, learn, judge and report."""
    _check(config.loop)
    from melior.report.terminal import present
    from melior.stages.flows.turn import Turning, turn_flows

    plan = Turning(
        "ocgfn finetune", PAPER, config.model, config.reward, config.most_outcomes,
        config.spelled, config.exploration, config.width, config.optim, config.loop, config,
    )  # fmt: skip
    present([turn_flows(plan)])


def build(config: BuildConfig) -> None:
    """Ask, and print how often each was built."""
    from melior.stages.flows.ask import ask
    from melior.training.run import write_json_lines

    found = []
    for own in ask(config.model, config.outcomes, n=config.n, seed=config.seed):
        found.append(own)
        name = ",".join(map(str, own.outcome))
        unseen = "" if own.was_seen else "; it was never built while the network learned"
        print(f"{name}: built in {own.success:.0%} of {config.n} tries{unseen}", flush=True)
    if config.out:
        write_json_lines(Path(config.out), [own.to_json() for own in found])


def _check(loop: StepOptions) -> None:
    check_folder(Path(loop.out), resume=loop.resume, overwrite=loop.overwrite)
    check_installed(loop.report_to)
