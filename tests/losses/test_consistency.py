"""SCIR's penalties: sums over both outcomes in NumPy, laws of divergences, gradients, optima."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from melior import ops
from melior.losses.consistency import (
    BOUND,
    certainty,
    consensus,
    consensus_cross_entropy,
    disagreement,
    doubt,
    entropy,
    family_shares,
    inconsistency,
    squared_spread,
    symmetric_kl,
)

inside = st.floats(BOUND, 1 - BOUND)
gammas = st.floats(0, 3)
WINS = st.tuples(st.integers(2, 4), st.integers(1, 4)).flatmap(
    lambda shape: hnp.arrays("float64", shape, elements=inside)
)
PENALTIES = {
    "disagreement": disagreement,
    "doubt": doubt,
    "inconsistency": lambda wins, shares: inconsistency(wins, shares, gamma=0.3),
    "symmetric KL": symmetric_kl,
    "squared spread": squared_spread,
    "cross-entropy": consensus_cross_entropy,
}
APART = {"disagreement", "symmetric KL", "squared spread"}
"""Those that are 0 where judges are equal, whatever they say."""
every = pytest.mark.parametrize("name", PENALTIES)


def equal(m: int) -> torch.Tensor:
    return torch.full((m,), 1 / m, dtype=torch.float64)


def unequal(m: int) -> torch.Tensor:
    drawn = torch.arange(1, m + 1, dtype=torch.float64)
    return drawn / drawn.sum()


# References: both outcomes of a pair as a distribution of two, divergences by their sums.


def outcomes(p: float) -> np.ndarray:
    return np.array([p, 1 - p])


def kl(p: np.ndarray, q: np.ndarray) -> float:
    return float(sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)))


@given(WINS)
def test_disagreement_is_the_mean_divergence_from_the_mixture(array):
    """Lin's other form, `mean KL(p_m || p_bar)`: no entropy is taken."""
    m = len(array)
    for shares in (equal(m), unequal(m)):
        found = disagreement(torch.from_numpy(array), shares).tolist()
        for column, value in zip(array.T, found, strict=True):
            views = [outcomes(p) for p in column]
            mixture = sum(s * view for s, view in zip(shares.tolist(), views, strict=True))
            wanted = sum(s * kl(v, mixture) for s, v in zip(shares.tolist(), views, strict=True))
            assert value == pytest.approx(wanted, rel=1e-9, abs=1e-13)


@given(WINS)
def test_symmetric_kl_is_the_mean_over_ordered_pairs(array):
    m = len(array)
    for shares in (equal(m), unequal(m)):
        found = symmetric_kl(torch.from_numpy(array), shares).tolist()
        weights = {
            (i, j): float(shares[i] * shares[j]) for i, j in itertools.permutations(range(m), 2)
        }
        for column, value in zip(array.T, found, strict=True):
            terms = [
                w * kl(outcomes(column[i]), outcomes(column[j])) for (i, j), w in weights.items()
            ]
            assert value == pytest.approx(sum(terms) / sum(weights.values()), rel=1e-9, abs=1e-13)


@given(WINS)
def test_spread_doubt_and_cross_entropy_are_their_sums(array):
    m = len(array)
    wins, shares = torch.from_numpy(array), equal(m)
    mean = array.mean(0)
    assert squared_spread(wins, shares).numpy() == pytest.approx(array.var(0), abs=1e-15)
    views = [[-sum(q * math.log(q) for q in outcomes(p)) for p in row] for row in array]
    assert doubt(wins, shares).numpy() == pytest.approx(np.mean(views, 0), rel=1e-12)
    for column, p_bar, value in zip(
        array.T, mean, consensus_cross_entropy(wins, shares).tolist(), strict=True
    ):
        if abs(p_bar - 0.5) < 1e-12:
            continue  # the mean's rounding decides
        wanted = -np.mean([math.log(p if p_bar > 0.5 else 1 - p) for p in column])
        assert value == pytest.approx(wanted, rel=1e-10)
    assert certainty(wins, shares).numpy() == pytest.approx(abs(2 * mean - 1), abs=1e-12)


@pytest.mark.parametrize(
    ("wins", "js", "mean_entropy"),
    [
        ([0.5, 0.5], 0.0, math.log(2)),
        ([0.9, 0.9], 0.0, 0.325083),
        ([0.9, 0.1], 0.368064, 0.325083),
        ([0.8, 0.6], 0.024157, 0.586707),
    ],
)
def test_vectors(wins, js, mean_entropy):
    both = torch.tensor(wins, dtype=torch.float64)[:, None]
    assert disagreement(both, equal(2)).item() == pytest.approx(js, abs=1e-6)
    assert doubt(both, equal(2)).item() == pytest.approx(mean_entropy, abs=1e-6)


# Laws


@every
@given(WINS, st.randoms())
def test_judges_may_stand_in_any_order(name, array, dice):
    order = list(range(len(array)))
    dice.shuffle(order)
    wins, shares = torch.from_numpy(array), unequal(len(array))
    found = PENALTIES[name](wins[order], shares[order])
    assert torch.allclose(found, PENALTIES[name](wins, shares), rtol=1e-9, atol=1e-12)


