"""List losses: the equations again as float64 loops, laws, the spec's vector, known optima."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from melior.losses.listwise import (
    adaptive_step_margin,
    all_pairs,
    best_against_worst,
    global_scores,
    lambda_rank,
    lambda_rank_of_margins,
    lambda_weights,
    margins,
    mean_over_pairs,
    ordered_pairs,
    per_list_scores,
    plackett_luce,
    predicted_ranks,
    softmax_cross_entropy,
    sum_over_pairs,
)
from melior.losses.preference import dpo
from melior.types import Pairwise

RANKED = (lambda_rank, all_pairs, best_against_worst, plackett_luce)
LOSSES = (*RANKED, softmax_cross_entropy)
reward = st.floats(-20, 20)
score = st.floats(0, 1, width=32)


@st.composite
def ragged(draw, k_max=5):
    """One list: rewards, scores that are all different, and which answers are there."""
    k = draw(st.integers(1, k_max))
    rewards = draw(st.lists(reward, min_size=k, max_size=k))
    scores = draw(st.lists(score, min_size=k, max_size=k, unique=True))
    mask = draw(st.lists(st.booleans(), min_size=k, max_size=k))
    return rewards, scores, mask


def tensors(rewards, scores, mask):
    return (
        torch.tensor([rewards], dtype=torch.float64),
        torch.tensor([scores], dtype=torch.float64),
        torch.tensor([mask]),
    )


def log1p_exp(x: float) -> float:
    return float(np.logaddexp(0.0, x))


def reference(name: str, rewards, scores, mask) -> float:
    """The losses once more, with loops over the answers that are there."""
    there = [i for i, is_there in enumerate(mask) if is_there]
    r, v = [rewards[i] for i in there], [scores[i] for i in there]
    pairs = [(i, j) for i in range(len(v)) for j in range(len(v)) if v[i] > v[j]]
    if name == "lambda_rank":
        by_reward = sorted(range(len(r)), key=lambda i: -r[i])  # sorted is stable
        rank = {i: place + 1 for place, i in enumerate(by_reward)}
        total = 0.0
        for i, j in pairs:
            gain = abs((2 ** v[i] - 1) - (2 ** v[j] - 1))
            discount = abs(1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j]))
            total += gain * discount * log1p_exp(r[j] - r[i])
        return total
    if name == "all_pairs":
        return sum(log1p_exp(r[j] - r[i]) for i, j in pairs) / len(pairs) if pairs else 0.0
    if name == "best_against_worst":
        if not pairs:
            return 0.0
        return log1p_exp(r[int(np.argmin(v))] - r[int(np.argmax(v))])
    if name == "plackett_luce":
        left = [r[i] for i in sorted(range(len(v)), key=lambda i: -v[i])]
        total = 0.0
        while left:
            total += math.log(sum(math.exp(x - left[0]) for x in left))
            left = left[1:]
        return total
    if not v:
        return 0.0
    target = np.exp(v) / np.exp(v).sum()
    return float(-(target * (np.array(r) - np.log(np.exp(r).sum()))).sum())


@pytest.mark.parametrize("loss", LOSSES)
@given(ragged())
def test_each_loss_is_its_equation(loss, drawn):
    wanted = reference(loss.__name__, *drawn)
    assert loss(*tensors(*drawn)).item() == pytest.approx(wanted, rel=1e-12, abs=1e-12)


SCORES, REWARDS = [1.0, 0.6, 0.2, 0.0], [0.3, 0.5, -0.1, 0.2]


def test_the_specs_vector():
    rewards, scores, mask = tensors(REWARDS, SCORES, [True] * 4)
    assert predicted_ranks(rewards, mask).tolist() == [[2, 1, 4, 3]]
    pairs = ordered_pairs(scores, mask)[0]
    weights = lambda_weights(rewards, scores, mask)[0][pairs]
    assert weights.tolist() == pytest.approx(
        [0.257860, 0.245945, 0.188892, 0.301454, 0.372011, 0.014872], abs=6e-7
    )
    losses = weights * torch.nn.functional.softplus(-margins(rewards)[0][pairs])
    assert losses.tolist() == pytest.approx(
        [0.205808, 0.126173, 0.121721, 0.131883, 0.206226, 0.012706], abs=6e-7
    )
    assert lambda_rank(rewards, scores, mask).item() == pytest.approx(0.804517, abs=6e-7)


@pytest.mark.parametrize("loss", LOSSES)
@given(ragged(), st.randoms())
def test_the_order_of_a_list_does_not_matter(loss, drawn, dice):
    rewards, scores, mask = tensors(*drawn)
    assume(len(set(drawn[0])) == len(drawn[0]))  # equal rewards rank by their place: next test
    order = list(range(rewards.shape[-1]))
    dice.shuffle(order)
    found = loss(rewards[:, order], scores[:, order], mask[:, order])
    assert torch.allclose(found, loss(rewards, scores, mask), rtol=1e-12, atol=1e-12)


def test_equal_rewards_rank_by_their_place():
    rewards, scores, mask = tensors([0.0, 0.0, 0.0], [0.0, 1.0, 0.5], [True, True, True])
    assert predicted_ranks(rewards, mask).tolist() == [[1, 2, 3]]
    there = torch.tensor([[False, True, True]])
    assert predicted_ranks(rewards, there).tolist() == [[3, 1, 2]]
    assert lambda_rank(rewards, scores, mask) > 0  # with mean ranks nothing would ever start


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("junk", [0.0, math.inf, -math.inf, math.nan, 1e300])
@given(ragged())
def test_absent_answers_give_nothing_whatever_they_hold(loss, junk, drawn):
    rewards, scores, mask = tensors(*drawn)
    filled = rewards.where(mask, junk).requires_grad_()
    found = loss(filled, scores.where(mask, junk), mask)
    kept = [[part[i] for i, is_there in enumerate(drawn[2]) if is_there] for part in drawn]
    if kept[0]:
        assert torch.allclose(found, loss(*tensors(*kept)), rtol=1e-12, atol=1e-12)
    (gradient,) = torch.autograd.grad(found.sum(), filled)
    assert (gradient[~mask] == 0).all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", RANKED)
@pytest.mark.parametrize(
    ("scores", "mask"),
    [([0.5] * 3, [True] * 3), ([0.1, 0.9, 0.4], [False, True, False]), ([0.5] * 3, [False] * 3)],
)
def test_a_list_that_orders_nothing_gives_zero_with_a_graph(loss, scores, mask):
    rewards, scores, mask = tensors([1.0, -2.0, 0.5], scores, mask)
    rewards.requires_grad_()
    value = loss(rewards, scores, mask)
    assert value.item() == 0
    (gradient,) = torch.autograd.grad(value.sum(), rewards)
    assert (gradient == 0).all()


@given(reward, reward, score, score)
def test_two_answers_are_a_weighted_dpo(w, l, better, worse):  # noqa: E741  # the paper's letters
    assume(better > worse)
    rewards, scores, mask = tensors([w, l], [better, worse], [True, True])
    zeros = torch.zeros(1, dtype=torch.float64)
    plain = dpo(Pairwise(rewards[:, 0], rewards[:, 1]), Pairwise(zeros, zeros), beta=1.0)
    weight = (2**better - 2**worse) * (1 / math.log(2) - 1 / math.log(3))
    assert lambda_rank(rewards, scores, mask).item() == pytest.approx(weight * plain.item())
    for loss in (all_pairs, best_against_worst, plackett_luce):
        assert loss(rewards, scores, mask).item() == pytest.approx(plain.item())


@given(ragged(), reward)
def test_a_constant_added_to_all_rewards_changes_nothing(drawn, shift):
    rewards, scores, mask = tensors(*drawn)
    for loss in (all_pairs, best_against_worst, plackett_luce, softmax_cross_entropy):
        moved = loss(rewards + shift, scores, mask)
        assert torch.allclose(moved, loss(rewards, scores, mask), rtol=1e-9, atol=1e-9)


def test_a_mean_over_pairs_is_the_sum_over_their_number():
    rewards, scores, mask = tensors(REWARDS, SCORES, [True, True, True, False])
    total = lambda_rank(rewards, scores, mask, over_pairs=sum_over_pairs)
    mean = lambda_rank(rewards, scores, mask, over_pairs=mean_over_pairs)
    assert mean.item() == pytest.approx(total.item() / 3)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_rewards_stay_finite(loss, size):
    rewards = torch.tensor([[size, 0.0, -size]], requires_grad=True)
    scores, mask = torch.tensor([[1.0, 0.5, 0.0]]), torch.ones(1, 3, dtype=torch.bool)
    value = loss(rewards, scores, mask)
    (gradient,) = torch.autograd.grad(value.sum(), rewards)
    assert value.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("loss", LOSSES)
def test_gradients_agree_with_finite_differences(loss):
    """Rewards lie apart by more than the step, so that ranks, and lambda's weights, stay."""
    rewards = torch.tensor([[0.9, -0.4, 0.1, 0.5]], dtype=torch.float64, requires_grad=True)
    scores = torch.tensor([[0.2, 0.9, 0.9, 0.4]], dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]])
    assert torch.autograd.gradcheck(lambda r: loss(r, scores, mask), rewards)


