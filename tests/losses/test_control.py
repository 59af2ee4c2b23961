"""Losses of control: the equations in float64 by other means, laws, known optima."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import gradcheck

from melior.losses import control

seeds = st.integers(0, 10**6)
ROWS, MEMBERS, WIDTH = 5, 3, 2


def draw(*shape, seed=0, scale=1.0, grad=False):
    values = torch.from_numpy(np.random.default_rng(seed).normal(scale=scale, size=shape))
    return values.requires_grad_(grad)


def flags(seed, n=ROWS):
    return torch.from_numpy(np.random.default_rng(seed).random(n) < 0.5)


# -- a modelled world


@given(seeds)
def test_gaussian_nll_is_that_of_the_full_density(seed):
    """By the inverse and the determinant of the covariance matrix."""
    mean, log_variance, target = (draw(MEMBERS, ROWS, WIDTH, seed=seed + i) for i in range(3))
    found = control.gaussian_nll(mean, log_variance, target)
    for m in range(MEMBERS):
        for n in range(ROWS):
            covariance = np.diag(np.exp(log_variance[m, n].numpy()))
            error = (mean[m, n] - target[m, n]).numpy()
            density = math.exp(-0.5 * error @ np.linalg.inv(covariance) @ error) / math.sqrt(
                np.linalg.det(2 * math.pi * covariance)
            )
            wanted = -2 * math.log(density) - WIDTH * math.log(2 * math.pi)
            assert found[m, n].item() == pytest.approx(wanted, rel=1e-11, abs=1e-11)


def test_the_best_gaussian_is_that_of_the_sample():
    sample = draw(1000, 2, seed=3) * torch.tensor([0.5, 3.0]) + torch.tensor([1.0, -2.0])
    mean = sample.mean(0).requires_grad_()
    log_variance = sample.var(0, correction=0).log().requires_grad_()
    loss = control.gaussian_nll(mean.expand(1000, 2), log_variance.expand(1000, 2), sample)
    for slope in torch.autograd.grad(loss.mean(), [mean, log_variance]):
        assert slope.abs().max() < 1e-12


@given(seeds)
def test_discriminator_is_the_likelihood_of_the_label(seed):
    logits, is_real = draw(MEMBERS, ROWS, seed=seed, scale=3.0), flags(seed)
    found = control.discriminator(logits, is_real)
    odds = np.exp(logits.numpy())
    real = odds / (1 + odds)
    wanted = -np.log(np.where(is_real.numpy(), real, 1 - real))
    assert np.allclose(found.numpy(), wanted, rtol=1e-11, atol=1e-13)
    assert np.allclose(control.looks_real(logits).numpy(), -np.log(1 - real), rtol=1e-11)


def test_the_best_logit_is_the_log_ratio_of_the_densities():
    real, generated = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.3, 0.6])
    logits = (real / generated).log().double().requires_grad_()
    both = torch.cat([logits, logits])
    is_real = torch.tensor([True] * 3 + [False] * 3)
    loss = control.discriminator(both, is_real) * torch.cat([real, generated])
    (slope,) = torch.autograd.grad(loss.sum(), logits)
    assert slope.abs().max() < 1e-7


@pytest.mark.parametrize("logit", [-1e4, 1e4])
def test_certain_logits_stay_finite(logit):
    logits = torch.tensor([logit, logit], requires_grad=True)
    loss = control.discriminator(logits, torch.tensor([True, False]))
    (slope,) = torch.autograd.grad((loss + control.looks_real(logits)).sum(), logits)
    assert loss.isfinite().all() and slope.isfinite().all()


def test_the_penalty_of_a_linear_logit_is_its_slope_squared():
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    inputs = draw(ROWS, 2, grad=True).float().detach().requires_grad_()
    (slopes,) = torch.autograd.grad((inputs @ weight).sum(), inputs, create_graph=True)
    penalty = control.gradient_penalty(slopes)
    assert penalty.tolist() == [25.0] * ROWS
    (found,) = torch.autograd.grad(penalty.mean(), weight)
    assert found.tolist() == [6.0, 8.0]


def test_the_penalty_of_a_flat_logit_has_a_slope_of_nothing():
    slopes = torch.zeros(ROWS, 2, requires_grad=True)
    (found,) = torch.autograd.grad(control.gradient_penalty(slopes).sum(), slopes)
    assert (found == 0).all()


# -- values


@given(seeds, st.floats(0, 1))
def test_td_target_adds_what_follows_unless_the_task_is_over(seed, discount):
    rewards, following, terminals = draw(ROWS, seed=seed), draw(ROWS, seed=seed + 1), flags(seed)
    found = control.td_target(rewards, terminals, following, discount=discount)
    for n in range(ROWS):
        wanted = rewards[n].item()
        if not terminals[n]:
            wanted += discount * following[n].item()
        assert found[n].item() == pytest.approx(wanted, rel=1e-13, abs=1e-13)


def test_what_stands_after_a_terminal_is_not_read():
    after = torch.tensor([math.nan, math.inf, 2.0], requires_grad=True)
    terminals = torch.tensor([True, True, False])
    found = control.td_target(torch.ones(3), terminals, after, discount=0.5)
    assert found.tolist() == [1.0, 1.0, 2.0]
    assert not found.requires_grad


@given(seeds, st.floats(0, 3))
def test_soft_value_critic_and_actor_are_their_equations(seed, alpha):
    values, log_prob, targets = (
        draw(2, ROWS, seed=seed), draw(ROWS, seed=seed + 1), draw(ROWS, seed=seed + 2),
    )  # fmt: skip
    soft = control.soft_value(values, log_prob, temperature=alpha)
    error = control.critic(values, targets)
    actor = control.soft_actor(values, log_prob, temperature=alpha)
    for n in range(ROWS):
        first, second = values[0, n].item(), values[1, n].item()
        lowest = first if first < second else second
        assert soft[n].item() == pytest.approx(lowest - alpha * log_prob[n].item(), rel=1e-12)
        assert actor[n].item() == pytest.approx(alpha * log_prob[n].item() - lowest, rel=1e-12)
        squares = (first - targets[n].item()) ** 2 + (second - targets[n].item()) ** 2
        assert error[n].item() == pytest.approx(squares / 2, rel=1e-12)


def test_the_critic_pulls_on_no_target():
    values, targets = draw(2, ROWS, grad=True), draw(ROWS, seed=1, grad=True)
    control.critic(values, targets).sum().backward()
    assert targets.grad is None
    assert torch.allclose(values.grad, values.detach() - targets.detach())


def test_values_iterate_to_those_of_a_small_world():
    """Three states in a row, reward 1 at the last, which is terminal: values by hand."""
    discount, values = 0.9, torch.zeros(3)
    for _ in range(3):
        following = torch.cat([values[1:], torch.tensor([100.0])])
        values = control.td_target(
            torch.tensor([0.0, 0.0, 1.0]),
            torch.tensor([False, False, True]),
            following,
            discount=discount,
        )
    assert torch.allclose(values, torch.tensor([0.81, 0.9, 1.0]))


# -- policies


@pytest.mark.parametrize(("alpha", "curvature"), [(0.2, 1.0), (1.0, 4.0)])
def test_the_best_gaussian_policy_is_as_wide_as_the_temperature_asks(alpha, curvature):
    """`Q = -c (a - 1)^2 / 2` asks for a variance of `alpha / c` around 1; by quadrature."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    noise = torch.from_numpy(nodes)
    share = torch.from_numpy(weights / weights.sum())
    mean = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor(0.5 * math.log(alpha / curvature), dtype=torch.float64)
    log_std.requires_grad_()
    actions = mean + log_std.exp() * noise
    log_prob = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
    values = -0.5 * curvature * (actions - 1).square()
    loss = control.soft_actor(torch.stack([values, values]), log_prob, temperature=alpha)
    for slope in torch.autograd.grad((share * loss).sum(), [mean, log_std]):
        assert abs(slope.item()) < 1e-10


