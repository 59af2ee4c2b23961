"""Losses relative to a reference: the equations in float64 NumPy, and laws."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior.losses.preference import (
    alpha_divergence,
    aot,
    apo_down,
    apo_zero,
    discopop,
    dpo,
    dpop,
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
from tests.losses.bandit import pairwise

finite = st.floats(-5, 5)
SCORES = pairwise([0.3], [-0.2])
LENGTHS = pairwise([7.0], [4.0])


def with_scores(policy, reference):
    n = len(policy.chosen)
    return gpo(policy, reference, each(SCORES, n, policy), beta=0.1, limit=1.5)


def with_lengths(policy, reference):
    n = len(policy.chosen)
    return r_dpo(policy, reference, each(LENGTHS, n, policy), beta=0.1, alpha=0.05)


def each(pair, n, like):
    return Pairwise(pair.chosen.to(like.chosen).expand(n), pair.rejected.to(like.chosen).expand(n))


LOSSES = {
    "dpo": partial(dpo, beta=0.1),
    "cdpo": partial(dpo, beta=0.3, label_smoothing=0.1),
    "robust": partial(robust_dpo, beta=0.3, label_smoothing=0.1),
    "ipo": partial(ipo, tau=0.1),
    "hinge": partial(hinge, beta=0.3),
    "r_dpo": with_lengths,
    "exo": partial(exo, beta=0.3, label_smoothing=0.1),
    "nca": partial(nca, beta=0.3),
    "sppo": partial(sppo_hard, beta=0.5),
    "gpo": with_scores,
    "aot": partial(aot, beta=0.3, label_smoothing=0.1),
    "apo_zero": partial(apo_zero, beta=0.3),
    "apo_down": partial(apo_down, beta=0.3),
    "discopop": partial(discopop, beta=0.3),
    "dpop": partial(dpop, beta=0.3, lam=5.0),
    "f_forward": partial(f_dpo, beta=0.3, slope=forward_kl),
    "f_js": partial(f_dpo, beta=0.3, slope=jensen_shannon),
    "f_alpha": partial(f_dpo, beta=0.3, slope=partial(alpha_divergence, alpha=0.4)),
}
ON_MARGINS = ("dpo", "cdpo", "robust", "ipo", "hinge", "r_dpo", "exo", "discopop", "aot")
"""Losses that look at the margin only."""
DECREASING = ("dpo", "robust", "hinge", "r_dpo", "aot", "apo_zero", "dpop", "f_forward", "f_js",
              "f_alpha")  # fmt: skip
"""Losses that a higher chosen answer never raises (aot here without its smoothing)."""


def log1p_exp(x: float) -> float:
    """`log(1 + exp(x))`, that is `-log sigmoid(-x)`, by another road than the code's."""
    return float(np.logaddexp(0.0, x))


def sigmoid(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(x / 2))


def smoothed(x: float, e: float) -> float:
    return (1 - e) * log1p_exp(-x) + e * log1p_exp(x)


def bernoulli_kl(q: float, p: float) -> float:
    return q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))


