"""Marginals of rows: passes that miss nobody, two stages that arrive, and rivals' gradients."""

import itertools
from functools import partial

import pytest
import torch

from melior import ops
from melior.data.marginal import all_rows
from melior.evaluation.marginal import chained_log_joint, divergence, exact_log_marginals
from melior.losses.marginal import centred
from melior.models.marginal import ConditionalModel, MarginalModel
from melior.options import OptimConfig
from melior.sampling.marginal import log_likelihood
from melior.stages.marginals.autoregressive import (
    Draws,
    all_steps,
    at_step,
    draws,
    one_order,
    one_step,
)
from melior.stages.marginals.energy import Chains, Walkers
from melior.stages.marginals.likelihood import Shuffled, distil, likelihood, with_chains
from melior.training.loop import descend, fit

LENGTH = 3
ROWS = all_rows(LENGTH, 2)
OPTIM = OptimConfig(
    learning_rate=5e-3, lr_scheduler_type="linear", warmup_ratio=0, max_grad_norm=100
)


def conditional(seed=0, length=LENGTH, n_values=2):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ConditionalModel(length, n_values, width=32)


def test_a_pass_reads_each_row_once_and_goes_on_from_a_state():
    first = Shuffled(torch.arange(1, 8)[:, None], 3, ops.generator(0))
    seen = [batch.tokens[:, 0].tolist() for [batch] in itertools.islice(first, 3)]
    assert [len(own) for own in seen] == [3, 3, 1]
    assert sorted(itertools.chain(*seen)) == list(range(1, 8))
    second = Shuffled(first.rows, 3, ops.generator(1))
    second.load_state(first.state())
    second.generator.set_state(first.generator.get_state())
    for one, other in zip(*(list(itertools.islice(w, 4)) for w in (first, second)), strict=True):
        assert torch.equal(one[0].tokens, other[0].tokens)
        assert torch.equal(one[0].known, other[0].known)


def test_both_stages_learn_the_marginals_of_rows():
    chances = torch.tensor([8, 1, 2, 1, 1, 4, 1, 6], dtype=torch.float64)
    data = ROWS.repeat_interleave(chances.long() * 8, 0)
    model, marginals = conditional(), MarginalModel(LENGTH, 2, width=32)
    rows = Shuffled(data, 64, ops.generator(0))
    first = descend(
        partial(likelihood, model), dict(model.named_parameters()), OPTIM, total_steps=200
    )
    fit(first, itertools.islice(rows, 200))
    joint = (chances / chances.sum()).log()
    drawn = chained_log_joint(model, torch.arange(LENGTH), 2)
    assert divergence(joint, drawn.detach()) < 0.03
    second = descend(
        partial(distil, marginals, model), dict(marginals.named_parameters()), OPTIM,
        total_steps=200,
    )  # fmt: skip
    before = [value.clone() for value in model.parameters()]
    chains = Walkers(model, 64, 1, 50, ops.generator(1))
    fit(second, itertools.islice(with_chains(rows, chains), 200))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    queries = torch.tensor(list(itertools.product(range(3), repeat=LENGTH)))
    with torch.no_grad():
        said = marginals.normalised(queries).double()
    assert (said - exact_log_marginals(ROWS, joint, queries)).abs().mean() < 0.1


def test_the_chained_joint_is_that_of_every_order():
    model = conditional(1, length=3, n_values=3)
    rows = all_rows(3, 3)
    for order in itertools.permutations(range(3)):
        rank = torch.tensor(order).argsort().expand(len(rows), -1)
        wanted = log_likelihood(model, rows, rank)
        assert torch.allclose(chained_log_joint(model, torch.tensor(order), 3), wanted, atol=1e-6)


def test_steps_from_left_to_right_add_up_to_the_likelihood():
    model = conditional(2)
    total = sum(at_step(model, ROWS, torch.full((8,), step)) for step in range(LENGTH))
    order = torch.arange(LENGTH).expand(8, -1)
    assert torch.allclose(total.double(), log_likelihood(model, ROWS, order), atol=1e-6)