@pytest.mark.parametrize(("entropy", "rises"), [(0.5, True), (2.0, False)])
def test_the_temperature_rises_where_entropy_is_below_its_target(entropy, rises):
    log_temperature = torch.tensor(-1.0, requires_grad=True)
    log_prob = torch.full((4,), -entropy, requires_grad=True)
    loss = control.soft_temperature(log_temperature, log_prob, target_entropy=1.0)
    assert loss.tolist() == pytest.approx([-math.exp(-1) * (1 - entropy)] * 4)
    loss.mean().backward()
    assert (log_temperature.grad < 0) == rises  # descent goes against the slope
    assert log_prob.grad is None


@given(seeds, st.floats(0.1, 5))
def test_td3_bc_is_its_equation(seed, alpha):
    values, actions, logged = (
        draw(ROWS, seed=seed), draw(ROWS, WIDTH, seed=seed + 1), draw(ROWS, WIDTH, seed=seed + 2),
    )  # fmt: skip
    found = control.td3_bc(values, actions, logged, alpha=alpha)
    weight = alpha / (sum(abs(v) for v in values.tolist()) / ROWS)
    for n in range(ROWS):
        gaps = [(a - b) ** 2 for a, b in zip(actions[n].tolist(), logged[n].tolist(), strict=True)]
        wanted = sum(gaps) / WIDTH - weight * values[n].item()
        assert found[n].item() == pytest.approx(wanted, rel=1e-11, abs=1e-11)


