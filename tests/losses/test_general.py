"""GPM: the operator as a matrix in NumPy, antisymmetry, bounds, expressiveness, known optima."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior import ops
from melior.losses.general import (
    fit_embedding,
    general_preference,
    mean_one_gate,
    skew_score,
    skew_scores,
)
from melior.losses.reward import bradley_terry
from melior.types import Pairwise

seeds = st.integers(0, 10_000)
planes = st.integers(1, 5)
finite = st.floats(-50, 50)
shares = st.floats(0, 1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=ops.generator(seed), dtype=torch.float64)


def drawn(seed: int, p: int, k: int = 4, n: int = 3):
    """Embeddings of `k` answers to `n` prompts, and a gate."""
    return normal(n, k, 2 * p, seed=seed), normal(n, p, seed=seed + 1).exp()


def operator(p: int) -> np.ndarray:
    """The paper's block-diagonal `R`."""
    return np.kron(np.eye(p), np.array([[0.0, -1.0], [1.0, 0.0]]))


@given(seeds, planes)
def test_scores_are_the_papers_bilinear_form(seed, p):
    """`<R D v_i, D v_j>` with `D = blockdiag(sqrt(lambda) I)`, matrix by matrix."""
    embeddings, gate = drawn(seed, p)
    found = skew_scores(embeddings, gate)
    for row in range(3):
        scale = np.diag(np.repeat(gate[row].numpy() ** 0.5, 2))
        v = embeddings[row].numpy() @ scale
        wanted = (v @ operator(p).T) @ v.T  # rows are R v_i
        assert np.allclose(found[row].numpy(), wanted, rtol=1e-12, atol=1e-12)
    # The paper's other form, v_i^T R v_j, is the negative.
    v = embeddings[0].numpy()
    plain = skew_scores(embeddings[:1], torch.ones(1, p, dtype=torch.float64))[0].numpy()
    assert np.allclose(plain, -(v @ operator(p) @ v.T), rtol=1e-12, atol=1e-12)
    assert np.allclose(np.linalg.norm(v @ operator(p).T, axis=1), np.linalg.norm(v, axis=1))


