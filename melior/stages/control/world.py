"""The learned world of a run: an ensemble of dynamics and the reward that tells how real it is."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from melior.models.control import Dynamics, DynamicsOptions
from melior.models.control_fitting import Fitting, FittingOptions, stepper
from melior.rewards.control import DynamicsReward
from melior.rewards.control_adversary import Adversary, AdversaryOptions
from melior.stages.control.inputs import Inputs
from melior.stages.control.options import WorldOptions
from melior.stages.control.phases import Phases


@dataclass(frozen=True)
class World:
    """What policies are rolled out in."""

    dynamics: Dynamics
    reward: DynamicsReward | None
    """None where no filter asks for it."""

    def save(self, folder: Path) -> None:
        """Write both into a run's `model` folder."""
        self.dynamics.save(folder / "dynamics")
        if self.reward is not None:
            self.reward.save(folder / "dynamics_reward")


def learn_world(
    phases: Phases, inputs: Inputs, options: WorldOptions, *, with_reward: bool
) -> World:
    """Fit dynamics to a log, then learn their reward; or take both from another run."""
    if options.world:
        folder = Path(options.world)
        world = read_world(folder, inputs, with_reward=with_reward)
        phases.about = {**phases.about, "world": digest_of_world(folder)}
        phases.run.note(f"world: that of {folder}, {_own(options)}")
    else:
        dynamics = _dynamics(phases, inputs, options)
        reward = _reward(phases, inputs, options, dynamics) if with_reward else None
        world = World(dynamics, reward)
    world.save(phases.run.folder / "model")
    return world


def read_world(folder: Path, inputs: Inputs, *, with_reward: bool) -> World:
    """Return the world that another run has learned.

    Raises:
        ValueError: it is of other data, or there is none.
    """
    model = folder / "model"
    has_reward = with_reward or (model / "dynamics_reward").exists()
    for name in ("dynamics", "dynamics_reward") if has_reward else ("dynamics",):
        if not (model / name).is_dir():
            why = "" if name == "dynamics" else ", as of one without a filter"
            raise ValueError(
                "world: the folder of a finished run of melior morec is needed; found no "
                f"model/{name} in {folder}{why}"
            )
    try:
        about = json.loads((folder / "data.json").read_text(encoding="utf-8"))
        sha256 = about["train"]["sha256"]
        world = World(
            Dynamics.load(model / "dynamics"),
            DynamicsReward.load(model / "dynamics_reward") if has_reward else None,
        )
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"world: the folder of a finished run of melior morec is needed whole; found {error} "
            f"in {folder}"
        ) from error
    if sha256 != inputs.sha256:
        raise ValueError(
            f"world: dynamics of the same data are needed; found others in {folder}, of data "
            f"{sha256[:12]} and not {inputs.sha256[:12]}"
        )
    return world


def digest_of_world(folder: Path) -> str:
    """Return the SHA-256 of the weights of a run's world; empty where it has none.

    Between parts of a run they must not change; and runs that learned in the same share its luck.
    """
    files = sorted((folder / "model").glob("dynamics*/*.safetensors"))
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest() if files else ""


def _own(options: WorldOptions) -> str:
    """Say what a world that is taken was learned with: a default that is given looks like none."""
    plain = asdict(WorldOptions(options.world))
    found = [
        f"{name.replace('_', ' ')} {value:g}"
        for name, value in asdict(options).items()
        if value != plain[name]
    ]
    return f"learned with {', '.join(found) or 'the defaults'}, which holds"


def _dynamics(phases: Phases, inputs: Inputs, options: WorldOptions) -> Dynamics:
    logged, seed = inputs.logged, phases.train.seed
    shape = DynamicsOptions(
        logged.observations.shape[1], logged.actions.shape[1], options.members, options.elites,
        options.dynamics_hidden, options.dynamics_layers,
    )  # fmt: skip
    dynamics = Dynamics(shape, seed=seed)
    how = replace(FittingOptions(), max_epochs=options.max_epochs)
    fitting = Fitting(dynamics, logged, how, seed=seed)
    step = stepper(dynamics, how, fitting.n_batches)
    phases.fit(
        "dynamics", step, fitting.batches, parts={"step": step, "fitting": fitting},
        total=how.max_epochs * fitting.n_batches,
    )  # fmt: skip
    fitting.finish()
    errors = ", ".join(f"{float(error):.4g}" for error in fitting.errors)
    phases.run.note(f"dynamics: held-out error of each member, in deviations squared: {errors}")
    return dynamics


def _reward(
    phases: Phases, inputs: Inputs, options: WorldOptions, dynamics: Dynamics
) -> DynamicsReward:
    how = AdversaryOptions(
        steps=options.reward_steps, hidden=options.reward_hidden, every=options.snapshot_every,
        spread=options.snapshot_spread, penalty=options.gradient_penalty,
    )  # fmt: skip
    adversary = Adversary(dynamics, inputs.logged, how, seed=phases.train.seed)
    phases.fit(
        "reward", adversary, adversary.batches, parts={"adversary": adversary}, total=how.steps
    )
    reward = adversary.reward()
    used = len(reward.real)
    phases.run.note(f"dynamics reward: {used} of {len(adversary.snapshots)} snapshots averaged")
    return reward