@given(seeds, st.floats(0.01, 100))
def test_td3_bc_does_not_see_the_scale_of_values(seed, scale):
    values, actions, logged = draw(ROWS, seed=seed), draw(ROWS, 1), draw(ROWS, 1, seed=1)
    plain = control.td3_bc(values, actions, logged, alpha=2.5)
    assert torch.allclose(control.td3_bc(scale * values, actions, logged, alpha=2.5), plain)


def test_td3_bc_settles_between_what_was_done_and_what_is_worth_more():
    """Along `Q = g a` at a fixed mean value of 2, `a = logged + alpha g / (2 * 2)`."""
    logged, slope, alpha = draw(4, 1), 0.8, 2.5
    actions = (logged + alpha * slope / 4).requires_grad_()
    values = slope * actions[:, 0]
    values = values + (torch.tensor([2.0, 2.0, -2.0, -2.0]) - values).detach()
    (found,) = torch.autograd.grad(
        control.td3_bc(values, actions, logged, alpha=alpha).sum(), actions
    )
    assert found.abs().max() < 1e-12


def test_td3_bc_of_no_value_is_cloning():
    actions, logged = draw(ROWS, WIDTH, grad=True), draw(ROWS, WIDTH, seed=1)
    values = torch.zeros(ROWS, dtype=torch.float64, requires_grad=True)
    found = control.td3_bc(values, actions, logged, alpha=2.5)
    assert torch.equal(found, control.cloning(actions, logged))
    slopes = torch.autograd.grad(found.sum(), [values, actions])
    assert all(slope.isfinite().all() for slope in slopes)


# -- caution


def test_conservatism_is_the_log_of_the_integral():
    """`Q(a) = -c a^2 / 2` over the whole line: `log int exp Q = log sqrt(2 pi / c)`, exactly.

    Where the density is that of the same shape each weight is the integral, whatever is drawn.
    """
    curvature = 2.0
    actions = draw(ROWS, 7)
    values = -0.5 * curvature * actions.square()
    integral = 0.5 * math.log(2 * math.pi / curvature)
    found = control.conservatism(
        torch.stack([values, values + 1]), values - integral, torch.zeros(2, ROWS).double()
    )
    assert torch.allclose(found, torch.full((ROWS,), 2 * integral + 1).double())


