"""What adapts to a pair: MADPO, beta-DPO, WPO, LD-DPO, against their equations and each other."""

import math
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior.losses.preference import dpo
from melior.losses.weights import (
    GapState,
    adaptive_beta,
    beta_dpo,
    clamped_adaptive_beta,
    drawn_without_replacement,
    gap_filter,
    length_desensitized,
    madpo,
    madpo_amplifying_weight,
    madpo_coefficient,
    madpo_dampening_weight,
    madpo_weight,
    tracked_gap,
    wpo_weight,
)
from melior.types import Pairwise
from tests.losses.bandit import descend, pairwise, peer_means, peer_rows, peer_sums

margin = st.floats(-20, 20)
settings = st.tuples(st.floats(1.01, 5), st.floats(0.5, 10), st.floats(0.2, 3))
WEIGHTS = (madpo_weight, madpo_amplifying_weight, madpo_dampening_weight)


def tensor(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def coefficient(h: float, c_max: float, tau: float, lam: float) -> float:
    """As the paper writes it."""
    c_min = 1 / c_max
    k = (c_max - 1) / (1 - c_min)
    return c_min + (c_max - c_min) / (1 + k * math.exp(lam * (abs(h) - tau)))


def quotient(h: float, c: float, tau: float) -> float:
    return (1 + math.exp(-h)) / (1 + math.exp(-c * h)) if h > -tau else 1.0


# The spec's table: h, then c and w for (c_max, tau) = (2, 2) and (4, 7), lambda 1.
TABLE = [
    (-8, 0.501857, 1, 0.565839, 1),
    (-3, 0.733044, 1, 3.744019, 0.000279),
    (-1, 1.364175, 0.756903, 3.963184, 0.069339),
    (-0.5, 1.537158, 0.839079, 3.977583, 0.318866),
    (0, 1.680479, 1, 3.986371, 1),
    (0.5, 1.537158, 1.097603, 3.977583, 1.413129),
    (1, 1.364175, 1.089430, 3.963184, 1.342371),
    (3, 0.733044, 0.944988, 3.744019, 1.049773),
    (8, 0.501857, 0.982604, 0.565839, 0.989631),
]


@pytest.mark.parametrize(("c_max", "tau", "column"), [(2.0, 2.0, 1), (4.0, 7.0, 3)])
def test_the_specs_table_of_madpo(c_max, tau, column):
    h = tensor(*(float(row[0]) for row in TABLE))
    found = madpo_coefficient(h, c_max=c_max, tau=tau), madpo_weight(h, c_max=c_max, tau=tau)
    for values, place in zip(found, (column, column + 1), strict=True):
        assert values.tolist() == pytest.approx([row[place] for row in TABLE], abs=6e-7)


@given(margin, settings)
def test_madpos_weight_is_the_quotient_of_sigmoids(h, options):
    c_max, tau, lam = options
    c = coefficient(h, *options)
    named = {"c_max": c_max, "tau": tau, "lam": lam}
    assert madpo_coefficient(tensor(h), **named).item() == pytest.approx(c, rel=1e-12)
    amplifying, dampening = c if abs(h) < tau else 1.0, c if abs(h) >= tau else 1.0
    for weight, wanted in zip(WEIGHTS, (c, amplifying, dampening), strict=True):
        found = weight(tensor(h), **named).item()
        assert found == pytest.approx(quotient(h, wanted, tau), rel=1e-10)


@given(settings)
def test_madpos_fixed_points(options):
    named = dict(zip(("c_max", "tau", "lam"), options, strict=True))
    tau = named["tau"]
    assert madpo_coefficient(tensor(tau, -tau), **named).tolist() == pytest.approx([1.0, 1.0])
    assert madpo_weight(tensor(0.0), **named).item() == 1.0
    just_above, at = madpo_weight(tensor(-tau + 1e-9, -tau), **named).tolist()
    assert just_above == pytest.approx(at, abs=1e-7)  # continuous where it is cut


@given(margin, settings)
def test_inside_tau_both_orders_of_a_pair_share_one_label(h, options):
    """`w(h) s(h) + w(-h) s(-h) = 1`: in expectation, DPO on the soft label `s(c h)`."""
    named = dict(zip(("c_max", "tau", "lam"), options, strict=True))
    if abs(h) >= named["tau"]:
        return
    both = tensor(h, -h)
    shares = madpo_weight(both, **named) * both.sigmoid()
    assert shares.sum().item() == pytest.approx(1.0)
    label = (madpo_coefficient(both, **named)[0] * h).sigmoid().item()
    policy, zeros = pairwise([0.7, -0.7], [0.0, 0.0]), pairwise([0.0, 0.0], [0.0, 0.0])
    weighted = (both.sigmoid() * madpo(policy, zeros, madpo_weight(both, **named), beta=2.0)).sum()
    losses = dpo(policy, zeros, beta=2.0)
    assert weighted.item() == pytest.approx((label * losses[0] + (1 - label) * losses[1]).item())


@given(margin)
def test_a_coefficient_of_one_is_no_weight(h):
    for weight in WEIGHTS:
        assert weight(tensor(h), c_max=1.0, tau=2.0).item() == pytest.approx(1.0)


@given(margin, margin)
def test_madpo_with_unit_weights_is_dpo(w, l):  # noqa: E741
    policy, reference = pairwise([w], [l]), pairwise([-1.0], [-2.0])
    found = madpo(policy, reference, tensor(1.0), beta=0.3)
    assert torch.equal(found, dpo(policy, reference, beta=0.3))


@given(st.floats(-6.9, 6.9))
def test_below_tau_amplifying_is_all_and_beyond_dampening(h):
    named = {"c_max": 4.0, "tau": 7.0}
    full = madpo_weight(tensor(h, 14.0), **named)
    assert torch.equal(madpo_amplifying_weight(tensor(h), **named), full[:1])
    assert torch.equal(madpo_dampening_weight(tensor(14.0), **named), full[1:])
    assert madpo_dampening_weight(tensor(h), **named).item() == pytest.approx(1.0)
    assert madpo_amplifying_weight(tensor(14.0), **named).item() == pytest.approx(1.0)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_extreme_margins_have_finite_weights(weight):
    """A quotient of sigmoids would be 0 / 0 from about -88, the exponential infinite from 88."""
    found = weight(torch.tensor([-1e4, -90.0, 90.0, 1e4]), c_max=4.0, tau=1e3)
    assert found.isfinite().all()
    assert weight(torch.tensor([1e4]), c_max=4.0, tau=7.0).item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("h", "target"),
    [(0.5, 1.99), (1.0, 3.96), (2.0, 7.80), (3.0, 11.2), (5.0, 13.4), (7.0, 7.0), (8.0, 7.990)],
)
def test_madpo_arrives_at_its_effective_target(h, target):
    """Both orders of a pair as often as Bradley-Terry has them; c_max 4, tau 7, the spec's list.

    Below tau the target is `c h`, from tau on `softplus(h) - softplus(-c h)`.
    """
    both = tensor(h, -h)
    weight = madpo_weight(both, c_max=4.0, tau=7.0)
    zeros = pairwise([0.0, 0.0], [0.0, 0.0])

    def expected(at: torch.Tensor) -> torch.Tensor:
        policy = Pairwise(torch.cat([at, -at]), torch.zeros(2, dtype=torch.float64))
        return (both.sigmoid() * madpo(policy, zeros, weight, beta=0.5)).sum()

    found = 0.5 * descend(expected, tensor(0.0)).item()
    c = coefficient(h, 4.0, 7.0, 1.0)
    exact = c * h if h < 7 else float(np.logaddexp(0, h) - np.logaddexp(0, -c * h))
    assert exact == pytest.approx(target, abs=0.06)
    assert found == pytest.approx(exact, abs=1e-3)


