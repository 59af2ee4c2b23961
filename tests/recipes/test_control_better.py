"""What is learned from a log of MOREC's mass does better than who was logged."""

from dataclasses import replace

import pytest
import torch

from melior import ops
from melior.claims.morec_world import STABILISING, lived, moved_by
from melior.data.control_files import About, Logged, write_logged
from melior.models.control_policies import load_policy
from melior.recipes import cql, td3_bc
from melior.stages.control.options import LogOptions, NetworkOptions, TrainOptions

MARGIN = 0.3
"""Of the return by which each must be ahead; the controller's is about -5.1, of which its noise
costs 0.75."""


def worth(act):
    """The mean return of 20 steps from 256 starts, spread as in the log; noise aside."""
    state = STABILISING.spread * torch.randn(256, 2, generator=ops.generator(1))
    total = torch.zeros(256)
    with torch.no_grad():
        for _ in range(20):
            total -= state.square().sum(-1)
            state = moved_by(state, act(state))
    return float(total.mean())


def controller(seed):
    generator = ops.generator(seed)

    def act(state):
        noise = STABILISING.noise * torch.randn(len(state), generator=generator)
        return (-STABILISING.gain * state.sum(-1) + noise).clamp(-1, 1)[:, None]

    return act


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("mass") / "mass.npz"
    write_logged(path, Logged(lived(STABILISING, 2000, generator=ops.generator(0)), About()))
    return LogOptions(str(path), termination="melior.envs.control:never_over")


RECIPES = {
    "td3-bc": (td3_bc, {"learning_rate": 3e-3}),
    "cql": (cql, {"actor_rate": 3e-3, "critic_rate": 3e-3, "conservatism": 1.0}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_values_find_better_than_what_was_done(name, log, tmp_path):
    recipe, options = RECIPES[name]
    logged = worth(controller(5))
    train = TrainOptions(
        "", steps=800, batch_size=64, eval_episodes=0, eval_steps=800, save_steps=0
    )
    for seed in (0, 1, 2):
        out = tmp_path / str(seed)
        own = replace(train, out=str(out), seed=seed)
        recipe.run(recipe.Config(log, own, NetworkOptions(hidden=32), **options))
        assert worth(load_policy(out / "model" / "policy").act) > logged + MARGIN