@every
@given(WINS)
def test_which_answer_comes_first_does_not_matter(name, array):
    wins, shares = torch.from_numpy(array), equal(len(array))
    found = PENALTIES[name](1 - wins, shares)
    near_half = (wins.mean(0) - 0.5).abs() < 1e-12
    same = torch.isclose(found, PENALTIES[name](wins, shares), rtol=1e-8, atol=1e-11)
    assert (same | (near_half & (name == "cross-entropy"))).all()


@pytest.mark.parametrize("name", sorted(APART))
@given(WINS)
def test_divergences_are_0_where_judges_are_equal_and_only_there(name, array):
    wins = torch.from_numpy(array)
    shares = unequal(len(wins))
    alike = wins[:1].expand_as(wins)
    assert PENALTIES[name](alike, shares).abs().max() < 1e-12
    found = PENALTIES[name](wins, shares)
    apart = wins.amax(0) - wins.amin(0) > 1e-3
    assert (found[apart] > 1e-9).all()
    assert (found > -1e-12).all()


@given(WINS)
def test_disagreement_is_at_most_log_2(array):
    wins = torch.from_numpy(array)
    assert (disagreement(wins, equal(len(wins))) <= math.log(2) + 1e-12).all()
    certain = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    assert disagreement(certain, equal(2)).item() == pytest.approx(math.log(2), abs=2e-3)


@given(WINS)
def test_with_gamma_one_it_is_the_entropy_of_the_consensus(array):
    wins, shares = torch.from_numpy(array), unequal(len(array))
    found = inconsistency(wins, shares, gamma=1.0)
    assert torch.allclose(found, entropy(consensus(wins, shares)), rtol=1e-10)


@given(WINS, gammas)
def test_inconsistency_is_its_two_parts(array, gamma):
    wins, shares = torch.from_numpy(array), equal(len(array))
    found = inconsistency(wins, shares, gamma=gamma)
    assert torch.allclose(found, disagreement(wins, shares) + gamma * doubt(wins, shares))


@every
def test_certain_judges_have_finite_values_and_gradients(name):
    wins = torch.tensor([[0.0, 1.0, 1.0], [0.0, 0.0, 0.5]], requires_grad=True)
    found = PENALTIES[name](wins, equal(2))
    (slope,) = torch.autograd.grad(found.sum(), wins)
    assert found.isfinite().all()
    assert slope.isfinite().all()
    assert (slope[:, :2] == 0).all()  # beyond the bound


@every
def test_half_precision_is_computed_in_single(name):
    wins = torch.rand(2, 50, generator=ops.generator(0)).bfloat16()
    found = PENALTIES[name](wins, equal(2))
    assert found.dtype == torch.float32
    assert torch.equal(found, PENALTIES[name](wins.float(), equal(2)))


@every
def test_gradients_agree_with_finite_differences_and_flow_into_every_judge(name):
    drawn = torch.rand(3, 6, generator=ops.generator(1), dtype=torch.float64)
    wins = (0.05 + 0.9 * drawn).requires_grad_()
    penalty, shares = PENALTIES[name], unequal(3)
    assert torch.autograd.gradcheck(lambda own: penalty(own, shares), [wins])
    (slope,) = torch.autograd.grad(penalty(wins, shares).sum(), wins)
    assert (slope != 0).all()


def test_what_labels_or_weighs_carries_no_gradient():
    wins = torch.tensor([[0.6], [0.9]], requires_grad=True)
    assert not certainty(wins, equal(2)).requires_grad
    (slope,) = torch.autograd.grad(consensus_cross_entropy(wins, equal(2)).sum(), wins)
    assert slope.flatten().tolist() == pytest.approx([-0.5 / 0.6, -0.5 / 0.9])


def test_a_tie_of_the_mean_has_no_winner():
    wins = torch.tensor([[0.25], [0.75]])
    assert consensus_cross_entropy(wins, equal(2)).item() == 0


@pytest.mark.parametrize("name", sorted(APART))
def test_one_judge_alone_cannot_disagree(name):
    alone = torch.tensor([[0.3, 0.9]], dtype=torch.float64, requires_grad=True)
    found = PENALTIES[name](alone, equal(1))
    (slope,) = torch.autograd.grad(found.sum(), alone)
    assert found.abs().max() < 1e-12
    assert slope.abs().max() < 1e-9


def test_families_count_the_same_however_many_judges_they_have():
    shares = family_shares(("judge", "judge", "implicit"))
    assert shares.tolist() == [0.25, 0.25, 0.5]
    assert family_shares(("a", "b")).tolist() == [0.5, 0.5]


def test_judges_meet_where_the_surer_one_stood():
    """Known optimum: with doubt in it, the penalty is least where all are sure of one side."""
    logits = torch.tensor([[2.0, -0.2], [0.1, -3.0]], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.05)
    for _ in range(2000):
        optimizer.zero_grad()
        torch.autograd.backward(inconsistency(logits.sigmoid(), equal(2), gamma=0.3).sum())
        optimizer.step()
    assert (logits[:, 0] > 5).all()
    assert (logits[:, 1] < -5).all()
    middle = torch.tensor([[1.0], [-0.4]], dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.Adam([middle], lr=0.05)
    for _ in range(2000):
        optimizer.zero_grad()
        torch.autograd.backward(disagreement(middle.sigmoid(), equal(2)).sum())
        optimizer.step()
    assert middle[0].item() == pytest.approx(middle[1].item(), abs=1e-2)
    assert abs(middle[0].item()) < 1