def test_weights_and_margins_get_no_gradient():
    h = tensor(0.5).requires_grad_()
    assert not any(weight(h, c_max=2.0, tau=2.0).requires_grad for weight in WEIGHTS)
    weight = tensor(2.0).requires_grad_()
    policy = pairwise([-1.0], [-2.0])
    policy.chosen.requires_grad_()
    madpo(policy, pairwise([-1.0], [-1.0]), weight, beta=0.1).sum().backward()
    assert weight.grad is None
    assert policy.chosen.grad is not None


# Beta-DPO

gaps = st.lists(st.floats(-5, 5), min_size=1, max_size=6)


@given(gaps, st.floats(-1, 1), st.floats(0, 1))
def test_beta_follows_the_mean_gap(values, mean, alpha):
    state = GapState(scalar(mean), scalar(1.0))
    found = adaptive_beta(tensor(*values), state, beta=0.1, alpha=alpha)
    wanted = (1 + alpha * (float(np.mean(values)) - mean)) * 0.1
    assert found.item() == pytest.approx(wanted, abs=1e-12)
    released = clamped_adaptive_beta(tensor(*values), state, beta=0.1, alpha=alpha)
    assert released.item() == pytest.approx(max(1e-3, wanted), abs=1e-12)


def test_the_formula_may_turn_negative_and_the_released_form_not():
    state, gap = GapState(scalar(0.0), scalar(1.0)), tensor(-4.0, -2.0)
    assert adaptive_beta(gap, state, beta=0.1, alpha=0.6) < 0
    assert clamped_adaptive_beta(gap, state, beta=0.1, alpha=0.6) == 1e-3