@given(
    st.lists(st.integers(0, 3), min_size=2, max_size=5),
    st.lists(reward, min_size=5, max_size=5),
    st.randoms(),
)
def test_equal_answers_do_not_compete_in_plackett_luce(grades, rewards, dice):
    rewards, scores, mask = tensors(rewards[: len(grades)], grades, [True] * len(grades))
    wanted = 0.0
    for i, own in enumerate(grades):
        rivals = [i, *(j for j, other in enumerate(grades) if other < own)]
        wanted += math.log(sum(math.exp(rewards[0, j] - rewards[0, i]) for j in rivals))
    assert plackett_luce(rewards, scores, mask).item() == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    order = list(range(len(grades)))
    dice.shuffle(order)
    shuffled = plackett_luce(rewards[:, order], scores[:, order], mask)
    assert shuffled.item() == pytest.approx(wanted, rel=1e-9, abs=1e-9)


def steps(seed: int = 0, n: int = 2, k: int = 3, s: int = 4, d: int = 5):
    draw = torch.Generator().manual_seed(seed)
    rewards = torch.randn(n, k, s, generator=draw, dtype=torch.float64)
    embeddings = torch.randn(n, k, s, d, generator=draw, dtype=torch.float64)
    return rewards, embeddings, torch.rand(n, k, s, generator=draw) < 0.7


