"""GPM's world: who beats whom, where answers lie, what an arm is, and what is counted."""

import itertools

import pytest
import torch

from melior import ops
from melior.claims import gpm
from melior.claims.gpm_world import drawn_world, edges


@pytest.mark.parametrize("size", [3, 4, 5])
def test_on_a_circle_every_answer_wins_once_and_loses_once_in_one_cycle(size):
    beaten = dict(edges(size, is_cyclic=True).tolist())
    assert len(beaten) == size
    place, seen = 0, []
    for _ in range(size):
        seen.append(place)
        place = beaten[place]
    assert place == 0
    assert sorted(seen) == list(range(size))


def test_in_order_all_pairs_are_there_and_the_later_wins():
    pairs = edges(5, is_cyclic=False).tolist()
    assert sorted(pairs) == sorted([i, j] for j, i in itertools.combinations(range(5), 2))


@pytest.mark.parametrize(("size", "is_cyclic"), [(3, True), (4, True), (5, True), (5, False)])
def test_answers_lie_on_a_circle_and_the_winner_is_a_turn_ahead(size, is_cyclic):
    """Undo the tanh, and the prompt's own part: two dimensions are left, wound one way round."""
    world = drawn_world(ops.generator(0), size=size, is_cyclic=is_cyclic)
    own = (world.answers.double().atanh() - world.prompts.double().atanh()[:, None]).flatten(0, 1)
    _, sizes, basis = torch.linalg.svd(own, full_matrices=False)
    assert sizes[2] < 1e-3 * sizes[1]
    flat = own @ basis[:2].T
    # An ellipse, whose second moments make it a circle again.
    white = flat @ torch.linalg.cholesky(torch.linalg.inv(flat.T @ flat / len(flat)))
    place = white.unflatten(0, (-1, size))
    won, lost = place[:, world.winners], place[:, world.losers]
    ahead = lost[..., 0] * won[..., 1] - lost[..., 1] * won[..., 0]
    assert (ahead > 0).all() or (ahead < 0).all()
    if is_cyclic:
        assert place.norm(dim=-1).std() < 0.1 * place.norm(dim=-1).mean()


def test_a_prompt_is_alike_for_all_its_answers_and_seeds_differ():
    one, same, other = (drawn_world(ops.generator(s), size=3, is_cyclic=True) for s in (1, 1, 2))
    assert torch.equal(one.answers, same.answers)
    assert not torch.equal(one.answers, other.answers)
    assert one.answers.shape == (120, 3, 32)
    part = one.part(84, 120)
    assert torch.equal(part.answers, one.answers[84:])
    assert torch.equal(part.prompts, one.prompts[84:])


def test_no_reward_is_right_on_more_than_two_of_three():
    world = drawn_world(ops.generator(0), size=3, is_cyclic=True)
    for seed in range(5):
        assert gpm.right(gpm.Rewards(seed=seed), world) <= 2 / 3 + 1e-6


def test_ties_count_half():
    world = drawn_world(ops.generator(0), size=3, is_cyclic=True)
    network = gpm.Rewards(seed=0)
    torch.nn.init.zeros_(network.read[-1].weight)
    assert gpm.right(network, world) == 0.5


def test_beta_is_cooled_from_one_to_a_tenth_in_half_of_the_steps():
    found = [gpm.cooled(share) for share in (0.0, 0.25, 0.5, 1.0)]
    assert found == pytest.approx([1, 0.1**0.5, 0.1, 0.1])


def test_variants_change_what_their_names_say():
    made = {name: arm.made(0).head.options for name, arm in gpm.VARIANTS.items()}
    for name, options in made.items():
        assert options.dimensions == int(name[0] if name[0].isdigit() else 6)
        assert options.is_normalised == ("any length" not in name)
    assert made["no gate"].gate == "none"
    assert made["gate that adds up to 1"].gate == "sum-one"
    assert {arm.beta(0.0) for arm in gpm.VARIANTS.values()} == {1.0, 0.1}


def test_passes_are_counted():
    found = gpm.counted(5, seed=0)
    assert found["GPM, K 5"]["passes"] == 5
    assert found["pair by pair, K 5"]["passes"] == 20
    assert found["GPM, K 5"]["off by"] < 1e-6
    assert found["GPM, K 5"]["fitted off by"] < 1e-12


@pytest.mark.parametrize("arm", ["GPM", "BT"])
def test_a_short_run_learns_an_order(arm):
    """From near chance to far above it, in the world where both can; see the page for cycles."""
    world = drawn_world(ops.generator(0), size=5, is_cyclic=False)
    found = gpm.accuracies(gpm.MAIN[arm], world, steps=60, seed=0)
    assert found["accuracy"] > 0.8