def test_one_order_is_unbiased_and_its_gradient_is_that_of_finite_differences():
    """Over all rows by their chances and all steps: the likelihood as it is computed by listing."""
    model = conditional(5).double()
    chances = torch.tensor([8, 1, 2, 1, 1, 4, 1, 6], dtype=torch.float64) / 24
    order = torch.arange(LENGTH)

    def listed():
        return -float((chances * chained_log_joint(model, order, 2)).sum())

    batches = [
        Chains(row[None], order[None], torch.tensor([step]))
        for row in ROWS
        for step in range(LENGTH)
    ]
    weights = chances.repeat_interleave(LENGTH) / LENGTH
    losses = torch.stack([one_order(model, batch)[0] for batch in batches])
    found = (weights * losses).sum()
    assert found.item() == pytest.approx(listed(), rel=1e-12)
    slope = gradient(found, model)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        way = torch.randn_like(slope)
    start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    ends = []
    for step in (1e-5, -1e-5):
        torch.nn.utils.vector_to_parameters(start + step * way, model.parameters())
        ends.append(listed())
    assert (ends[0] - ends[1]) / 2e-5 == pytest.approx(float(slope @ way), rel=1e-6)


def test_one_order_learns_rows_down_to_their_entropy():
    chances = torch.tensor([8, 1, 2, 1, 1, 4, 1, 6], dtype=torch.float64)
    rows = Shuffled(ROWS.repeat_interleave(chances.long() * 8, 0), 64, ops.generator(0))
    model = conditional(6)
    step = descend(
        partial(one_order, model), dict(model.named_parameters()), OPTIM, total_steps=200
    )
    fit(step, itertools.islice(rows, 200))
    joint = (chances / chances.sum()).log()
    said = log_likelihood(model, ROWS, torch.arange(LENGTH).expand(8, -1))
    entropy, nll = (-float((joint.exp() * own).sum()) for own in (joint, said))
    assert entropy < nll < entropy + 0.02


def gradient(loss, model):
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return torch.cat([grad.flatten() for grad in grads]).double()


@pytest.mark.parametrize("name", ["all steps", "one step"])
def test_the_mean_gradient_of_rivals_is_that_of_the_divergence(name):
    """Over all rows by their chances, and over all steps: REINFORCE against autograd's KL."""
    model = conditional(3)
    energy = torch.tensor([0.0, 1.0, -0.5, 0.3, 0.2, -1.0, 0.7, 0.1])

    def target(rows):
        return energy[((rows - 1) * torch.tensor([4, 2, 1])).sum(-1)]

    log_p = chained_log_joint.__wrapped__(model, torch.arange(LENGTH), 2)
    exact = gradient((log_p.exp() * (log_p - energy.double())).sum(), model)
    chances, found = log_p.detach().exp(), torch.zeros_like(exact)
    pairs = [(0, 0)] if name == "all steps" else itertools.product(range(LENGTH), repeat=2)
    pairs = list(pairs)
    objective = all_steps if name == "all steps" else one_step
    for judged, moved in pairs:
        for row, p in zip(ROWS, chances, strict=True):
            batch = Draws(row[None], torch.tensor([judged]), torch.tensor([moved]))
            loss, _ = objective(model, target, batch, baseline=lambda w: w)
            found += p * gradient(loss, model) / len(pairs)
    assert torch.allclose(found, exact, atol=1e-5)


def test_draws_are_those_of_the_chain():
    model, n = conditional(4), 4000
    [batch] = next(draws(model, count=n, generator=ops.generator(0)))
    rows = ((batch.tokens - 1) * torch.tensor([4, 2, 1])).sum(-1)
    from tests.claims.chances import fits

    chances = chained_log_joint(model, torch.arange(LENGTH), 2).exp()
    assert fits(torch.bincount(rows, minlength=8), chances.detach())
    assert centred(torch.tensor([1.0, 3.0])).tolist() == [-1, 1]
