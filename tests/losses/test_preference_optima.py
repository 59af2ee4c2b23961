"""Losses relative to a reference: where they arrive when trained to the end, and their peers."""

import math
from functools import partial

import pytest
import torch

from melior.losses.preference import (
    alpha_divergence,
    aot,
    apo_down,
    apo_zero,
    discopop,
    dpo,
    exo,
    f_dpo,
    forward_kl,
    gpo,
    hinge,
    ipo,
    jensen_shannon,
    nca,
    r_dpo,
    reverse_kl,
    robust_dpo,
    sppo_hard,
)
from melior.types import Pairwise
from tests.losses.bandit import (
    REWARD,
    START,
    bradley_terry,
    centred,
    descend,
    linear,
    optimal_policy,
    optimal_ratio,
    pairwise,
    peer_means,
    peer_rows,
    peer_sums,
    sides,
)

# Known optima on an enumerable bandit, see tests/losses/bandit.py.

ALPHA = partial(alpha_divergence, alpha=0.4)


@pytest.mark.parametrize(
    ("loss", "implied_reward"),
    [
        (partial(dpo, beta=0.5), lambda ratio: 0.5 * ratio),
        (partial(f_dpo, beta=0.5, slope=reverse_kl), lambda ratio: 0.5 * ratio),
        (partial(f_dpo, beta=0.5, slope=forward_kl), lambda ratio: -0.5 * (-ratio).exp()),
        (partial(f_dpo, beta=3.0, slope=jensen_shannon), lambda ratio: 3.0 * jensen_shannon(ratio)),
        (partial(f_dpo, beta=0.5, slope=ALPHA), lambda ratio: -0.5 * (-0.4 * ratio).exp() / 0.4),
    ],
)
def test_under_bradley_terry_the_implied_reward_becomes_the_true_one(loss, implied_reward):
    """`beta f'(pi / reference) = reward + constant` is where a divergence's penalty balances."""
    policy = optimal_policy(loss, bradley_terry())
    found = implied_reward(policy - START)
    assert torch.allclose(centred(found), centred(REWARD), atol=1e-6)


def test_robust_dpo_sees_through_flipped_labels_and_dpo_does_not():
    rate = 0.2
    flipped = (1 - rate) * bradley_terry() + rate * (1 - bradley_terry())
    wanted = (START + REWARD / 0.5).log_softmax(-1)
    robust = optimal_policy(partial(robust_dpo, beta=0.5, label_smoothing=rate), flipped)
    naive = optimal_policy(partial(dpo, beta=0.5), flipped)
    assert torch.allclose(robust, wanted, atol=1e-6)
    assert not torch.allclose(naive, wanted, atol=0.1)


def with_sides(loss, extra, policy, reference, **options):
    return loss(policy, reference, extra, **options)


def test_r_dpo_arrives_at_the_reward_less_the_price_of_length():
    lengths = torch.tensor([3.0, 9.0, 5.0], dtype=torch.float64)
    loss = partial(with_sides, r_dpo, sides(lengths), beta=0.5, alpha=0.1)
    found = optimal_policy(loss, bradley_terry())
    wanted = (START + (REWARD - 0.1 * lengths) / 0.5).log_softmax(-1)
    assert torch.allclose(found, wanted, atol=1e-6)


def test_ipo_arrives_at_win_rates_over_tau():
    """`D = (P - 1/2) / tau` between any two answers, from the paper's eq. 7 and 10."""
    found = optimal_policy(partial(ipo, tau=0.3), linear()) - START
    assert torch.allclose(centred(found), centred(0.4 * REWARD / 0.3), atol=1e-6)


def test_ipo_holds_a_certain_pair_at_its_target():
    margin = descend(
        lambda m: ipo(Pairwise(m, torch.zeros_like(m)), pairwise([0.0], [0.0]), tau=0.1).sum(),
        torch.zeros(1, dtype=torch.float64),
    )
    assert margin.item() == pytest.approx(5.0)


def test_exo_arrives_at_the_geometric_mean_of_the_labels():
    """The reverse KL averages log-odds: `beta D = (2P - 1) log((1 - e) / e)`."""
    found = optimal_policy(partial(exo, beta=0.5, label_smoothing=0.1), linear()) - START
    wanted = 2 * 0.4 * REWARD * math.log(0.9 / 0.1) / 0.5
    assert torch.allclose(centred(found), centred(wanted), atol=1e-5)