EQUATIONS = {  # of log-ratios a (chosen) and b (rejected), with the options above
    "dpo": lambda a, b: log1p_exp(-0.1 * (a - b)),
    "cdpo": lambda a, b: smoothed(0.3 * (a - b), 0.1),
    "robust": lambda a, b: (
        0.9 * log1p_exp(-0.3 * (a - b)) - 0.1 * log1p_exp(0.3 * (a - b))
    ) / 0.8,
    "ipo": lambda a, b: (a - b - 5.0) ** 2,
    "hinge": lambda a, b: max(0.0, 1 - 0.3 * (a - b)),
    "r_dpo": lambda a, b: log1p_exp(-(0.1 * (a - b) + 0.05 * 3)),
    "exo": lambda a, b: bernoulli_kl(sigmoid(0.3 * (a - b)), 0.9),
    "nca": lambda a, b: (
        log1p_exp(-0.3 * a) + 0.5 * log1p_exp(0.3 * a) + 0.5 * log1p_exp(0.3 * b)
    ),
    "sppo": lambda a, b: ((a - 1.0) ** 2 + (b + 1.0) ** 2) / 2,
    "gpo": lambda a, b: ((a - 1.5) ** 2 + (b + 1.5) ** 2) / 2,  # 3 and -2, limited to 1.5
    "apo_zero": lambda a, b: sigmoid(0.3 * b) - sigmoid(0.3 * a),
    "apo_down": lambda a, b: sigmoid(0.3 * a) - sigmoid(0.3 * (a - b)),
    "discopop": lambda a, b: (
        (1 - sigmoid(6 * (a - b))) * log1p_exp(-0.3 * (a - b))
        + sigmoid(6 * (a - b)) * math.exp(-0.3 * (a - b))
    ),
    "dpop": lambda a, b: log1p_exp(-0.3 * (a - b - 5.0 * max(0.0, -a))),
    "f_forward": lambda a, b: log1p_exp(-0.3 * (math.exp(-b) - math.exp(-a))),
    "f_js": lambda a, b: log1p_exp(
        -0.3 * (math.log(2 * math.exp(a) / (1 + math.exp(a)))
                - math.log(2 * math.exp(b) / (1 + math.exp(b))))
    ),
    "f_alpha": lambda a, b: log1p_exp(-0.3 * (math.exp(-0.4 * b) - math.exp(-0.4 * a)) / 0.4),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUATIONS)
@given(st.lists(st.tuples(finite, finite, finite, finite), min_size=1, max_size=4))
def test_every_loss_is_its_equation(name, rows):
    w, l, ref_w, ref_l = (list(column) for column in zip(*rows, strict=True))  # noqa: E741
    wanted = [EQUATIONS[name](a - c, b - d) for a, b, c, d in rows]
    found = LOSSES[name](pairwise(w, l), pairwise(ref_w, ref_l)).tolist()
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-9)
    in_float32 = LOSSES[name](
        pairwise(w, l, torch.float32), pairwise(ref_w, ref_l, torch.float32)
    ).tolist()
    assert in_float32 == pytest.approx(wanted, rel=1e-3, abs=1e-4)


@given(st.lists(st.tuples(finite, finite, finite, finite), min_size=1, max_size=6))
def test_aot_sets_the_sorted_margins_against_each_other(rows):
    mine = [a - b for a, b, _, _ in rows]
    theirs = sorted(c - d for _, _, c, d in rows)
    order = sorted(range(len(rows)), key=lambda i: mine[i])
    wanted = [0.0] * len(rows)
    for place, i in enumerate(order):
        wanted[i] = smoothed(0.3 * (mine[i] - theirs[place]), 0.1)
    w, l, ref_w, ref_l = (list(column) for column in zip(*rows, strict=True))  # noqa: E741
    found = LOSSES["aot"](pairwise(w, l), pairwise(ref_w, ref_l)).tolist()
    assert sorted(found) == pytest.approx(sorted(wanted), rel=1e-9)
    if len(set(mine)) == len(mine):  # which of two equal margins goes first is open
        assert found == pytest.approx(wanted, rel=1e-9)


# The spec's vector: log-probabilities -12 and -10 over 6 and 4 tokens; reference -13 and -9.5.
SUMS, REFERENCE = pairwise([-12.0], [-10.0]), pairwise([-13.0], [-9.5])
MEANS, REFERENCE_MEANS = pairwise([-2.0], [-2.5]), pairwise([-13 / 6], [-9.5 / 4])


@pytest.mark.parametrize(
    ("found", "value"),
    [
        (dpo(SUMS, REFERENCE, beta=0.1), 0.620957),
        (ipo(SUMS, REFERENCE, tau=0.1), 12.25),
        (ipo(MEANS, REFERENCE_MEANS, tau=0.1), 22.168403),
        (r_dpo(SUMS, REFERENCE, pairwise([6.0], [4.0]), beta=0.1, alpha=0.05), 0.575939),
    ],
)
def test_the_specs_vectors(found, value):
    assert found.item() == pytest.approx(value, abs=6e-7)


