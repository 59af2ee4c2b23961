"""SCIR's world: two views of one truth, what labels cost, what each arm trains, what misleads."""

import math

import pytest
import torch

from melior import ops
from melior.claims import scir
from melior.claims.scir_world import BIAS, N_SEED, Pairs, Views, drawn_world


@pytest.fixture(scope="module")
def world():
    return drawn_world(ops.generator(0), has_length=False)


def test_both_views_are_of_the_same_answers_with_noise_of_their_own(world):
    """Two copies with independent noise: their covariance is the truth's, 1 a number."""
    views = torch.stack([world.test.judge, world.test.implicit]).flatten(1, 2)
    assert views.var((1, 2)).tolist() == pytest.approx([1.81, 1.81], abs=0.05)
    assert float((views[0] * views[1]).mean()) == pytest.approx(1.0, abs=0.03)
    assert float((views[0] - views[1]).var()) == pytest.approx(2 * 0.81, abs=0.05)


def test_a_length_is_shared_and_worth_nothing():
    misled = drawn_world(ops.generator(0), has_length=True).test
    assert torch.equal(misled.judge[..., -1], misled.implicit[..., -1])
    longer = misled.judge[0, :, -1] > misled.judge[1, :, -1]
    assert torch.equal(longer, misled.is_longer)
    assert float((misled.judge[0, :, -1] - misled.judge[1, :, -1]).std()) == pytest.approx(
        2, abs=0.1
    )
    assert float((misled.is_won == misled.is_longer).float().mean()) == pytest.approx(0.5, abs=0.04)


def test_seed_labels_follow_the_length_in_a_third_of_what_contradicts_it():
    """Over many worlds: 0.5 + 0.5 * 0.35 of the labels go with the length."""
    share = torch.stack([
        (own.is_won == own.is_longer).float().mean()
        for own in (drawn_world(ops.generator(s), has_length=True).seed for s in range(60))
    ])  # fmt: skip
    error = 0.5 / math.sqrt(60 * N_SEED)
    assert float(share.mean()) == pytest.approx(0.675, abs=4 * error)


def test_asked_in_both_orders_the_judge_has_no_favourite_place(world):
    views = Views(8, seed=0)
    exchanged = Pairs(
        world.test.judge.flip(0),
        world.test.implicit.flip(0),
        ~world.test.is_won,
        ~world.test.is_longer,
    )
    there, back = views.wins(world.test), views.wins(exchanged)
    assert torch.allclose(there + back, torch.ones_like(there), atol=1e-6)
    same = Pairs(*(side[:1].expand(2, -1, -1) for side in (world.test.judge, world.test.implicit)),
                 world.test.is_won, world.test.is_longer)  # fmt: skip
    assert torch.allclose(views.wins(same), torch.full_like(there, 0.5))
    once = (views.odds(world.test)[0] + BIAS).sigmoid()
    assert float(once.detach().mean()) > 0.6


def test_agreed_labels_are_those_of_pairs_on_which_both_are_on_one_side(world):
    views = scir.begun(world, 60, seed=0)
    found = scir.labelled(views, world.unlabelled)
    wins = views.wins(world.unlabelled)
    both = (wins > 0.5).all(0) | (wins < 0.5).all(0)
    right = (wins[0] > 0.5) == world.unlabelled.is_won
    assert found["labels agreed on"] == pytest.approx(float(right[both].float().mean()))
    assert found["labels of the judge"] == pytest.approx(float(right.float().mean()))


def test_independent_judges_of_72_and_69_of_100_are_right_on_85_of_what_they_share():
    a, b = 0.72, 0.69
    assert a * b / (a * b + (1 - a) * (1 - b)) == pytest.approx(0.851, abs=1e-3)


def gradient_norms(arm, world):
    """Of the judge and of the implicit reward, from one batch without the seed pairs."""
    views = scir.begun(world, 30, seed=0)
    views.zero_grad()
    batch = world.unlabelled.of(torch.arange(64))
    first = scir.sides_by_judge(views, batch)
    loss = (
        scir.learned(arm, views, batch, first)
        + arm.penalty * scir.inconsistency(views.wins(batch), scir.SHARES, gamma=scir.GAMMA).mean()
    )
    torch.autograd.backward(loss)
    return [
        sum(float(p.grad.norm()) for p in part.parameters() if p.grad is not None)
        for part in (views.judge, views.implicit)
    ]


@pytest.mark.parametrize(
    ("name", "moves"),
    [("seed only", (0, 0)), ("SRLM", (0, 1)), ("filter", (0, 1)), ("penalty alone", (1, 1)),
     ("SCIR", (1, 1))],
)  # fmt: skip
def test_labels_teach_the_implicit_reward_and_the_penalty_teaches_both(world, name, moves):
    found = gradient_norms(scir.ARMS[name], world)
    assert [norm > 0 for norm in found] == [bool(own) for own in moves]


def test_a_batch_without_agreement_teaches_nothing(world):
    views = Views(8, seed=0)
    batch = world.unlabelled.of(torch.arange(64))
    wins = views.wins(batch)
    apart = batch.of((wins > 0.5).sum(0) == 1)
    lost = scir.learned(scir.ARMS["filter"], views, apart, torch.zeros(len(apart.is_won)).long())
    assert len(apart.is_won) > 0
    assert lost.item() == 0


def test_without_an_anchor_agreement_rises_on_the_length(world):
    misled = drawn_world(ops.generator(1), has_length=True)
    start = scir.begun(misled, 300, seed=1)
    before = scir.judged(start, misled.test)
    after = scir.judged(
        scir.trained(scir.CONTROLS["without anchor"], start, misled, 150, 1), misled.test
    )
    assert after["agreement"] > before["agreement"] + 0.02
    assert after["picks the longer"] > before["picks the longer"]
