"""Fitting dynamics: it arrives at what can be known, each member alone, and resumes to the bit."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from melior.data.control import Transitions
from melior.models.control import Dynamics, DynamicsOptions
from melior.models.control_fitting import Fitting, FittingOptions, examples, fit_dynamics, stepper
from melior.options import OptimConfig
from melior.training.loop import fit

NOISE = 0.1
TINY = DynamicsOptions(observations=2, actions=1, members=3, elites=2, hidden=16, layers=1)
FAST = OptimConfig(learning_rate=1e-2, lr_scheduler_type="constant", warmup_ratio=0.0)
OPTIONS = FittingOptions(batch_size=64, max_epochs=25, patience=3, optim=FAST)


def world(n=400, seed=0):
    """A linear world with noise of a known size, in units far apart; the reward is the speed."""
    rng = np.random.default_rng(seed)
    seen, acted = rng.normal(size=(n, 2)), rng.uniform(-1, 1, size=(n, 1))
    change = np.stack([0.5 * seen[:, 1], acted[:, 0] - 0.3 * seen[:, 0]], -1)
    change = (change + NOISE * rng.normal(size=(n, 2))) * [1, 50]
    none = np.zeros(n, bool)
    seen = seen * [1, 50]
    columns = (seen, acted, seen[:, 1], seen + change)
    return Transitions(*(column.astype(np.float32) for column in columns), none, none)


def test_members_arrive_at_the_noise():
    """Of 24 other seeds 22 do in so many epochs; deviations settle last, after the means."""
    dynamics = Dynamics(TINY, seed=0)
    long = replace(OPTIONS, max_epochs=80, patience=20, improvement=0.001)
    fitting = fit_dynamics(dynamics, world(), long, seed=1)
    unseen = examples(world(seed=9))
    found = dynamics.predict(unseen.observations, unseen.actions)
    targets = unseen.observations + unseen.targets[:, :2]
    units = torch.tensor([1.0, 50.0])
    errors = ((found.next_observations - targets) / units).square().mean(1).sqrt()
    assert (errors < 1.5 * NOISE).all()  # a reader of the means only would stand at 0.5
    deviations = (found.deviations[..., :2] / units).mean(1)
    assert ((deviations > 0.6 * NOISE) & (deviations < 1.6 * NOISE)).all()
    order = fitting.errors.argsort()
    assert dynamics.elites.tolist() == order[:2].tolist()


def test_it_stops_when_no_member_gets_better():
    fitting = Fitting(Dynamics(TINY, seed=0), world(40), OPTIONS, seed=1)
    epochs = sum(1 for _ in fitting.batches()) / fitting.n_batches  # nothing is learned meanwhile
    assert epochs == 1 + OPTIONS.patience  # the first is always better than nothing


def test_members_keep_their_best_weights():
    dynamics = Dynamics(TINY, seed=0)
    fitting = Fitting(dynamics, world(60), OPTIONS, seed=1)
    batches = fitting.batches()
    for _ in range(fitting.n_batches + 1):  # into the second epoch, so that the first is judged
        next(batches)
    best = copy.deepcopy(dynamics.members.state_dict())
    with torch.no_grad():
        for weight in dynamics.members.parameters():
            weight.mul_(100)
    for _ in batches:
        pass
    fitting.finish()
    for name, weight in dynamics.members.state_dict().items():
        assert torch.equal(weight, best[name])


def test_a_fit_that_is_left_comes_back_to_the_same_bits():
    logged, options = world(80), FittingOptions(batch_size=16, max_epochs=3, optim=FAST)
    whole = Dynamics(TINY, seed=0)
    wanted = fit_dynamics(whole, logged, options, seed=1)

    first = Dynamics(TINY, seed=0)
    fitting = Fitting(first, logged, options, seed=1)
    step = stepper(first, options, fitting.n_batches)
    for number, batch in enumerate(fitting.batches(), 1):
        step(batch)
        if number == 6:  # within the second epoch
            break
    left = copy.deepcopy((step.state(), fitting.state()))

    again = Dynamics(TINY, seed=5)
    going_on = Fitting(again, logged, options, seed=1)
    step = stepper(again, options, going_on.n_batches)
    step.load_state(left[0])
    going_on.load_state(left[1])
    fit(step, going_on.batches())
    going_on.finish()
    assert torch.equal(going_on.errors, wanted.errors)
    for name, weight in whole.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


def test_a_member_learns_what_it_would_learn_beside_others():
    """The first step of one member is the same whatever another is."""
    logged = world(80)
    moved = []
    for scale in (1.0, 3.0):
        dynamics = Dynamics(TINY, seed=0)
        with torch.no_grad():
            dynamics.members.weights[0][1] *= scale
        options = FittingOptions(
            batch_size=16, optim=OptimConfig(learning_rate=1e-2, max_grad_norm=1e9)
        )
        fitting = Fitting(dynamics, logged, options, seed=1)
        step = stepper(dynamics, options, fitting.n_batches)
        step(next(fitting.batches()))
        moved.append(dynamics.members.weights[0].detach()[[0, 2]])
    assert torch.allclose(*moved, atol=1e-6)


def test_one_row_is_too_few():
    with pytest.raises(ValueError, match="transitions to fit dynamics to must be at least 2"):
        Fitting(Dynamics(TINY, seed=0), world(1), OPTIONS, seed=1)
