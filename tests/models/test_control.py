"""Networks of control: members know nothing of each other, scales go back, densities are exact."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from melior import ops
from melior.models.control import (
    DiscriminatorOptions,
    Discriminators,
    Dynamics,
    DynamicsOptions,
    Perceptrons,
    Scale,
    gathered,
)
from melior.models.control_policies import (
    Critics,
    GaussianPolicy,
    PlainPolicy,
    PolicyOptions,
    follow,
    frozen_copy,
)

TINY = DynamicsOptions(observations=3, actions=1, members=4, elites=2, hidden=8, layers=2)
POLICY = PolicyOptions(observations=3, actions=2, hidden=8)


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def alone(networks: Perceptrons, member: int, activation: nn.Module) -> nn.Sequential:
    """The same perceptron, of torch's own layers."""
    layers: list[nn.Module] = []
    for weight, bias in zip(networks.weights, networks.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        linear.weight.data, linear.bias.data = weight[member].T.clone(), bias[member, 0].clone()
        layers += [linear, activation]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize(("name", "activation"), [("relu", nn.ReLU()), ("silu", nn.SiLU())])
@pytest.mark.parametrize("shape", [(6, 3), (4, 6, 3)])
def test_each_member_is_a_perceptron_of_its_own(name, activation, shape):
    networks, inputs = Perceptrons(4, [3, 8, 8, 2], seed=1, activation=name), draw(*shape)
    found = networks(inputs)
    for member in range(4):
        own = inputs if inputs.ndim == 2 else inputs[member]
        assert torch.allclose(found[member], alone(networks, member, activation)(own), atol=1e-6)


def test_no_gradient_crosses_members():
    networks = Perceptrons(4, [3, 8, 2], seed=1)
    networks(draw(6, 3))[2].sum().backward()
    for parameter in networks.parameters():
        reached = parameter.grad.flatten(1).abs().sum(1) > 0
        assert reached.tolist() == [False, False, True, False]


def test_members_start_apart_and_a_seed_decides_where():
    one, same, other = (Perceptrons(2, [3, 2], seed=seed).weights[0] for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert not torch.equal(one[0], one[1])
    assert one.abs().max() <= 1 / math.sqrt(3)


@given(st.integers(0, 100), st.floats(0.1, 3))
def test_scales_go_there_and_back(seed, bound):
    data = draw(20, 3, seed=seed) * torch.tensor([1.0, 50.0, 0.0]) + torch.tensor([0.0, 9.0, 4.0])
    for fit in (lambda s: s.standardise(data), lambda s: s.fit_into(data, bound)):
        scale = Scale(3)
        fit(scale)
        assert torch.allclose(scale.back(scale(data)), data, atol=1e-4)
    scaled = scale(data)[:, :2]
    assert torch.allclose(scaled.amax(0), torch.full((2,), bound), atol=1e-5)
    assert torch.allclose(scaled.amin(0), torch.full((2,), -bound), atol=1e-5)


def test_a_dimension_that_never_changed_is_0_whatever_is_asked():
    scale, data = Scale(2), torch.tensor([[1.0, 0.1], [2.0, 0.1], [4.0, 0.1]])
    scale.standardise(data)
    assert (scale(torch.tensor([[1.0, 7.0]]))[:, 1] == 0).all()
    assert torch.equal(scale.back(torch.tensor([[0.0, 3.0]]))[:, 1], data[:1, 1])
    assert scale(data)[:, 0].std(correction=0).item() == pytest.approx(1, abs=1e-6)


def test_rounding_is_no_change():
    """A number that differs in its last bit, and steps of a clock that a float cannot all hold."""
    near = torch.full((9, 1), 0.1)
    near[::2] = torch.nextafter(near[::2], torch.ones(()))
    clock = 0.1 * torch.arange(200.0)[:, None] + 5
    steps = clock[1:] - clock[:-1]
    assert near.std() > 0 and steps.std() > 0
    scale = Scale(1)
    scale.standardise(near)
    assert scale(torch.tensor([[0.2]])).item() == 0
    scale.fit_into(near, 0.8)
    assert scale(torch.tensor([[0.2]])).item() == 0
    judges = Discriminators(DiscriminatorOptions(1, 1), seed=0)
    judges.fit_scales(clock[:-1], clock[1:])
    moved = judges.inputs(clock[:1], torch.zeros(1, 1), clock[1:2] + 1e-3)
    assert moved.abs().max() <= 0.81
    dynamics = Dynamics(DynamicsOptions(1, 1, members=2, elites=1, hidden=4), seed=0)
    rewards = draw(199, 1)
    dynamics.fit_scales(clock[:-1], draw(199, 1), torch.cat([steps, rewards], dim=-1))
    assert dynamics.outputs.width[0] == 0 and dynamics.outputs.width[1] > 0.5


def test_small_numbers_are_numbers():
    scale = Scale(1)
    scale.standardise(1e-4 * draw(50, 1) + 3)
    assert 0.5e-4 < scale.width.item() < 2e-4


def fitted():
    dynamics, observations, actions = Dynamics(TINY, seed=0), draw(50, 3), draw(50, 1, seed=1)
    targets = draw(50, 4, seed=2) * torch.tensor([0.1, 1.0, 0.0, 100.0]) + 5
    dynamics.fit_scales(observations, actions, targets)
    return dynamics, observations, actions, targets


def test_a_prediction_is_in_the_units_of_the_data():
    dynamics, observations, actions, targets = fitted()
    mean, log_variance = dynamics(observations, actions)
    found = dynamics.predict(observations, actions)
    centre, width = targets.mean(0), targets.std(0, correction=0)
    wanted = centre + width * mean
    assert torch.allclose(found.next_observations - observations, wanted[..., :3], atol=1e-4)
    assert torch.allclose(found.rewards, wanted[..., 3], atol=1e-3)
    assert torch.allclose(found.deviations, log_variance.exp().sqrt() * width, rtol=1e-4)
    assert (found.deviations[..., 2] == 0).all()  # that change never varied


@pytest.mark.parametrize("shift", [-1e4, 0.0, 1e4])
def test_variances_stay_within_their_bounds(shift):
    dynamics, observations, actions, _ = fitted()
    with torch.no_grad():
        dynamics.members.biases[-1][..., 4:] = shift
    _, log_variance = dynamics(observations, actions)
    assert (log_variance > -10 - 1e-3).all() and (log_variance < 0.5 + 1e-3).all()
    assert dynamics.bound_loss().item() == pytest.approx(4 * 10.5)


def test_the_members_with_the_least_error_are_elected():
    dynamics = Dynamics(TINY, seed=0)
    dynamics.elect(torch.tensor([3.0, 1.0, 2.0, 1.0]))
    assert dynamics.elites.tolist() == [1, 3]


def test_networks_come_back_from_their_folders(tmp_path):
    dynamics, observations, actions, _ = fitted()
    dynamics.elect(torch.tensor([3.0, 1.0, 2.0, 0.0]))
    dynamics.save(tmp_path / "dynamics")
    again = Dynamics.load(tmp_path / "dynamics")
    assert torch.equal(again.elites, dynamics.elites)
    wanted = dynamics.predict(observations, actions)
    for name, value in vars(again.predict(observations, actions)).items():
        assert torch.equal(value, getattr(wanted, name))
    for kind in (GaussianPolicy, PlainPolicy):
        policy = kind(POLICY, seed=3)
        policy.scale.standardise(observations)
        policy.save(tmp_path / kind.__name__)
        loaded = kind.load(tmp_path / kind.__name__)
        assert torch.equal(loaded.act(observations), policy.act(observations))
    with pytest.raises(ValueError, match="'kind' must be PlainPolicy; found 'GaussianPolicy'"):
        PlainPolicy.load(tmp_path / "GaussianPolicy")


def snapshots(count):
    options = DiscriminatorOptions(observations=3, actions=1, hidden=8)
    parts = [Discriminators(options, seed=seed) for seed in range(count)]
    for part in parts:
        part.fit_scales(draw(30, 3), draw(30, 3, seed=1))
    return parts


def test_snapshots_side_by_side_say_what_each_said():
    parts, transition = snapshots(3), (draw(6, 3), draw(6, 1, seed=1), draw(6, 3, seed=2))
    whole = gathered(parts)
    found = whole(*transition)
    for member, part in enumerate(parts):
        assert torch.allclose(found[member], part(*transition)[0], atol=1e-6)
    two = whole.chosen(torch.tensor([2, 0]))
    assert torch.allclose(two(*transition), found[[2, 0]], atol=1e-6)
    assert not any(torch.equal(found[0], found[m]) for m in (1, 2))


def test_snapshots_of_other_scales_are_not_mixed():
    one, other = snapshots(2)
    other.fit_scales(2 * draw(30, 3), draw(30, 3))
    with pytest.raises(ValueError, match="must share their scales"):
        gathered([one, other])


def test_a_policys_density_is_that_of_the_squashed_gaussian():
    policy = GaussianPolicy(POLICY, seed=0).double()
    observations = draw(40, 3).double()
    actions, log_prob = policy.draw(observations, generator=torch.Generator().manual_seed(0))
    mean, log_std = policy(observations)
    gaussian = torch.distributions.Normal(mean, log_std.exp())
    squash = torch.distributions.TanhTransform()
    squashed = torch.distributions.TransformedDistribution(gaussian, [squash])
    assert torch.allclose(squashed.log_prob(actions).sum(-1), log_prob, rtol=1e-6)
    assert torch.equal(policy.act(observations), mean.tanh())


def test_drawn_actions_follow_the_density():
    """Each draw's place in its own distribution is even: chi-square, one false alarm in 10,000."""
    policy = GaussianPolicy(PolicyOptions(observations=3, actions=1, hidden=8), seed=0).double()
    observations = draw(20_000, 3).double()
    actions, _ = policy.draw(observations, generator=torch.Generator().manual_seed(1))
    mean, log_std = policy(observations)
    places = torch.distributions.Normal(mean, log_std.exp()).cdf(actions.atanh())
    counts = torch.histc(places, 20, 0, 1)
    assert ((counts - 1000).square() / 1000).sum() < 50.8  # 19 degrees of freedom


@pytest.mark.parametrize("mean", [-60.0, 60.0])
def test_a_policy_far_out_has_a_finite_density_and_slope(mean):
    policy = GaussianPolicy(POLICY, seed=0)
    with torch.no_grad():
        policy.network.biases[-1][..., :2] = mean
    actions, log_prob = policy.draw(draw(5, 3), generator=torch.Generator().manual_seed(0))
    (log_prob.sum() + actions.sum()).backward()
    assert log_prob.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in policy.parameters())


def test_a_target_follows_by_a_share_of_the_way():
    source, target = Critics(POLICY, seed=0), frozen_copy(Critics(POLICY, seed=1))
    before = [parameter.clone() for parameter in target.parameters()]
    follow(target, source, 0.25)
    for old, new, goal in zip(before, target.parameters(), source.parameters(), strict=True):
        assert torch.allclose(new, 0.75 * old + 0.25 * goal, atol=1e-7)
        assert not new.requires_grad
    values = target(draw(5, 3), draw(5, 2))
    assert values.shape == (2, 5) and not torch.equal(values[0], values[1])


@pytest.mark.parametrize("options", [{"elites": 8}, {"hidden": 0}])
def test_options_out_of_range_are_told(options):
    with pytest.raises(ValueError, match="must be at least 1"):
        DynamicsOptions(3, 1, **options)


@pytest.mark.parametrize("rows", [0, 1, 64, 65, 1100])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_members_that_go_one_after_another_say_the_same(rows, activation):
    members = Perceptrons(3, [4, 8, 8, 2], seed=0, activation=activation)
    shared = torch.randn(rows, 4, generator=ops.generator(1))
    own = torch.randn(3, rows, 4, generator=ops.generator(2))
    for inputs in (shared, own):
        together = members(inputs).detach()
        before = inputs.clone()
        with torch.no_grad():
            assert torch.allclose(members(inputs), together, atol=1e-6)
        assert torch.equal(inputs, before)
