"""Options that the recipes of control share, checked when built; no torch."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from melior.checks import in_range
from melior.config import config_from_dict, read_config


@dataclass(frozen=True)
class LogOptions:
    """The transitions to learn from, and the task that they are of."""

    dataset: Annotated[str, tyro.conf.arg(aliases=["--data"])]
    """A file of transitions (.npz, .parquet), or `minari:NAME`."""
    task: str = ""
    """The task in Gymnasium, where policies are judged: `Pendulum-v1`, `module:Name-v0`; by default
    what the data set says."""
    termination: str = ""
    """When the task is over, as `module:function` of observations, actions and next observations;
    it must agree with the log's terminals. `melior morec` needs it of tasks that are not known."""
    allow_lint_errors: bool = False
    """Train although the data check found errors; they stay in the report."""


@dataclass(frozen=True)
class TrainOptions:
    """How long a policy learns, how it is judged, and what is left behind."""

    out: Annotated[str, tyro.conf.arg(aliases=["--output-dir"])]
    """The run folder."""
    steps: Annotated[int, tyro.conf.arg(aliases=["--max-steps"])] = 20_000
    """Of the policy; published results take 1 to 3 million."""
    batch_size: int = 256
    eval_steps: int = 1000
    """Steps between judgements in the real task."""
    eval_episodes: int = 10
    """Episodes of a judgement; 0 never acts in the real task, which then need not be installed."""
    save_steps: int = 1000
    """Steps between checkpoints; 0 keeps only the end."""
    save_total_limit: int = 2
    """Checkpoints kept."""
    seed: int = 42
    resume: Annotated[bool, tyro.conf.arg(aliases=["--resume-from-checkpoint"])] = False
    """Go on from the newest whole checkpoint in the run folder."""
    allow_changes: bool = False
    """Resume although data or options are not those of the checkpoint."""
    overwrite: bool = False
    """Replace a run folder that already holds a run."""
    report_to: tuple[Literal["tensorboard", "trackio", "wandb"], ...] = field(default=())
    """Trackers, besides the JSON lines in the run folder."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("steps", "batch_size", "eval_steps", "save_total_limit"):
            in_range(name, getattr(self, name), 1)
        in_range("eval_episodes", self.eval_episodes, 0)
        in_range("save_steps", self.save_steps, 0)
        in_range("seed", self.seed, 0, 2**31)

    @classmethod
    def tiny(cls, out: str) -> TrainOptions:
        """Return options of a run of seconds."""
        return cls(out, steps=60, batch_size=32, eval_steps=30, eval_episodes=2, save_steps=20)


@dataclass(frozen=True)
class NetworkOptions:
    """The shape of policies and critics."""

    hidden: int = 256
    layers: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("hidden", self.hidden, 1)
        in_range("layers", self.layers, 1)


@dataclass(frozen=True)
class WorldOptions:
    """How dynamics and their reward are learned; the defaults are those of MOPO and MOREC."""

    world: str = ""
    """The folder of a run on the same data whose dynamics and reward are taken, with the options
    that they were learned by; empty learns them, the reward only where a filter asks for it."""
    members: int = 7
    elites: int = 5
    """Members that are used once trained: those with the least held-out error."""
    dynamics_hidden: int = 200
    dynamics_layers: int = 4
    max_epochs: int = 200
    """Of the dynamics, which end earlier where no member gets better."""
    reward_steps: int = 2000
    """Of discriminator and generator, one after the other."""
    reward_hidden: int = 128
    snapshot_every: int = 20
    """Steps from one snapshot of the discriminator to the next, after the first fifth."""
    snapshot_spread: int = 2
    """Every so many of the last 400 snapshots are averaged; the authors: 10 with MOPO, 40 with
    MOBILE, of many more."""
    gradient_penalty: float = 0.05
    """Weight of the discriminator's squared slope."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("members", "dynamics_hidden", "dynamics_layers", "max_epochs", "reward_steps",
                     "reward_hidden", "snapshot_every", "snapshot_spread"):  # fmt: skip
            in_range(name, getattr(self, name), 1)
        in_range("elites", self.elites, 1, self.members)
        in_range("gradient_penalty", self.gradient_penalty, 0)


OF_REWARD = (
    "reward_steps", "reward_hidden", "snapshot_every", "snapshot_spread", "gradient_penalty",
)  # fmt: skip
"""Options of a world that only its reward is learned by."""


def as_learned(options: WorldOptions) -> WorldOptions:
    """Return the options that a world was learned by: of one that is taken, those of its run.

    Raises:
        ValueError: no run has left one there, or an option is given that is another in that run.
    """
    if not options.world:
        return options
    file = Path(options.world) / "config.yaml"
    config = read_config(file) if file.is_file() else {}
    names = [field.name for field in fields(WorldOptions) if field.name != "world"]
    theirs = {name: config[name] for name in names if name in config}
    if not theirs:
        raise ValueError(
            "world: the folder of a finished run of melior morec is needed; found "
            f"{'another run' if config else 'no run'} in {options.world}"
        )
    learned = config_from_dict(WorldOptions, {**theirs, "world": options.world}, where=str(file))
    defaults = WorldOptions()
    for name in names:
        own, holds = getattr(options, name), getattr(learned, name)
        if own not in (getattr(defaults, name), holds):
            raise ValueError(
                f"{name}: the world in {options.world} was learned with {holds}, which holds; "
                f"found {own}; leave --{name.replace('_', '-')} out, or --world"
            )
    return learned


@dataclass(frozen=True)
class ImagineOptions:
    """How policies are rolled out in the learned world; the defaults are MOREC's but for size."""

    horizon: int = 100
    """The most steps of a roll-out."""
    starts: int = 500
    """Logged observations from which to go each time; the authors: 2000."""
    every: int = 1000
    """Steps of the policy between roll-outs."""
    keep: int = 5
    """Roll-outs whose rows are learned from."""
    real_share: float = 0.05
    """Of a batch's rows, those that are logged."""
    draws: int = 2
    """Candidates of each elite."""
    threshold: float = 0.6
    """A dynamics reward below which a roll-out stops."""
    temperature: float = 0.1
    """Of the choice among candidates."""
    bound: float = 25.0
    """How far from 0 an imagined observation's numbers may lie; above those of the log."""
    true_reward: str = ""
    """What a step earns, as `module:function` of observations, actions and next observations, in
    place of the learned reward; the run and its report then say so."""
    on_reject: Literal["terminal", "truncate", "drop"] = "terminal"
    """A step below the threshold is kept as a terminal, as in the released code, kept as the last
    that is known, or left out."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("horizon", "starts", "every", "keep", "draws"):
            in_range(name, getattr(self, name), 1)
        in_range("real_share", self.real_share, 0, 1)
        in_range("threshold", self.threshold)
        in_range("temperature", self.temperature, 0, above=True)
        in_range("bound", self.bound, 0, above=True)