@given(margin, margin)
def test_beta_dpo_without_adapting_is_dpo(w, l):  # noqa: E741
    policy, reference = pairwise([w], [l]), pairwise([-1.0], [-2.0])
    state = GapState(scalar(0.3), scalar(1.0))
    beta = adaptive_beta(tensor(2.0), state, beta=0.3, alpha=0.0)
    assert torch.allclose(beta_dpo(policy, reference, beta), dpo(policy, reference, beta=0.3))


def test_beta_gets_no_gradient_from_gaps_nor_gaps_from_the_loss():
    policy = pairwise([-1.0, -1.0], [-2.0, -4.0])
    policy.chosen.requires_grad_()
    reference = pairwise([-1.0, -1.0], [-2.0, -2.0])
    gap = 0.1 * (policy.margin - reference.margin)
    state = GapState(scalar(0.0), scalar(1.0))
    beta = adaptive_beta(gap, state, beta=0.1, alpha=0.6)
    assert not beta.requires_grad
    assert not gap_filter(gap, state).requires_grad
    assert not tracked_gap(state, gap).mean.requires_grad
    beta.requires_grad_()
    beta_dpo(policy, reference, beta).sum().backward()
    assert beta.grad is None
    constant = -(beta * torch.sigmoid(-beta * (policy.margin - reference.margin))).detach()
    assert torch.allclose(policy.chosen.grad, constant)


@given(gaps, st.floats(-2, 2), st.floats(0.1, 3))
def test_the_filter_is_a_gaussian_of_gaps(values, mean, std):
    found = gap_filter(tensor(*values), GapState(scalar(mean), scalar(std)))
    exponents = -0.5 * ((np.array(values) - mean) / std) ** 2
    density = np.exp(exponents - exponents.max())  # far from the mean all would be 0
    wanted = density / density.sum() + 1e-12
    assert found.tolist() == pytest.approx((wanted / wanted.sum()).tolist(), rel=1e-6, abs=1e-12)


def test_the_filter_needs_no_spread():
    no_spread = GapState(torch.zeros(()), torch.zeros(()))
    found = gap_filter(torch.tensor([1e4, 1e4, -1e4, 0.0]), no_spread)
    assert found.isfinite().all()
    assert found.min() > 0
    kept = drawn_without_replacement(found, share=1.0, generator=torch.Generator().manual_seed(0))
    assert sorted(kept.tolist()) == [0, 1, 2, 3]


def test_pairs_are_drawn_without_replacement_by_their_probabilities():
    """All ordered draws of 2 of 4, chi-square with 11 degrees; false alarm once in 1000 seeds."""
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    counts = dict.fromkeys(permutations(range(4), 2), 0)
    n = 6000
    for _ in range(n):
        counts[tuple(drawn_without_replacement(p, share=0.6, generator=generator).tolist())] += 1
    chi_square = 0.0
    for (first, second), count in counts.items():
        expected = n * (p[first] * p[second] / (1 - p[first])).item()
        chi_square += (count - expected) ** 2 / expected
    assert chi_square < 31.3


def test_at_least_one_pair_is_kept_and_a_seed_decides_which():
    p = torch.tensor([0.5, 0.5])
    draw = partial(drawn_without_replacement, p, share=0.4)
    left, right = (draw(generator=torch.Generator().manual_seed(7)) for _ in range(2))
    assert len(left) == 1
    assert torch.equal(left, right)