def test_nca_arrives_at_twice_the_chance_of_winning():
    """At beta = 1 the policy `2 P(y beats reference) reference(y)` sums to 1 by itself."""
    found = optimal_policy(partial(nca, beta=1.0), bradley_terry())
    wins = bradley_terry().reshape(3, 3) @ START.exp()
    assert torch.allclose(found, (2 * wins).log() + START, atol=1e-6)


def test_sppo_arrives_at_the_mean_win_rate():
    found = optimal_ratio(partial(sppo_hard, beta=0.4), bradley_terry())
    wins = bradley_terry().reshape(3, 3) @ START.exp()
    assert torch.allclose(found, (wins - 0.5) / 0.4, atol=1e-6)


def test_gpo_arrives_at_the_scores():
    scores = torch.tensor([-0.3, 0.1, 0.6], dtype=torch.float64)
    loss = partial(with_sides, gpo, sides(scores), beta=0.4)
    found = optimal_ratio(loss, torch.ones(9, dtype=torch.float64))
    assert torch.allclose(found, scores / 0.4, atol=1e-6)


def test_aot_lifts_all_margins_by_the_same():
    """With smoothing e, each sorted margin ends `log((1 - e) / e) / beta` above its partner."""
    start = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    zeros = torch.zeros_like(start)
    loss = partial(aot, beta=0.5, label_smoothing=0.2)
    found = descend(lambda m: loss(Pairwise(m, zeros), Pairwise(start.flip(0), zeros)).sum(), start)
    wanted = start.sort().values + math.log(0.8 / 0.2) / 0.5
    assert torch.allclose(found.sort().values, wanted, atol=1e-6)


# Peers: TRL's own numbers, and where its loss is not the paper's, the conversion.

TRL_SLOPES = {
    "forward_kl": lambda options: forward_kl,
    "js_divergence": lambda options: jensen_shannon,
    # TRL: f'(u) = (u^(a-1) - 1) / (a - 1). The paper: (1 - u^-alpha) / alpha, so alpha = 1 - a.
    "alpha_divergence": lambda options: partial(
        alpha_divergence, alpha=1 - options["f_alpha_divergence_coef"]
    ),
}
TRL = {
    "sigmoid": dpo,
    "hinge": hinge,
    "robust": robust_dpo,
    "exo_pair": exo,
    "nca_pair": nca,
    # TRL sums the two answers' squares; eq. 4.7 is an expectation over answers, here their mean.
    "sppo_hard": lambda *sides, beta: 2 * sppo_hard(*sides, beta=beta),
    # TRL adds 1 to each of the paper's eq. 7 and 8.
    "apo_zero": lambda *sides, beta: 1 + apo_zero(*sides, beta=beta),
    "apo_down": lambda *sides, beta: 1 + apo_down(*sides, beta=beta),
    "discopop": lambda *sides, beta, discopop_tau=0.05: discopop(
        *sides, beta=beta, tau=discopop_tau
    ),
    "f_divergence": lambda *sides, beta, f_divergence_type, **options: f_dpo(
        *sides, beta=beta, slope=TRL_SLOPES[f_divergence_type](options)
    ),
}


@pytest.mark.parametrize("name", TRL)
def test_agreement_with_trl(name):
    for row in peer_rows("trl_preference", name):
        policy, reference = peer_sums(row, "policy"), peer_sums(row, "reference")
        found = TRL[name](policy, reference, **row["options"]).tolist()
        # TRL computes its alpha-divergence, and EXO's logs of the smoothing, in float32.
        tolerance = 2e-5 if name in ("f_divergence", "exo_pair") else 2e-6
        assert found == pytest.approx(row["losses"], rel=tolerance)


def test_trls_aot_is_the_mean_over_its_batch():
    for row in peer_rows("trl_preference", "aot"):
        found = aot(peer_sums(row, "policy"), peer_sums(row, "reference"), **row["options"])
        assert found.mean().item() == pytest.approx(row["losses"][0], rel=2e-6)


def test_trls_ipo_is_ours_on_averages_and_not_on_sums():
    """Eq. 17 is derived for whole answers: for sums, command `ipo`; TRL's is `ipo-mean`."""
    for row in peer_rows("trl_preference", "ipo"):
        tau = row["options"]["beta"]
        means = ipo(peer_means(row, "policy"), peer_means(row, "reference"), tau=tau).tolist()
        sums = ipo(peer_sums(row, "policy"), peer_sums(row, "reference"), tau=tau).tolist()
        assert means == pytest.approx(row["losses"], rel=2e-6)
        assert sums != pytest.approx(row["losses"], rel=0.1)
