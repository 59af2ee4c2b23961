"""Energy-based marginals: chains, the loss of exact ones, and a small target that is learned."""

import itertools
import math
from functools import partial

import pytest
import torch

from melior import ops
from melior.data.marginal import all_rows
from melior.evaluation.marginal import exact_log_marginals
from melior.losses.marginal import centred, standardised
from melior.models.marginal import ConditionalModel, MarginalModel
from melior.options import OptimConfig
from melior.stages.marginals.energy import Chains, Walkers, energy, inconsistency, squared_energy
from melior.training.loop import descend, fit

LENGTH = 3
ROWS = all_rows(LENGTH, 2)


def target(tokens):
    """Three spins in a row, the first leaning up."""
    x = 2.0 * tokens - 3
    return 0.8 * (x[:, 0] * x[:, 1] + x[:, 1] * x[:, 2]) + 0.4 * x[:, 0]


def started(seed: int = 0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return MarginalModel(LENGTH, 2, width=32), ConditionalModel(LENGTH, 2, width=32)


def learned(steps: int, *, seed: int = 0, alpha: float = 4.0, baseline=standardised):
    marginals, conditionals = started(seed)
    step = descend(
        partial(energy, marginals, conditionals, target, baseline=baseline, alpha=alpha),
        {
            f"{name}.{key}": value
            for name, part in (("marginals", marginals), ("conditionals", conditionals))
            for key, value in part.named_parameters()
        },
        OptimConfig(learning_rate=5e-3, lr_scheduler_type="linear", warmup_ratio=0,
                    max_grad_norm=100),
        total_steps=steps,
    )  # fmt: skip
    batches = Walkers(conditionals, 128, 2, 50, ops.generator(seed))
    return marginals, conditionals, fit(step, itertools.islice(batches, steps))


def test_a_small_target_is_learned_with_all_its_marginals():
    marginals, _, metrics = learned(300)
    queries = torch.tensor(list(itertools.product(range(3), repeat=LENGTH)))
    exact = exact_log_marginals(ROWS, target(ROWS), queries)
    with torch.no_grad():
        found = marginals.normalised(queries).double()
    assert (found - exact).abs().mean() < 0.05
    assert metrics["inconsistency"] < 0.02 and metrics["spread"] < 0.1


def test_without_consistency_the_conditionals_do_not_move():
    """The ablation: alpha of 0 leaves the chains where they began."""
    _, conditionals, _ = learned(3, alpha=0.0)
    for one, other in zip(conditionals.parameters(), started()[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("baseline", [centred, standardised])
def test_the_same_seed_learns_the_same(baseline):
    first, second = (learned(3, baseline=baseline)[0] for _ in range(2))
    for one, other in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_pull_of_an_exact_model_is_only_its_anchor():
    """With `f = log target + c` everywhere, nothing is left but the constant."""
    marginals, conditionals = started()
    [batch] = next(iter(Walkers(conditionals, 16, 1, 1, ops.generator(0))))
    with torch.no_grad():
        for part in (marginals, conditionals):
            for value in part.parameters():
                value.zero_()
        marginals.head.bias.fill_(LENGTH * math.log(2))
    # Zeros everywhere: even conditionals, equal marginals. Each step is off by log 1/2.
    residual = inconsistency(marginals, conditionals, batch)
    assert torch.allclose(residual, torch.full((16,), math.log(0.5)))
    loss, metrics = energy(
        marginals, conditionals, lambda t: torch.zeros(len(t)), batch, baseline=centred
    )
    assert loss.item() == pytest.approx(4 * LENGTH * math.log(2) ** 2, rel=1e-5)
    assert metrics["spread"] == 0.0


def test_targets_that_are_not_finite_get_a_sentence():
    marginals, conditionals = started()
    [batch] = next(iter(Walkers(conditionals, 2, 1, 1, ops.generator(0))))
    with pytest.raises(ValueError, match=r"found -inf of \[.*give what cannot be a floor"):
        energy(
            marginals,
            conditionals,
            lambda t: torch.full((len(t),), -torch.inf),
            batch,
            baseline=centred,
        )


def test_chains_are_moved_on_and_drawn_anew():
    _, conditionals = started()
    found = [
        batch.tokens
        for [batch] in itertools.islice(
            Walkers(conditionals, 64, 1, 2, ops.generator(0)),
            3,
        )
    ]
    assert (found[1] != found[0]).sum(-1).max() == 1
    assert (found[2] != found[1]).sum(-1).max() > 1


def test_chains_that_are_stuck_are_drawn_anew():
    """A block of one position hardly moves equal rows apart; drawing all positions does."""
    walkers = Walkers(ConditionalModel(8, 2, width=8), 64, 1, 1000, ops.generator(0))
    next(iter(walkers))
    walkers.tokens = torch.ones_like(walkers.tokens)
    [batch] = next(iter(walkers))
    assert len(batch.tokens.unique(dim=0)) > 8 + 1  # more than a flip of each position


def test_chains_go_on_from_a_state():
    _, conditionals = started()
    first = Walkers(conditionals, 8, 1, 3, ops.generator(0))
    for _ in zip(range(2), first, strict=False):
        pass
    second = Walkers(conditionals, 8, 1, 3, ops.generator(0))
    second.load_state(first.state())
    second.generator.set_state(first.generator.get_state())
    for one, other in zip(*(list(itertools.islice(w, 4)) for w in (first, second)), strict=True):
        assert torch.equal(one[0].tokens, other[0].tokens)
        assert torch.equal(one[0].order, other[0].order)


class Listed:
    """Log-marginals of the target up to a constant, and its conditionals, by listing."""

    def __init__(self, constant):
        self.constant = constant

    def __call__(self, tokens):
        found = exact_log_marginals(ROWS, target(ROWS), tokens)
        return found + target(ROWS).double().logsumexp(0) + self.constant


def test_squared_energy_is_zero_only_at_the_target_itself(monkeypatch):
    """All that is said of the networks is their values, so that lists of them do."""
    said, given = Listed(0.0), Listed(0.0)

    def conditionals(tokens):
        each = torch.eye(LENGTH, dtype=torch.bool)[None, :, None]
        values = torch.arange(1, 3)[None, None, :, None]
        asked = torch.where(each, values, tokens[:, None, None])
        return given(asked.flatten(0, 2)).view(len(tokens), LENGTH, 2)

    order = torch.arange(LENGTH).expand(8, -1)
    plain = squared_energy.__wrapped__ if hasattr(squared_energy, "__wrapped__") else squared_energy
    monkeypatch.setattr(
        "melior.stages.marginals.energy.inconsistency",
        getattr(inconsistency, "__wrapped__", inconsistency),
    )
    for known in range(LENGTH):
        batch = Chains(ROWS, order, torch.full((8,), known))
        loss, metrics = plain(said, conditionals, target, batch)
        assert loss.item() < 1e-9 and metrics["inconsistency"] < 1e-12
        off, _ = plain(Listed(0.5), conditionals, target, batch)
        assert off.item() == pytest.approx(0.25, rel=1e-5)