@pytest.mark.parametrize("name", ON_MARGINS)
@given(finite, finite, finite)
def test_a_constant_added_to_both_sides_changes_nothing(name, w, l, shift):  # noqa: E741
    reference = pairwise([-3.0], [-4.0])
    left = LOSSES[name](pairwise([w], [l]), reference)
    right = LOSSES[name](pairwise([w + shift], [l + shift]), reference)
    assert torch.allclose(left, right, atol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@given(st.permutations(range(5)))
def test_the_order_of_pairs_changes_nothing(name, order):
    draw = torch.Generator().manual_seed(0)
    w, l, ref_w, ref_l = torch.randn(4, 5, generator=draw, dtype=torch.float64)  # noqa: E741
    straight = LOSSES[name](Pairwise(w, l), Pairwise(ref_w, ref_l))
    shuffled = LOSSES[name](Pairwise(w[order], l[order]), Pairwise(ref_w[order], ref_l[order]))
    assert torch.allclose(straight[order], shuffled, rtol=1e-12)


@pytest.mark.parametrize("name", DECREASING)
@given(finite, st.floats(0.01, 10))
def test_less_margin_costs_more(name, margin, step):
    loss = partial(aot, beta=0.3) if name == "aot" else LOSSES[name]
    zeros = pairwise([0.0], [0.0])
    less, more = (
        loss(pairwise([margin], [0.0]), zeros),
        loss(pairwise([margin + step], [0.0]), zeros),
    )
    assert less.item() >= more.item()
    assert less.item() > more.item() or less.item() < 1e-3 or name == "f_forward"


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("chosen", [-1e4, 0.0, 1e4])
@pytest.mark.parametrize("rejected", [-1e4, 0.0, 1e4])
def test_extreme_log_ratios_stay_finite(name, chosen, rejected):
    w = torch.tensor([chosen], requires_grad=True)
    l = torch.tensor([rejected], requires_grad=True)  # noqa: E741
    value = LOSSES[name](Pairwise(w, l), Pairwise(torch.zeros(1), torch.zeros(1)))
    gradients = torch.autograd.grad(value.sum(), (w, l))
    assert value.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name):
    draw = torch.Generator().manual_seed(0)
    w, l, ref_w, ref_l = torch.randn(4, 5, generator=draw, dtype=torch.float64)  # noqa: E741
    w.requires_grad_(), l.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: LOSSES[name](Pairwise(a, b), Pairwise(ref_w, ref_l)), (w, l)
    )


@pytest.mark.parametrize("name", LOSSES)
def test_the_reference_gets_no_gradient(name):
    reference = Pairwise(torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True))
    policy = Pairwise(torch.ones(1, requires_grad=True), torch.zeros(1, requires_grad=True))
    LOSSES[name](policy, reference).sum().backward()
    assert reference.chosen.grad is None
    assert reference.rejected.grad is None


def test_gpos_targets_are_limited_on_either_side():
    policy = pairwise([0.0, 0.0], [0.0, 0.0])
    scores = pairwise([0.9, -0.9], [-0.9, 0.9])
    assert gpo(policy, policy, scores, beta=0.1, limit=2.0).tolist() == [4.0, 4.0]
    assert gpo(policy, policy, scores, beta=0.1).tolist() == pytest.approx([81.0, 81.0])


def test_scores_and_lengths_get_no_gradient():
    policy = pairwise([-1.0], [-2.0])
    policy.chosen.requires_grad_()
    extra = Pairwise(*(torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2)))
    gpo(policy, SUMS, extra, beta=1.0).sum().backward()
    r_dpo(policy, SUMS, extra, beta=1.0, alpha=1.0).sum().backward()
    assert extra.chosen.grad is None
    assert extra.rejected.grad is None


# Limits: where one method becomes another.


@given(finite, finite, finite, finite)
def test_what_becomes_dpo(w, l, ref_w, ref_l):  # noqa: E741
    policy, reference = pairwise([w], [l]), pairwise([ref_w], [ref_l])
    wanted = dpo(policy, reference, beta=0.3)
    for found in (
        robust_dpo(policy, reference, beta=0.3, label_smoothing=0.0),
        r_dpo(policy, reference, LENGTHS, beta=0.3, alpha=0.0),
        f_dpo(policy, reference, beta=0.3, slope=reverse_kl),
        dpop(policy, reference, beta=0.3, lam=0.0),
        aot(policy, reference, beta=0.3),  # of a single pair
    ):
        assert torch.allclose(found, wanted, atol=1e-12)
    near = f_dpo(policy, reference, beta=0.3, slope=partial(alpha_divergence, alpha=1e-7))
    assert torch.allclose(near, wanted, atol=1e-4)


