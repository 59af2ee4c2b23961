"""MaM: marginals of an energy or of rows, said at one reading.

Liu, Ramadge, Adams 2024, arXiv 2310.12920.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from melior.checks import in_range, not_read
from melior.options import OptimConfig
from melior.stages.marginals.options import PAPER, MarginalOptions, NetworkOptions
from melior.training.folder import check_folder
from melior.training.options import StepOptions
from melior.training.trackers import check_installed

if TYPE_CHECKING:
    from torch import Tensor

    from melior.stages.marginals.energy import Baseline, Pull

OPTIM = OptimConfig(
    learning_rate=1e-3, lr_scheduler_type="constant", warmup_ratio=0, max_grad_norm=100
)
NETWORK = NetworkOptions()


@dataclass(frozen=True)
class Config:
    """Learn the probability of any part of a row, from an energy or from rows."""

    source: MarginalOptions
    loop: StepOptions
    network: NetworkOptions = NETWORK
    optim: OptimConfig = OPTIM
    pull: Literal["standardised", "centred", "squared"] = "standardised"
    """What draws marginals to a target: REINFORCE with distances that are `standardised`, as in the
    paper's code, or `centred` alone; or the `squared` distance."""
    clip: float = 20.0
    """Median absolute deviations within which those distances are held, for targets with rows that
    are worth next to nothing; 0 holds none."""
    alpha: float = 4.0
    """Weight of consistency beside the pull of a target."""
    block: int = 4
    """Positions of a chain that are drawn again at each step."""
    steps_per_epoch: int = 200
    """Steps after which chains are drawn anew."""
    likelihood_share: float = 0.7
    """Of the steps, where rows are given: the conditionals learn first, then the marginals."""
    validation_share: float = 0.1
    """Of given rows, held out to be judged on: 1000 at most."""
    rivals: tuple[Literal["arm", "arm-mc"], ...] = ()
    """Conditionals that learn alone, from left to right, to be judged beside: `arm`, for as many
    steps as the conditionals; of a target it reads all steps of each row, and `arm-mc` guesses from
    one."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("clip", self.clip, 0)
        in_range("alpha", self.alpha, 0)
        in_range("block", self.block, 1)
        in_range("steps_per_epoch", self.steps_per_epoch, 1)
        in_range("likelihood_share", self.likelihood_share, 0, 1)
        in_range("validation_share", self.validation_share, 0, 1, above=True, below=True)
        if self.source.data:
            not_read(self, ("pull", "clip", "alpha"), "with --data")
            if "arm-mc" in self.rivals:
                raise ValueError(
                    "rivals: arm-mc guesses how far rows are from a --target; found --data; use arm"
                )
        else:
            not_read(self, ("likelihood_share", "validation_share"), "with --target")
        if self.pull == "squared":
            not_read(self, ("clip",), "with --pull squared")

    @classmethod
    def tiny(cls, out: str) -> Config:
        """Return a config that runs in seconds."""
        loop = StepOptions(out=out, steps=8, batch_size=16, save_steps=3, eval_steps=4)
        return cls(MarginalOptions(target="ising", side=3), loop, NetworkOptions(16, 1))


def run(config: Config) -> None:
    """Learn, judge, save and report."""
    loop = config.loop
    check_folder(Path(loop.out), resume=loop.resume, overwrite=loop.overwrite)
    check_installed(loop.report_to)
    config.source.check_there()
    from melior.report.terminal import present
    from melior.stages.marginals.learn import MarginalPlan, learn_marginals

    plan = MarginalPlan(
        "mam", PAPER, config.source, config.network, _pull(config), _baseline(config),
        tuple(dict.fromkeys(config.rivals)), config.block, config.steps_per_epoch,
        config.likelihood_share, config.validation_share, config.optim, loop, config,
    )  # fmt: skip
    present([learn_marginals(plan)])


def _pull(config: Config) -> Pull:
    from melior.stages.marginals.energy import energy, squared_energy

    if config.pull == "squared":
        return partial(squared_energy, alpha=config.alpha)
    return partial(energy, baseline=_baseline(config), alpha=config.alpha)


def _baseline(config: Config) -> Baseline:
    from melior.losses.marginal import centred, clipped, standardised

    own = centred if config.pull == "centred" else standardised

    def baseline(apart: Tensor) -> Tensor:
        return own(clipped(apart, deviations=config.clip) if config.clip else apart)

    return baseline