@given(gaps, st.floats(0, 1))
def test_the_state_is_a_moving_average(values, momentum):
    before = GapState(scalar(0.4), scalar(1.5))
    after = tracked_gap(before, tensor(*values), momentum=momentum)
    mean, std = float(np.mean(values)), float(np.std(values))
    assert after.mean.item() == pytest.approx(momentum * 0.4 + (1 - momentum) * mean, abs=1e-12)
    assert after.std.item() == pytest.approx(momentum * 1.5 + (1 - momentum) * std, abs=1e-12)
    assert before.mean == 0.4


# WPO and LD-DPO


def test_wpos_weight_is_the_policys_own_probability_against_what_it_would_reach():
    """From whole distributions: two answers of 3 and 2 tokens over a vocabulary of 4."""
    draw = np.random.default_rng(0)
    answers = []
    for length in (3, 2):
        p = draw.dirichlet(np.ones(4), size=length)
        answers.append((p, draw.integers(0, 4, size=length)))
    taken = [np.log(p[range(len(t)), t]) for p, t in answers]
    sampled = [np.log((p**2).sum(-1)) for p, _ in answers]
    greedy = [np.log(p.max(-1)) for p, _ in answers]
    mean = lambda per_token: pairwise(*([float(values.mean())] for values in per_token))  # noqa: E731
    for alignment in (sampled, greedy):
        wanted = math.prod(
            math.prod(np.exp(a - b)) ** (1 / len(a)) for a, b in zip(taken, alignment, strict=True)
        )
        assert wpo_weight(mean(taken), mean(alignment)).item() == pytest.approx(wanted)
    assert wpo_weight(mean(greedy), mean(greedy)).item() == 1.0


def test_wpos_weight_is_no_way_to_lower_a_loss():
    policy = pairwise([-1.0], [-2.0])
    policy.chosen.requires_grad_()
    assert not wpo_weight(policy, pairwise([-0.5], [-0.5])).requires_grad


@given(st.lists(st.floats(-5, 0), min_size=1, max_size=6),
       st.lists(st.floats(-5, 0), min_size=1, max_size=6), st.floats(0, 1))  # fmt: skip
def test_ld_dpo_counts_only_the_common_length_in_full(w, l, alpha):  # noqa: E741
    k = min(len(w), len(l))
    wanted = [sum(side[:k]) + alpha * sum(side[k:]) for side in (w, l)]
    whole = pairwise([sum(w)], [sum(l)])
    common = pairwise([sum(w[:k])], [sum(l[:k])])
    found = length_desensitized(whole, common, alpha=alpha)
    assert [found.chosen.item(), found.rejected.item()] == pytest.approx(wanted, abs=1e-12)
    plain = length_desensitized(whole, common, alpha=1.0)
    assert torch.equal(plain.chosen, whole.chosen)
    assert torch.equal(plain.rejected, whole.rejected)


def test_ld_dpos_gradient_of_the_rest_is_alpha_of_the_others():
    rest, head = tensor(-2.0).requires_grad_(), tensor(-3.0).requires_grad_()
    whole = Pairwise(head + rest, tensor(-4.0))
    policy = length_desensitized(whole, Pairwise(head, tensor(-4.0)), alpha=0.3)
    dpo(policy, pairwise([-5.0], [-4.0]), beta=0.1).sum().backward()
    assert rest.grad.item() == pytest.approx(0.3 * head.grad.item())


# Peers


def test_agreement_with_trls_wpo():
    for row in peer_rows("trl_weights", "use_weighting"):
        policy, reference = peer_sums(row, "policy"), peer_sums(row, "reference")
        weight = wpo_weight(peer_means(row, "policy"), peer_means(row, "log_sum_square"))
        found = weight * dpo(policy, reference, beta=row["options"]["beta"])
        assert found.tolist() == pytest.approx(row["losses"], rel=2e-6)


def test_agreement_with_trls_ld_dpo():
    for row in peer_rows("trl_weights", "ld_alpha"):
        alpha = row["options"]["ld_alpha"]
        parts = (
            length_desensitized(peer_sums(row, model), common_sums(row, model), alpha=alpha)
            for model in ("policy", "reference")
        )
        found = dpo(*parts, beta=row["options"]["beta"])
        assert found.tolist() == pytest.approx(row["losses"], rel=2e-6)


def common_sums(row: dict, model: str) -> Pairwise:
    answers = zip(row[f"{model}_chosen"], row[f"{model}_rejected"], strict=True)
    cut = [(left[: len(right)], right[: len(left)]) for left, right in answers]
    return pairwise([sum(left) for left, _ in cut], [sum(right) for _, right in cut])
