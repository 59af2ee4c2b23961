"""Outcomes spelled letter by letter: shares that sum to 1, no loss of exact sums, and a target."""

import itertools

import pytest
import torch

from melior import ops
from melior.data.marginal import all_rows
from melior.envs.flow import Strings
from melior.models.flow import start_flow_model, towards
from melior.models.flow_outcomes import Speller
from melior.options import OptimConfig
from melior.stages.flows.spelled import (
    SpelledEdges,
    amortise_spelled,
    log_spelled,
    spelled,
    spelled_edges,
)
from melior.training.loop import descend, fit
from tests.claims.chances import fits

ENV = Strings(3, 2)
WHOLE = all_rows(3, 2)
BEGUN = torch.tensor([[0, 0, 0], [2, 0, 0], [1, 2, 0], [2, 1, 2]])


def speller(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Speller(3, 2, width=16)


def log_reward(objects):
    return (objects * torch.tensor([0.3, -0.8, 0.5])).sum(-1)


def completions(begun):
    """All strings that begin so."""
    return WHOLE[((begun == WHOLE) | (begun == 0)).all(-1)]


@pytest.mark.parametrize("row", range(4))
def test_shares_of_all_that_begin_so_sum_to_one(row):
    whole = completions(BEGUN[row])
    found = log_spelled(speller(), BEGUN[row].expand(len(whole), -1), whole)
    assert found.exp().sum().item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("exploration", [0.0, 0.4])
def test_letters_are_drawn_by_their_shares(exploration):
    predictor, begun, n = speller(1), BEGUN[1], 4000
    found = spelled(
        predictor, begun.expand(n, -1), exploration=exploration, generator=ops.generator(0)
    )
    assert (found[:, 0] == 2).all()
    chances = []
    for whole in completions(begun):
        p = 1.0
        for place in (1, 2):
            written = torch.where(torch.arange(3) < place, whole, 0)[None]
            own = predictor.following(begun[None], written)[0, place].double().softmax(-1)
            p *= (1 - exploration) * own[whole[place] - 1].item() + exploration / 2
        chances.append(p)
    rows = (found[:, 1] - 1) * 2 + found[:, 2] - 1
    assert fits(torch.bincount(rows, minlength=4), torch.tensor(chances, dtype=torch.float64))


def all_edges():
    """Every edge with every outcome that it may serve."""
    rows = []
    for length in range(4):
        for letters in itertools.product((1, 2), repeat=length):
            state = torch.tensor([*letters, *[0] * (3 - length)])
            actions = [2] if length == 3 else [0, 1]
            for action in actions:
                after = state.clone()
                if action < 2:
                    after[length] = action + 1
                rows += [(state, action, after, whole) for whole in completions(after)]
    state, action, after, whole = zip(*rows, strict=True)
    stacked = torch.stack
    return SpelledEdges(stacked(state), torch.tensor(action), stacked(after), stacked(whole), WHOLE)


class Exact(Speller):
    """Sums and shares of a network's flows, by listing."""

    def __init__(self, model):
        super().__init__(3, 2, width=1)
        self.batch = all_edges()
        read = towards(model, ENV, self.batch.outcomes)
        flows = read(self.batch.states, torch.arange(len(self.batch.states)))
        taken = flows.log_forward.gather(-1, self.batch.actions[:, None])[:, 0]
        self.weight = (log_reward(self.batch.outcomes) + flows.log_flow + taken).detach()

    def log_sum(self, features):
        states = torch.stack([self._state(row) for row in features])
        return torch.stack(
            [
                torch.stack([self._of(state, action).logsumexp(0) for action in range(3)])
                for state in states
            ]
        )

    def following(self, begun, written):
        n, d = begun.shape
        logits = torch.zeros(n, d, 2)
        for row, place, letter in itertools.product(range(n), range(d), range(2)):
            own = (self.batch.after == begun[row]).all(-1)
            own &= (self.batch.outcomes[:, :place] == written[row, :place]).all(-1)
            own &= self.batch.outcomes[:, place] == letter + 1
            logits[row, place, letter] = self.weight[own].logsumexp(0)
        return logits

    def _of(self, state, action):
        own = (self.batch.states == state).all(-1) & (self.batch.actions == action)
        return self.weight[own]

    def _state(self, features):
        letters = features.view(3, 2)
        return torch.where(letters.sum(-1) > 0, letters.argmax(-1) + 1, 0)


def test_exact_sums_and_shares_have_no_loss():
    model = start_flow_model(ENV, seed=3, is_conditioned=True, width=8)
    exact = Exact(model)
    loss, _ = amortise_spelled(ENV, model, exact, log_reward, exact.batch, best=0.0)
    assert loss.item() < 1e-10


def test_what_is_little_worth_is_not_held_up_as_many_strings_are_so():
    """Below -15 each, yet together above it: there are 8 of them."""
    model = start_flow_model(ENV, seed=3, is_conditioned=True, width=8)
    exact, by = Exact(model), -14.5
    exact.weight += by
    assert -17 < exact.weight.min() < -15.5
    loss, _ = amortise_spelled(
        ENV, model, exact, lambda objects: log_reward(objects) + by, exact.batch, best=0.0
    )
    assert loss.item() < 1e-9


def test_edges_lead_where_their_actions_do_and_serve_what_begins_so():
    batches = spelled_edges(
        ENV, speller(), batch_size=16, exploration=0.2, generator=ops.generator(0)
    )
    [batch] = next(batches)
    assert len(batch.states) == 16 * 4 and (batch.outcomes > 0).all()
    goes_on = batch.actions < 2
    step = ENV.step(batch.states[goes_on], batch.actions[goes_on])
    assert torch.equal(batch.after[goes_on], step)
    assert torch.equal(batch.after[~goes_on], batch.states[~goes_on])
    assert ENV.reachable(batch.after, batch.outcomes).all()


def test_a_factor_of_the_reward_changes_nothing():
    model, predictor = start_flow_model(ENV, seed=3, is_conditioned=True, width=8), speller()
    losses = [
        amortise_spelled(
            ENV, model, predictor, lambda objects, by=by: log_reward(objects) + by, all_edges(),
            best=by,
        )[0].item()
        for by in (0.0, -60.0)
    ]  # fmt: skip
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_only_the_predictor_learns():
    model = start_flow_model(ENV, seed=3, is_conditioned=True, width=8)
    predictor = speller()
    [batch] = next(
        spelled_edges(ENV, predictor, batch_size=4, exploration=0.0, generator=ops.generator(0))
    )
    loss, _ = amortise_spelled(ENV, model, predictor, log_reward, batch, best=1.0)
    loss.backward()
    assert all(value.grad is None for value in model.parameters())
    assert all(value.grad.abs().sum() > 0 for value in predictor.parameters())


def test_learning_on_what_it_draws_itself_arrives_at_the_sums():
    """Of any flows, listed: at the start, and after a letter."""
    model, predictor = start_flow_model(ENV, seed=3, is_conditioned=True, width=8), speller(2)
    optim = OptimConfig(learning_rate=1e-2, lr_scheduler_type="linear", warmup_ratio=0)
    step = descend(
        lambda batch: amortise_spelled(ENV, model, predictor, log_reward, batch, best=0.0),
        dict(predictor.named_parameters()), optim, total_steps=120,
    )  # fmt: skip
    batches = spelled_edges(
        ENV, predictor, batch_size=16, exploration=0.1, generator=ops.generator(0)
    )
    fit(step, itertools.islice(batches, 120))
    features = ENV.features(BEGUN[:2])
    with torch.no_grad():
        found = predictor.log_sum(features)[:, :2]
    assert torch.allclose(found, Exact(model).log_sum(features)[:, :2], atol=0.15)