@given(seeds)
def test_conservatism_is_its_equation(seed):
    sampled, densities, logged = (
        draw(2, ROWS, 4, seed=seed), draw(ROWS, 4, seed=seed + 1), draw(2, ROWS, seed=seed + 2),
    )  # fmt: skip
    found = control.conservatism(sampled, densities, logged)
    weights = np.exp(sampled.numpy()) / np.exp(densities.numpy())
    wanted = (np.log(weights.mean(-1)) - logged.numpy()).sum(0)
    assert np.allclose(found.numpy(), wanted, rtol=1e-11)


@given(seeds, st.floats(-50, 50))
def test_conservatism_does_not_see_a_shift_of_all_values(seed, shift):
    sampled, densities, logged = draw(2, ROWS, 4, seed=seed), draw(ROWS, 4), draw(2, ROWS)
    plain = control.conservatism(sampled, densities, logged)
    moved = control.conservatism(sampled + shift, densities, logged + shift)
    assert torch.allclose(plain, moved, atol=1e-10)


def test_conservatism_has_no_slope_where_values_are_those_of_the_logged_policy():
    """`softmax Q` equal to the logged frequencies of three actions, drawn evenly."""
    frequencies = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    values = frequencies.log().requires_grad_()
    densities = torch.full((3, 3), math.log(1 / 3), dtype=torch.float64)
    loss = control.conservatism(values.expand(1, 3, 3), densities, values[None])
    (slope,) = torch.autograd.grad((frequencies * loss).sum(), values)
    assert slope.abs().max() < 1e-12


@given(seeds)
def test_penalties_are_their_equations(seed):
    deviations, values = draw(MEMBERS, ROWS, 2, seed=seed).abs(), draw(MEMBERS, ROWS, 4, seed=seed)
    found = control.aleatoric_penalty(deviations)
    unsure = control.bellman_inconsistency(values)
    for n in range(ROWS):
        norms = [math.hypot(*deviations[m, n].tolist()) for m in range(MEMBERS)]
        assert found[n].item() == pytest.approx(max(norms), rel=1e-12)
        means = [sum(values[m, n].tolist()) / 4 for m in range(MEMBERS)]
        centre = sum(means) / MEMBERS
        wanted = math.sqrt(sum((mean - centre) ** 2 for mean in means) / (MEMBERS - 1))
        assert unsure[n].item() == pytest.approx(wanted, rel=1e-10)


def test_members_of_one_mind_are_not_unsure():
    assert (control.bellman_inconsistency(draw(1, ROWS, 4).expand(3, -1, -1)) < 1e-12).all()


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: control.gaussian_nll(x[0], x[1], x[2]),
        lambda x: control.discriminator(x[..., 0], flags(0)),
        lambda x: control.gradient_penalty(x),
        lambda x: control.critic(x[..., 0], torch.zeros(ROWS).double()),
        lambda x: control.soft_actor(x[..., 0], x[0, :, 1], temperature=0.3),
        lambda x: control.conservatism(x, torch.zeros(ROWS, WIDTH).double(), x[..., 0]),
        lambda x: control.aleatoric_penalty(x),
    ],
)
def test_slopes_agree_with_differences(loss):
    assert gradcheck(loss, [draw(MEMBERS, ROWS, WIDTH, grad=True)])


def test_the_order_of_rows_does_not_matter():
    order = torch.tensor([3, 0, 4, 1, 2])
    x = draw(MEMBERS, ROWS, WIDTH)
    for loss in (
        lambda x: control.gaussian_nll(x[0], x[1], x[2]),
        lambda x: control.td3_bc(x[0, :, 0], x[1], x[2], alpha=2.5),
        lambda x: control.bellman_inconsistency(x),
    ):
        assert torch.allclose(loss(x[:, order]), loss(x)[order], rtol=1e-14)
