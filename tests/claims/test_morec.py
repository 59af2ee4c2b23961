"""MOREC's world: the mass obeys its law, one controller holds it and the other lets it go."""

import math
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from melior import ops
from melior.claims import morec_policy
from melior.claims.morec import ARMS, measure, share
from melior.claims.morec_world import DESTABILISING, DT, NOISE, STABILISING, lived, moved_by
from melior.data.control import lint_transitions


@pytest.mark.parametrize("case", [(0.3, -0.5, 0.2), (-1.0, 2.0, -0.9), (0.0, 0.0, 0.0)])
def test_the_mass_obeys_its_law(case):
    place, speed, action = case
    push = 2 * math.tanh(1.5 * action) - 0.8 * speed * abs(speed) - math.sin(2 * place)
    wanted = [place + DT * (speed + DT * push), speed + DT * push]
    found = moved_by(torch.tensor([[place, speed]]), torch.tensor([[action]]))
    assert found[0].tolist() == pytest.approx(wanted, abs=1e-6)


def test_logs_are_of_the_law_and_its_noise():
    logged = lived(STABILISING, 4096, generator=ops.generator(0))
    law = moved_by(torch.from_numpy(logged.observations), torch.from_numpy(logged.actions))
    noise = logged.next_observations - law.numpy()
    assert noise.std(0) == pytest.approx([NOISE, NOISE], rel=0.05)
    assert lint_transitions(logged) == []


def test_about_half_of_what_is_judged_far_away_lies_outside_of_the_log():
    def columns(controller, n, seed):
        rows = lived(controller, n, generator=ops.generator(seed))
        return np.concatenate([rows.observations, rows.actions], axis=1)

    known, far = columns(STABILISING, 4096, 0), columns(DESTABILISING, 1024, 1)
    near = columns(STABILISING, 1024, 2)
    outside = [
        (np.abs((rows - known.mean(0)) / known.std(0)) > 2.5).any(1).mean() for rows in (far, near)
    ]
    assert 0.35 < outside[0] < 0.6 and outside[1] < 0.1


@pytest.mark.slow
@pytest.mark.skipif(find_spec("gymnasium") is None, reason="needs the extra control")
def test_each_arm_is_measured_and_the_closest_is_a_bound():
    measured = measure([0], 60)
    for place in ("near", "far"):
        for arm in ARMS:
            assert measured[arm][f"{place}: error"] >= measured["closest"][f"{place}: error"] or (
                arm == "mean"  # no candidate, and so under no bound
            )
    ratio = share("best", "far: error", of="random")(measured)
    assert ratio.shape == (1,) and ratio[0] > 0
    returns = [measured[arm][morec_policy.RETURN] for arm in ("log", *morec_policy.ARMS)]
    assert all(own.shape == (1,) and -2000 < own[0] < 0 for own in returns)
    assert len({float(own[0]) for own in returns}) == len(returns)