def test_adaptive_step_margin_is_its_equation():
    rewards, embeddings, is_step = steps()
    embeddings[0, 0, 0] = 0.0  # a step without words
    found = adaptive_step_margin(rewards, embeddings, is_step)
    for n in range(2):
        for i in range(3):
            for j in range(3):
                wanted = 0.0
                for s in range(4):
                    weight = 1.0
                    left, right = embeddings[n, i, s].numpy(), embeddings[n, j, s].numpy()
                    size = np.linalg.norm(left) * np.linalg.norm(right)
                    if is_step[n, i, s] and is_step[n, j, s] and size > 0:
                        weight = 1.0 - float(left @ right / size)
                    own = float(rewards[n, i, s]) if is_step[n, i, s] else 0.0
                    other = float(rewards[n, j, s]) if is_step[n, j, s] else 0.0
                    wanted += weight * (own - other)
                assert found[n, i, j].item() == pytest.approx(wanted, rel=1e-12, abs=1e-12)


def test_steps_that_say_the_same_count_nothing_and_opposed_ones_twice():
    rewards, embeddings, _ = steps(n=1, k=2, s=1)
    there = torch.ones(1, 2, 1, dtype=torch.bool)
    plain = margins(rewards.sum(-1))
    first = embeddings[:, :1]
    for second, weight in ((3 * first, 0.0), (-first, 2.0)):
        pair = torch.cat([first, second], dim=1)
        found = adaptive_step_margin(rewards, pair, there)
        assert torch.allclose(found, weight * plain, atol=1e-12)
    unrelated = torch.eye(5, dtype=torch.float64)[:2].reshape(1, 2, 1, 5)
    assert torch.allclose(adaptive_step_margin(rewards, unrelated, there), plain, atol=1e-12)


@pytest.mark.parametrize("junk", [math.nan, math.inf, 0.0])
def test_steps_that_are_absent_or_empty_count_one_and_never_nan(junk):
    rewards, embeddings, is_step = steps()
    is_step[:, 0] = True
    is_step[:, 1, -1] = False
    filled = rewards.where(is_step, junk).requires_grad_()
    embeddings = embeddings.where(is_step[..., None], junk)
    embeddings[:, 0, 0] = junk
    found = adaptive_step_margin(filled, embeddings, is_step)
    (gradient,) = torch.autograd.grad(found[:, 0, 1].sum(), filled)
    assert found.isfinite().all()
    assert torch.allclose(gradient[:, 0, 0], torch.ones(2, dtype=torch.float64))
    assert torch.allclose(gradient[:, 0, -1], torch.ones(2, dtype=torch.float64))
    assert (gradient[~is_step] == 0).all()


def test_embeddings_get_no_gradient_and_margins_are_antisymmetric():
    rewards, embeddings, is_step = steps()
    embeddings.requires_grad_(), rewards.requires_grad_()
    found = adaptive_step_margin(rewards, embeddings, is_step)
    assert torch.allclose(found, -found.mT, atol=1e-12)
    found.abs().sum().backward()
    assert embeddings.grad is None
    assert rewards.grad.abs().sum() > 0


