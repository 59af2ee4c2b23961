"""ArmoRM's world: who rates what, labels in their shares, and what each mixture may see."""

import numpy as np
import pytest
import torch

from melior import ops
from melior.claims import armorm, armorm_world
from melior.claims.armorm_world import LEAKS, NAMES, VERBOSITY, drawn_pairs, drawn_world


@pytest.fixture(scope="module")
def world() -> armorm_world.World:
    return drawn_world(ops.generator(100))


def test_each_data_set_rates_its_own_objectives(world):
    is_rated = ~world.ratings.isnan()
    assert is_rated.sum(0).tolist() == [2000] * len(NAMES)
    rows = {tuple(np.flatnonzero(row)) for row in is_rated.numpy()}
    assert rows == {(0, 1, 4), (2, 3), (5,)}


def test_factors_are_orthonormal_and_ratings_leak_verbosity(world):
    eye = torch.eye(len(NAMES), dtype=torch.float64)
    assert torch.allclose(world.factors @ world.factors.T, eye, atol=1e-12)
    along = torch.zeros(1, 64, dtype=torch.float64) + world.factors[VERBOSITY]
    said = (armorm_world.true_ratings(along, world.factors)[0] - 0.5) / 0.12
    wanted = [leak + (place == VERBOSITY) for place, leak in enumerate(LEAKS)]
    assert said.tolist() == pytest.approx(wanted)


def test_ratings_are_true_up_to_noise_that_has_no_sign(world):
    errors = world.ratings - armorm_world.true_ratings(world.rated, world.factors)
    for place in range(len(NAMES)):
        own = errors[~errors[:, place].isnan(), place]
        assert abs(float(own.mean())) < 3.9 * 0.06 / 2000**0.5
        assert float(own.std()) == pytest.approx(0.06, rel=0.07)


@pytest.mark.parametrize("length_weight", [0.8, 0.0])
def test_labels_are_bradley_terry(world, length_weight):
    """The share of pairs that the better answer wins is its sigmoid; a false alarm in 10,000."""
    pairs = drawn_pairs(world.factors, 4000, length_weight, ops.generator(7))
    gap = (pairs.chosen - pairs.rejected) @ world.factors.T
    kind = pairs.prompts.argmax(-1)  # 2 stands out of noise of 0.3
    logit = 2 * gap[torch.arange(4000), kind] + length_weight * gap[:, VERBOSITY]
    share = logit.abs().sigmoid()
    hits, expected = float((logit > 0).sum()), float(share.sum())
    assert abs(hits - expected) < 3.9 * float((share * (1 - share)).sum()) ** 0.5
    lengthens = float(gap[:, VERBOSITY].mean()) / (2 / 4000) ** 0.5
    assert (lengthens > 10) if length_weight else (abs(lengthens) < 3.9)


def rewards(n: int = 40) -> armorm.Rewards:
    draw = ops.generator(1)
    sides = (torch.randn(n, len(NAMES), generator=draw, dtype=torch.float64) for _ in range(2))
    return armorm.Rewards(*sides, torch.randn(n, 16, generator=draw, dtype=torch.float64))


def test_the_softmax_over_the_pair_gives_one_half_and_no_gradient():
    arm, plain = armorm.MIXERS["pair-axis gate"], torch.eye(len(NAMES), dtype=torch.float64)
    gate = armorm.fresh(arm, seed=3)
    halves = armorm.pair_axis(gate, rewards().prompts) / gate.log_scale.exp()
    assert (halves == 0.5).all()
    assert armorm.steepness(arm, rewards(), plain, seed=3) < 1e-12
    assert armorm.steepness(armorm.MIXERS["gate"], rewards(), plain, seed=3) > 1e-3


def test_what_each_mixture_sees():
    prompts = rewards().prompts
    gate = armorm.fresh(armorm.MIXERS["gate"], seed=0)
    assert torch.allclose(armorm.uniform(gate, prompts), gate.log_scale.exp() / 6)
    same = armorm.static(gate, prompts)
    assert torch.equal(same, same[:1].expand_as(same))
    own, other = armorm.by_prompt(gate, prompts), armorm.by_another(gate, prompts)
    assert torch.allclose(own[:-1], other[1:])
    assert not torch.allclose(own, other)
    for weights in (armorm.uniform(gate, prompts), same, own):
        assert torch.allclose(weights.sum(-1), gate.log_scale.exp())


def test_judging_an_oracle(world):
    """Weights of the true factor that is asked for: as right as labels allow, blind to length."""
    test = world.test
    own = armorm.Rewards(
        *(side @ world.factors.T for side in (test.chosen, test.rejected)), test.prompts
    )
    oracle = armorm.prompt_arm(
        lambda _, prompts: torch.nn.functional.one_hot(prompts.argmax(-1), 6).double()
    )
    verbosity = torch.cat([own.chosen, own.rejected])[:, VERBOSITY]
    plain = torch.eye(len(NAMES), dtype=torch.float64)
    found = armorm.judged(oracle, armorm.fresh(oracle, seed=0), own, plain, verbosity)
    gap = (own.chosen - own.rejected)[torch.arange(3000), test.prompts.argmax(-1)]
    assert found["accuracy"] == pytest.approx(float((gap > 0).double().mean()))
    assert found["accuracy"] == pytest.approx(0.83, abs=0.03)  # E sigmoid(2 |gap|), gap of var 2
    assert abs(found["correlation with verbosity"]) < 3.9 / 6000**0.5
    assert found["farthest from even"] == pytest.approx(5 / 6)