@given(finite, finite)
def test_dpop_is_dpo_while_the_chosen_answer_has_not_fallen(rise, rejected):
    policy, reference = pairwise([abs(rise)], [rejected]), pairwise([0.0], [0.0])
    found = dpop(policy, reference, beta=0.3, lam=50.0)
    assert torch.allclose(found, dpo(policy, reference, beta=0.3), atol=1e-12)


@given(finite, finite)
def test_the_alpha_divergence_ends_at_the_forward_kl(w, l):  # noqa: E741
    policy, reference = pairwise([w], [l]), pairwise([0.0], [0.0])
    ends = (forward_kl, partial(alpha_divergence, alpha=1.0))
    left, right = (f_dpo(policy, reference, beta=0.3, slope=slope) for slope in ends)
    assert torch.equal(left, right)


@given(finite, finite)
def test_sppo_is_gpo_on_win_rates(w, l):  # noqa: E741
    policy, reference = pairwise([w], [l]), pairwise([0.0], [0.0])
    found = gpo(policy, reference, pairwise([0.5], [-0.5]), beta=0.2)
    assert torch.allclose(found, sppo_hard(policy, reference, beta=0.2))


@given(st.floats(0.1, 60))
def test_discopop_is_logistic_far_below_and_exponential_far_above(size):
    zeros = pairwise([0.0], [0.0])
    below, above = pairwise([-1.0 - size], [0.0]), pairwise([1.0 + size], [0.0])
    assert torch.allclose(discopop(below, zeros, beta=1.0), dpo(below, zeros, beta=1.0), rtol=1e-6)
    assert discopop(above, zeros, beta=1.0).item() == pytest.approx(math.exp(-1.0 - size), rel=1e-6)


def test_discopop_has_a_hollow_just_below_a_margin_of_0():
    """It is not convex, nor monotone: the exponential part sets in before the other has left."""
    zeros = pairwise([0.0] * 3, [0.0] * 3)
    before, hollow, after = discopop(pairwise([-0.6, -0.1, 0.1], [0.0] * 3), zeros, beta=1.0)
    assert hollow < before
    assert hollow < after


def test_a_wrong_pair_is_nan_in_discopop_as_written_and_finite_here():
    """`sigmoid(x / tau) * exp(-x)` is 0 times infinity from x = -89 in float32."""
    logits = torch.tensor([-100.0])
    assert (torch.sigmoid(logits / 0.05) * torch.exp(-logits)).isnan()
    zeros = Pairwise(torch.zeros(1), torch.zeros(1))
    found = discopop(Pairwise(logits, torch.zeros(1)), zeros, beta=1.0)
    assert found.item() == pytest.approx(100.0)


def test_apo_moves_each_answer_to_its_side_of_the_anchor():
    for loss, chosen_falls in ((apo_zero, False), (apo_down, True)):
        w = torch.tensor([0.0], requires_grad=True)
        l = torch.tensor([-2.0], requires_grad=True)  # noqa: E741
        loss(Pairwise(w, l), Pairwise(torch.zeros(1), torch.zeros(1)), beta=1.0).sum().backward()
        assert (w.grad.item() > 0) == chosen_falls
        assert l.grad.item() > 0  # descending lowers the rejected answer


def test_a_longer_winner_teaches_less():
    """The sign of R-DPO: what length explains need not be learned."""
    gradients = []
    for lengths in (pairwise([9.0], [4.0]), pairwise([4.0], [9.0])):
        policy = pairwise([-1.0], [-1.0])
        policy.chosen.requires_grad_()
        r_dpo(policy, policy, lengths, beta=0.1, alpha=0.1).sum().backward()
        gradients.append(policy.chosen.grad.abs().item())
    assert gradients[0] < gradients[1]


def test_policy_equal_to_reference_costs_log_2():
    assert dpo(SUMS, SUMS, beta=0.1).item() == pytest.approx(math.log(2))
