"""A generative flow network that learns one reward from nothing, by any of the known balances."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from melior.checks import in_range, not_read
from melior.options import OptimConfig
from melior.stages.flows.options import FlowOptions, RewardOptions
from melior.training.folder import check_folder
from melior.training.options import StepOptions
from melior.training.trackers import check_installed

if TYPE_CHECKING:
    from melior.stages.flows.rewarded import Learned

PAPER = "Bengio, Jain, Korablyov, Precup, Bengio 2021, arXiv 2106.04399"
OPTIM = OptimConfig(
    learning_rate=1e-3, lr_scheduler_type="constant", warmup_ratio=0, max_grad_norm=100
)
GRID = FlowOptions()


@dataclass(frozen=True)
class Config:
    """Learn to sample in proportion to a reward, from nothing."""

    reward: RewardOptions
    loop: StepOptions
    flow: FlowOptions = GRID
    optim: OptimConfig = OPTIM
    objective: Literal["tb", "db", "subtb", "fl-db", "fm"] = "tb"
    """What balances: whole trajectories, single steps, all parts of trajectories, steps of flows
    that know the reward so far, or what flows into each state and out of it."""
    lamda: float = 0.9
    """Of `subtb`: what a part counts for each step that it is longer."""
    rivals: tuple[Literal["mcmc", "dqn"], ...] = ()
    """Tried beside it at as many looks at the reward: chains that go back and forth, Q-learning."""
    learned_backward: bool = False
    """Learn the way back, too; else all ways back are equally likely."""
    exploration: float = 0.1
    """Share of actions that are drawn evenly."""
    width: int = 256
    """Of the hidden layers."""
    depth: int = 2
    """Hidden layers."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("lamda", self.lamda, 0, above=True)
        in_range("exploration", self.exploration, 0, 1)
        in_range("width", self.width, 1)
        in_range("depth", self.depth, 1)
        if self.objective != "subtb":
            not_read(self, ("lamda",), "without --objective subtb")
        if self.objective == "fm":
            not_read(self, ("learned_backward",), "with --objective fm")
        self.reward.check(self.flow)

    @classmethod
    def tiny(cls, out: str) -> Config:
        """Return a config that runs in seconds."""
        loop = StepOptions(out=out, steps=8, batch_size=8, save_steps=3, eval_steps=4)
        return cls(
            RewardOptions("corners"), loop, FlowOptions(height=3), width=16, rivals=("mcmc", "dqn")
        )


def run(config: Config) -> None:
    """Learn, judge, save and report."""
    loop = config.loop
    check_folder(Path(loop.out), resume=loop.resume, overwrite=loop.overwrite)
    check_installed(loop.report_to)
    from melior.report.terminal import present
    from melior.stages.flows.rewarded import Rewarded, learn_reward

    plan = Rewarded(
        "gfn", PAPER, config.flow, config.reward, _objective(config),
        config.objective == "fl-db", config.rivals, config.exploration, config.width, config.depth,
        config.learned_backward, config.optim, loop, config,
    )  # fmt: skip
    present([learn_reward(plan)])


def _objective(config: Config) -> Learned:
    from melior.stages.flows import scratch
    from melior.stages.flows.matched import matched

    def by(loss: scratch.BalanceLoss) -> Learned:
        return partial(scratch.balanced, loss=loss)

    return {
        "tb": by(scratch.by_trajectories),
        "db": by(scratch.by_steps),
        "subtb": by(scratch.by_parts(lamda=config.lamda)),
        "fl-db": scratch.looking_forward,
        "fm": matched,
    }[config.objective]