def test_lambda_rank_of_unrelated_steps_is_lambda_rank():
    """Embeddings at right angles weigh every step 1: the margin is that of the whole answers."""
    rewards, _, _ = steps(n=3, k=3, s=2)
    embeddings = torch.eye(6, dtype=torch.float64).reshape(1, 3, 2, 6).expand(3, -1, -1, -1)
    is_step = torch.ones(3, 3, 2, dtype=torch.bool)
    scores = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float64).expand(3, -1)
    mask, whole = torch.ones(3, 3, dtype=torch.bool), rewards.sum(-1)
    margin = adaptive_step_margin(rewards, embeddings, is_step)
    found = lambda_rank_of_margins(margin, whole, scores, mask)
    assert torch.allclose(found, lambda_rank(whole, scores, mask), atol=1e-12)


def test_ranks_and_weights_get_no_gradient():
    rewards, scores, mask = tensors(REWARDS, SCORES, [True] * 4)
    assert not lambda_weights(rewards.requires_grad_(), scores.requires_grad_(), mask).requires_grad
    fixed = margins(rewards).detach()
    assert not lambda_rank_of_margins(fixed, rewards, scores, mask).requires_grad


def test_scores_are_brought_to_0_to_1():
    scores = torch.tensor([[-100.0, 0.0, 100.0], [7.0, 7.0, 9.0], [3.0, 3.0, math.nan]])
    mask = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])
    assert global_scores(scores[:1], low=-100, high=100).tolist() == [[0.0, 0.5, 1.0]]
    found = per_list_scores(scores, mask)
    assert found.tolist() == [[0.0, 0.5, 1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def minimised(value, size: int) -> torch.Tensor:
    rewards = torch.zeros(1, size, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([rewards], max_iter=500, tolerance_grad=1e-12)

    def closure():
        optimizer.zero_grad()
        loss = value(rewards)
        loss.backward()
        return loss

    optimizer.step(closure)
    return rewards.detach()


def test_softmax_cross_entropy_arrives_at_the_scores():
    scores = torch.tensor([[0.0, 1.0, 0.3]], dtype=torch.float64)
    mask = torch.ones(1, 3, dtype=torch.bool)
    found = minimised(lambda r: softmax_cross_entropy(r, scores, mask, temperature=0.5).sum(), 3)
    assert torch.allclose(found.softmax(-1), (scores / 0.5).softmax(-1), atol=1e-6)


def test_plackett_luce_and_all_pairs_arrive_at_the_utilities_that_drew_the_lists():
    """Over all orders in their exact probabilities, both are least at the true utilities."""
    from itertools import permutations

    utility = np.array([0.0, 0.7, -0.5])
    lists = list(permutations(range(3)))
    weights = []
    for order in lists:
        chance, left = 1.0, list(order)
        while left:
            chance *= math.exp(utility[left[0]]) / sum(math.exp(utility[i]) for i in left)
            left = left[1:]
        weights.append(chance)
    scores = torch.tensor([[2.0 - order.index(i) for i in range(3)] for order in lists])
    mask = torch.ones(6, 3, dtype=torch.bool)
    weight = torch.tensor(weights, dtype=torch.float64)
    wanted = torch.tensor(utility - utility.mean())
    for loss in (plackett_luce, all_pairs):
        found = minimised(lambda r, f=loss: (weight * f(r.expand(6, -1), scores, mask)).sum(), 3)
        assert torch.allclose(found - found.mean(), wanted, atol=1e-5)


@pytest.mark.parametrize("over_pairs", [sum_over_pairs, mean_over_pairs])
def test_lambda_rank_learns_the_order_and_the_released_sign_would_invert_it(over_pairs):
    scores = torch.tensor([[0.4, 1.0, 0.0, 0.7]])
    mask = torch.ones(1, 4, dtype=torch.bool)
    for sign, wanted in ((1, [2, 0, 3, 1]), (-1, [1, 3, 0, 2])):
        rewards = torch.zeros(1, 4, requires_grad=True)
        optimizer = torch.optim.SGD([rewards], lr=0.5)
        for _ in range(200):
            optimizer.zero_grad()
            (sign * lambda_rank(rewards, scores, mask, over_pairs=over_pairs).sum()).backward()
            optimizer.step()
        assert rewards[0].argsort().tolist() == wanted
