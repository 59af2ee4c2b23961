"""Pair scores, length bias, KL estimates and paired outcomes against values worked out apart."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior import ops
from melior.evaluation import preferences as p
from melior.types import Pairwise

MARGINS = st.lists(st.sampled_from([-2.0, -0.5, 0.0, 0.5, 3.0]), min_size=1, max_size=30)


def test_ties_count_half():
    scores = p.pair_scores([1.0, 0.0, -1.0, 2.0])
    assert (scores.n, scores.accuracy, scores.margin) == (4, 0.625, 0.5)
    assert scores.low < 0.625 < scores.high
    assert scores.margin_error == pytest.approx(math.sqrt(5 / 3) / 2)
    assert p.pair_scores([0.3]).margin_error is None


@given(MARGINS)
def test_swapped_labels_mirror_the_scores(margins):
    there, back = p.pair_scores(margins), p.pair_scores([-m for m in margins])
    assert there.accuracy == pytest.approx(1 - back.accuracy)
    assert there.margin == pytest.approx(-back.margin)
    assert there.low == pytest.approx(1 - back.high)


@given(MARGINS, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_scale_keeps_accuracy(margins, random):
    scores = p.pair_scores(margins)
    shuffled = p.pair_scores(random.sample(margins, len(margins)))
    assert scores.accuracy == shuffled.accuracy
    assert scores.margin == pytest.approx(shuffled.margin)
    assert p.pair_scores([7 * m for m in margins]).accuracy == scores.accuracy


@given(MARGINS)
def test_subsets_add_up_to_the_whole(margins):
    names = [i % 3 for i in range(len(margins))]
    parts = p.pair_scores_by_subset(margins, names)
    assert list(parts) == [str(i) for i in range(min(3, len(margins)))]
    whole = p.pair_scores(margins)
    assert sum(s.n * s.accuracy for s in parts.values()) == pytest.approx(whole.n * whole.accuracy)
    assert sum(s.n * s.margin for s in parts.values()) == pytest.approx(whole.n * whole.margin)


def test_pair_metrics_scores_reward_and_log_prob_apart():
    log_prob = Pairwise(torch.tensor([-10.0, -30.0]), torch.tensor([-12.0, -20.0]))
    reward = Pairwise(torch.tensor([0.5, 0.1]), torch.tensor([-0.5, 0.0]))
    metrics = p.pair_metrics(reward, log_prob)
    assert metrics["rewards/accuracies"] == 1.0
    assert metrics["rewards/margins"] == pytest.approx(0.55)
    assert metrics["logps/accuracies"] == 0.5
    assert metrics["logps/chosen"] == -20.0
    assert metrics["logps/margins"] == -4.0


def test_length_bias_finds_a_model_that_only_counts_words():
    chosen, rejected = np.array([9, 8, 2, 3, 5]), np.array([3, 3, 8, 9, 5])
    bias = p.length_bias(chosen - rejected, chosen.tolist(), rejected.tolist())
    assert bias.chosen_longer.accuracy == 1.0
    assert bias.chosen_shorter.accuracy == 0.0
    assert (bias.same_length.n, bias.same_length.accuracy) == (1, 0.5)
    assert p.length_bias([1.0], [2], [1]).chosen_shorter is None


@pytest.mark.parametrize("estimator", [p.kl_k1, p.kl_k3])
def test_kl_estimates_are_those_of_two_known_models(estimator):
    # Two tokens; the second's distribution depends on the first. KL by enumeration.
    first, start_first = torch.tensor([0.7, 0.3]), torch.tensor([0.4, 0.6])
    second = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    start_second = torch.tensor([[0.5, 0.5], [0.3, 0.7]])
    joint, start = first[:, None] * second, start_first[:, None] * start_second
    exact = float((joint * (joint / start).log()).sum())

    draws = torch.multinomial(joint.flatten(), 4000, replacement=True, generator=ops.generator(0))
    a, b = draws // 2, draws % 2
    log_probs = torch.stack([first[a], second[a, b]], -1).log()
    reference = torch.stack([start_first[a], start_second[a, b]], -1).log()
    found = p.kl_to_start(list(log_probs), list(reference), estimator=estimator)
    assert found.n == 4000
    assert abs(found.value - exact) <= 4 * found.error  # false alarm 6e-5
    assert found.error < 0.02


def test_k3_is_never_negative_and_has_the_smaller_spread_nearby():
    generator = ops.generator(1)
    log_p = torch.log_softmax(torch.randn(2000, 8, generator=generator), -1)
    log_q = torch.log_softmax(log_p + 0.1 * torch.randn(2000, 8, generator=generator), -1)
    tokens = torch.multinomial(log_p.exp(), 1, generator=generator)
    p_token, q_token = log_p.gather(1, tokens)[:, 0], log_q.gather(1, tokens)[:, 0]
    assert (p.kl_k3(p_token, q_token) >= 0).all()
    assert p.kl_k3(p_token, q_token).std() < p.kl_k1(p_token, q_token).std() / 5
    assert p.kl_to_start([p_token], [p_token]).value == 0


def test_wins_ties_and_losses():
    outcome = p.wins([1.0, 2.0, 3.0, 4.0], [2.0, 2.05, 1.0, 9.0], within=0.1)
    assert (outcome.wins, outcome.ties, outcome.losses, outcome.win_rate) == (2, 1, 1, 0.625)
    assert set(outcome.to_json()) == {"wins", "ties", "losses", "win_rate", "low", "high"}


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: p.pair_scores([]), "margins: needs one number"),
        (lambda: p.pair_scores([0.1, math.nan, math.nan]), "found nan at place 1 and 2 such"),
        (lambda: p.length_bias([1.0], [1, 2], [1]), "two lengths per pair; found 2 and 1 for 1"),
        (lambda: p.kl_to_start([], []), "KL of each answer: needs one number"),
        (lambda: p.kl_to_start([torch.zeros(2)], [torch.zeros(3)]), "their lengths differ"),
        (lambda: p.kl_to_start([torch.zeros(1)], [torch.tensor([-math.inf])]), "must be finite"),
        (lambda: p.wins([1.0], [1.0, 2.0]), "same prompts; found 1 and 2"),
    ],
)
def test_bad_input_is_refused_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()