@given(seeds, planes)
def test_one_pair_is_one_entry_of_all_of_them(seed, p):
    embeddings, gate = drawn(seed, p)
    everything = skew_scores(embeddings, gate)
    for i in range(4):
        for j in range(4):
            alone = skew_score(embeddings[:, i], embeddings[:, j], gate)
            assert torch.allclose(alone, everything[:, i, j], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@given(seeds, planes)
def test_scores_are_antisymmetric_to_the_bit(dtype, seed, p):
    embeddings, gate = (own.to(dtype) for own in drawn(seed, p))
    scores = skew_scores(embeddings, gate)
    assert torch.equal(scores, -scores.transpose(-1, -2))
    assert (scores.diagonal(dim1=-2, dim2=-1) == 0).all()
    first, second = embeddings[:, 0], embeddings[:, 1]
    assert torch.equal(skew_score(first, second, gate), -skew_score(second, first, gate))
    assert (skew_score(first, first, gate) == 0).all()


@given(seeds, planes)
def test_embeddings_of_length_one_keep_scores_within_the_largest_scale(seed, p):
    embeddings, _ = drawn(seed, p)
    unit = torch.nn.functional.normalize(embeddings, dim=-1)
    gate = mean_one_gate(normal(3, p, seed=seed + 2), 4)
    largest = gate.amax(-1)[:, None, None]
    assert (skew_scores(unit, gate).abs() <= largest + 1e-12).all()
    assert (largest <= p + 1e-12).all()
    assert (skew_scores(unit, torch.ones_like(gate)).abs() <= 1 + 1e-12).all()


@given(finite, finite, st.floats(-3, 3))
def test_bradley_terry_is_the_special_case_of_a_constant_second_coordinate(left, right, constant):
    first, second = (torch.tensor([[r, constant]], dtype=torch.float64) for r in (left, right))
    one = torch.ones(1, 1, dtype=torch.float64)
    found = skew_score(first, second, one)
    assert found.item() == pytest.approx(constant * (left - right), abs=1e-10)
    plain = torch.tensor([left - right], dtype=torch.float64)
    rewards = Pairwise(*(torch.tensor([r], dtype=torch.float64) for r in (left, right)))
    loss = general_preference(plain, torch.ones_like(plain), beta=1.0)
    assert torch.allclose(loss, bradley_terry(rewards), rtol=1e-12, atol=1e-12)


def test_unit_circle_scores_are_sines_the_codes_way_round():
    angles = torch.tensor([0.3, 1.7, 4.0], dtype=torch.float64)
    embeddings = torch.stack([angles.cos(), angles.sin()], -1)[None]
    scores = skew_scores(embeddings, torch.ones(1, 1, dtype=torch.float64))[0]
    assert torch.allclose(scores, (angles[None] - angles[:, None]).sin())


@given(seeds, planes, st.floats(-5, 5))
def test_the_gate_has_mean_one_and_sees_only_differences(seed, p, shift):
    logits = 5 * normal(3, p, seed=seed)
    gate = mean_one_gate(logits, 16)
    wanted = np.exp(logits.numpy() / 4)
    wanted = p * wanted / wanted.sum(-1, keepdims=True)
    assert np.allclose(gate.numpy(), wanted, rtol=1e-12)
    assert torch.allclose(gate.mean(-1), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(mean_one_gate(logits + shift, 16), gate, rtol=1e-10)


# The losses


@given(finite, shares, st.floats(0.05, 5), st.floats(-2, 2))
def test_general_preference_is_a_cross_entropy(score, share, beta, margin):
    odds = (score - margin * np.sign(share - 0.5)) / beta
    wanted = share * np.logaddexp(0, -odds) + (1 - share) * np.logaddexp(0, odds)
    inputs = (torch.tensor([own], dtype=torch.float64) for own in (score, share))
    found = general_preference(*inputs, beta=beta, margin=margin)
    assert found.item() == pytest.approx(wanted, rel=1e-11, abs=1e-11)


@given(finite, shares, st.floats(0, 2))
def test_swapping_the_answers_swaps_the_share(score, share, margin):
    s, p = (torch.tensor([own], dtype=torch.float64) for own in (score, share))
    left, right = (
        general_preference(own, odds, beta=0.1, margin=margin)
        for own, odds in ((s, p), (-s, 1 - p))
    )
    assert torch.allclose(left, right, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_loss_is_least_at_the_odds_of_the_share(share):
    beta, odds = 0.1, math.log(share / (1 - share))
    score = torch.tensor([beta * odds], dtype=torch.float64, requires_grad=True)
    loss = general_preference(score, torch.full_like(score, share), beta=beta)
    (slope,) = torch.autograd.grad(loss.sum(), score)
    assert slope.item() == pytest.approx(0, abs=1e-12)


def test_a_margin_asks_nothing_of_a_tie():
    """Its loss is least where nobody wins, whichever answer is listed first."""
    score = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    loss = general_preference(score, torch.full_like(score, 0.5), beta=0.1, margin=0.3)
    (slope,) = torch.autograd.grad(loss.sum(), score)
    assert slope.item() == 0


@pytest.mark.parametrize("score", [-1e4, 1e4])
def test_extreme_scores_stay_finite(score):
    s = torch.tensor([score], requires_grad=True)
    value = general_preference(s, torch.full_like(s, 0.3), beta=0.1)
    (slope,) = torch.autograd.grad(value.sum(), s)
    assert value.isfinite().all()
    assert slope.isfinite().all()


def test_gradients_agree_with_finite_differences():
    first, second = normal(5, 6), normal(5, 6, seed=1)
    gate, share = normal(5, 3, seed=2).exp(), normal(5, seed=3).sigmoid()
    inputs = [own.requires_grad_() for own in (first, second, gate)]
    assert torch.autograd.gradcheck(
        lambda *own: general_preference(skew_score(*own), share, beta=0.5, margin=0.2), inputs
    )


# Expressiveness


def antisymmetric(seed: int, k: int) -> torch.Tensor:
    square = normal(k, k, seed=seed)
    return square - square.T


@given(seeds, st.integers(1, 9))
def test_any_antisymmetric_matrix_is_the_score_of_embeddings_in_half_as_many_planes(seed, k):
    wanted = antisymmetric(seed, k)
    embeddings = fit_embedding(wanted)
    assert embeddings.shape == (k, 2 * (k // 2))
    gate = torch.ones(1, k // 2, dtype=torch.float64)
    assert torch.allclose(skew_scores(embeddings[None], gate)[0], wanted, atol=1e-10)


@given(seeds, st.integers(1, 6))
def test_the_papers_construction_needs_a_plane_an_answer(seed, k):
    """Plane l: `a` is 1 at answer l alone, `b` is minus half of row l, in our sign."""
    wanted = antisymmetric(seed, k)
    a, b = torch.eye(k, dtype=torch.float64), -wanted / 2
    embeddings = torch.stack([a, b], -1).flatten(1)
    gate = torch.ones(1, k, dtype=torch.float64)
    assert torch.allclose(skew_scores(embeddings[None], gate)[0], wanted, atol=1e-12)


def test_repeated_and_zero_eigenvalues_are_fitted():
    """Rock, paper, scissors twice over, and an answer that ties with all."""
    cycle = torch.tensor([[0.0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64)
    wanted = torch.block_diag(cycle, cycle, torch.zeros(1, 1, dtype=torch.float64))
    gate = torch.ones(1, 3, dtype=torch.float64)
    found = skew_scores(fit_embedding(wanted)[None], gate)[0]
    assert torch.allclose(found, wanted, atol=1e-10)


def test_rock_paper_scissors_is_learned_from_shares():
    """Each beats the next in 9 of 10: the optimum is those odds, which no reward can have."""
    odds, beta = math.log(9), 0.5
    embeddings = normal(1, 3, 4).requires_grad_()
    gate = torch.ones(1, 2, dtype=torch.float64)
    optimizer = torch.optim.LBFGS([embeddings], max_iter=500, tolerance_change=1e-18)
    share = torch.full((3,), 0.9, dtype=torch.float64)

    def scores():
        return skew_scores(embeddings, gate)[0, [0, 1, 2], [1, 2, 0]]

    def closure():
        optimizer.zero_grad()
        value = general_preference(scores(), share, beta=beta).sum()
        value.backward()
        return value

    optimizer.step(closure)
    assert (scores() / beta).tolist() == pytest.approx([odds] * 3, abs=1e-5)
