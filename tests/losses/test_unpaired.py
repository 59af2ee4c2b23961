"""Losses of single answers: the equations in float64 NumPy, laws, peers, known optima."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from melior.losses.preference import apo_zero
from melior.losses.unpaired import apo_zero_unpaired, bco, bco_shift, kto, kto_reference_point
from tests.losses.bandit import descend, pairwise, peer_rows

ratio = st.floats(-30, 30)
weights = st.floats(0.1, 3)
POINT = torch.tensor(0.7, dtype=torch.float64)


def with_point(loss):
    """A loss of ratios and labels only, its reference point or shift given."""
    return lambda log_ratio, labels, **options: loss(
        log_ratio, labels, POINT.to(log_ratio), **options
    )


LOSSES = {"kto": with_point(kto), "bco": with_point(bco), "apo_zero": apo_zero_unpaired}
BOUNDED = ("kto", "apo_zero")


def sigmoid(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(x / 2))


EQUATIONS = {
    "kto": lambda rho, good: 1 - sigmoid(0.3 * (rho - 0.7) if good else 0.3 * (0.7 - rho)),
    "bco": lambda rho, good: float(np.logaddexp(0.0, (0.7 - 0.3 * rho) * (1 if good else -1))),
    "apo_zero": lambda rho, good: -sigmoid(0.3 * rho) if good else sigmoid(0.3 * rho),
}


@pytest.mark.parametrize("name", LOSSES)
@given(st.lists(st.tuples(ratio, st.booleans()), min_size=1, max_size=5), weights, weights)
def test_every_loss_is_its_equation(name, rows, desirable, undesirable):
    wanted = [(desirable if good else undesirable) * EQUATIONS[name](rho, good)
              for rho, good in rows]  # fmt: skip
    log_ratio = torch.tensor([rho for rho, _ in rows], dtype=torch.float64)
    found = LOSSES[name](
        log_ratio,
        torch.tensor([good for _, good in rows]),
        beta=0.3,
        desirable_weight=desirable,
        undesirable_weight=undesirable,
    )
    assert found.tolist() == pytest.approx(wanted, rel=1e-10, abs=1e-12)


def test_the_specs_vectors_of_kto():
    """Its `z = 0.02` holds beta = 0.1 already; here the point is a KL, 0.2 nats."""
    log_ratio = torch.tensor([-12.0 + 13.0, -10.0 + 9.5], dtype=torch.float64)
    point = torch.tensor(0.2, dtype=torch.float64)
    found = kto(log_ratio, torch.tensor([True, False]), point, beta=0.1)
    assert found.tolist() == pytest.approx([0.480011, 0.482507], abs=6e-7)


@given(st.lists(ratio, min_size=1, max_size=6))
def test_the_reference_point_is_a_mean_that_is_never_negative(ratios):
    mismatched = torch.tensor(ratios, dtype=torch.float64, requires_grad=True)
    found = kto_reference_point(mismatched)
    assert found.item() == pytest.approx(max(0.0, float(np.mean(ratios))), abs=1e-12)
    assert not found.requires_grad


@pytest.mark.parametrize("name", LOSSES)
@given(ratio, st.floats(0.1, 5))
def test_good_answers_want_to_rise_and_bad_ones_to_fall(name, rho, step):
    low, high = torch.tensor([rho, rho + step], dtype=torch.float64)[:, None]
    for good in (True, False):
        below, above = (LOSSES[name](x, torch.tensor([good]), beta=0.3) for x in (low, high))
        assert (below > above).item() == good


@pytest.mark.parametrize("name", LOSSES)
@given(ratio, st.floats(1.5, 4))
def test_a_weight_counts_its_own_kind_only(name, rho, weight):
    log_ratio = torch.tensor([rho, rho], dtype=torch.float64)
    labels = torch.tensor([True, False])
    plain = LOSSES[name](log_ratio, labels, beta=0.3)
    heavy = LOSSES[name](log_ratio, labels, beta=0.3, desirable_weight=weight)
    assert heavy[0].item() == pytest.approx(weight * plain[0].item())
    assert heavy[1] == plain[1]


@pytest.mark.parametrize("name", LOSSES)
def test_an_answer_counts_by_itself(name):
    """In any order, beside any others: nothing is shared but the point that is given."""
    log_ratio = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64)
    labels = torch.tensor([True, False, True])
    together = LOSSES[name](log_ratio, labels, beta=0.3)
    alone = [LOSSES[name](log_ratio[i : i + 1], labels[i : i + 1], beta=0.3) for i in (2, 0, 1)]
    assert torch.equal(together[[2, 0, 1]], torch.cat(alone))


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_agree_with_finite_differences(name):
    log_ratio = torch.tensor([0.5, -2.0, 3.0], dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([True, False, True])
    assert torch.autograd.gradcheck(lambda x: LOSSES[name](x, labels, beta=0.3), log_ratio)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("good", [True, False])
def test_extreme_log_ratios_stay_finite(name, good):
    log_ratio = torch.tensor([-1e4, 0.0, 1e4], requires_grad=True)
    value = LOSSES[name](log_ratio, torch.tensor([good] * 3), beta=1.0)
    (gradient,) = torch.autograd.grad(value.sum(), log_ratio)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert name not in BOUNDED or value.abs().max() <= 1


@pytest.mark.parametrize("loss", [kto, bco])
def test_the_point_gets_no_gradient(loss):
    point = torch.tensor(0.3, requires_grad=True)
    log_ratio = torch.zeros(2, requires_grad=True)
    loss(log_ratio, torch.tensor([True, False]), point, beta=0.3).sum().backward()
    assert point.grad is None
    assert log_ratio.grad.abs().min() > 0


@given(ratio, ratio)
def test_the_two_halves_of_apo_zero_are_its_pair(w, l):  # noqa: E741
    whole = apo_zero(pairwise([w], [l]), pairwise([0.0], [0.0]), beta=0.3)
    log_ratio = torch.tensor([w, l], dtype=torch.float64)
    halves = apo_zero_unpaired(log_ratio, torch.tensor([True, False]), beta=0.3)
    assert halves.sum().item() == pytest.approx(whole.item(), abs=1e-12)


@given(ratio)
def test_kto_at_the_reference_is_apo_zero_but_for_a_constant(rho):
    log_ratio = torch.tensor([rho, rho], dtype=torch.float64)
    labels = torch.tensor([True, False])
    found = kto(log_ratio, labels, torch.zeros((), dtype=torch.float64), beta=0.3)
    wanted = apo_zero_unpaired(log_ratio, labels, beta=0.3) + torch.tensor([1.0, 0.0])
    assert torch.allclose(found, wanted, atol=1e-12)


def test_the_shift_lies_between_the_kinds_and_moves_slowly():
    log_ratio = torch.tensor([4.0, 2.0, -1.0], dtype=torch.float64)
    labels = torch.tensor([True, True, False])
    start = torch.tensor(0.5, dtype=torch.float64)
    middle = 0.1 * (3.0 - 1.0) / 2
    at_once = bco_shift(start, log_ratio, labels, beta=0.1, decay=0.0)
    slowly = bco_shift(start, log_ratio, labels, beta=0.1, decay=0.9)
    assert at_once.item() == pytest.approx(middle)
    assert slowly.item() == pytest.approx(0.9 * 0.5 + 0.1 * middle)


def test_a_batch_of_one_kind_leaves_the_shift():
    start = torch.tensor(0.5)
    for good in (True, False):
        labels = torch.tensor([good, good])
        assert bco_shift(start, torch.ones(2), labels, beta=0.1, decay=0.5) == start


def test_bco_arrives_at_the_log_odds_of_being_good():
    """A logistic regression: `beta rho - delta = log(p / (1 - p))` where a share p is good."""
    share = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    good, bad = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    loss = partial(bco, shift=POINT, beta=0.4)
    found = descend(
        lambda rho: (share * loss(rho, good) + (1 - share) * loss(rho, bad)).sum(),
        torch.zeros(3, dtype=torch.float64),
    )
    assert torch.allclose(0.4 * found - POINT, share.logit(), atol=1e-6)


@pytest.mark.parametrize("name", BOUNDED)
def test_bounded_values_go_to_the_majority(name):
    """No regression: what is good more often than bad rises without end; one half stands still."""
    share = torch.tensor([0.4, 0.5, 0.6], dtype=torch.float64)
    rho = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    good, bad = torch.ones(3, dtype=torch.bool), torch.zeros(3, dtype=torch.bool)
    value = share * LOSSES[name](rho, good, beta=1.0)
    value = value + (1 - share) * LOSSES[name](rho, bad, beta=1.0)
    (gradient,) = torch.autograd.grad(value.sum(), rho)
    assert gradient[0] > 0 > gradient[2]
    assert gradient[1].item() == pytest.approx(0, abs=1e-12)


def test_agreement_with_trls_kto():
    for row in peer_rows("trl_unpaired", "kto"):
        point = kto_reference_point(torch.tensor(row["mismatched"], dtype=torch.float64))
        log_ratio = torch.tensor(row["log_ratio"], dtype=torch.float64)
        found = kto(log_ratio, torch.tensor(row["labels"]), point, **row["options"])
        assert found.tolist() == pytest.approx(row["losses"], rel=2e-6)


def test_trls_unpaired_apo_adds_1_to_desirable_answers():
    """The paper's eq. 7 has `-sigmoid`, TRL `1 - sigmoid`, before the weight."""
    for row in peer_rows("trl_unpaired", "apo_zero_unpaired"):
        log_ratio = torch.tensor(row["log_ratio"], dtype=torch.float64)
        labels = torch.tensor(row["labels"])
        found = apo_zero_unpaired(log_ratio, labels, **row["options"])
        found = found + labels * row["options"]["desirable_weight"]
        assert found.tolist() == pytest.approx(row["losses"], abs=1e-7)
