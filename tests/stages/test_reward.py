"""The objective of reward models: exact, in any portions; prompts held out whole."""

import pytest
import torch

from melior.data.batches import GroupBatches, TokenValues, tokenise
from melior.data.examples import of_pair
from melior.models.heads import load_reward_model
from melior.options import ModelOptions
from melior.records import Pair, Turn
from melior.stages.data import hold_out
from melior.stages.reward_models.judge import judgement, metrics_of, ranges
from melior.stages.reward_models.kinds import scalar
from melior.stages.reward_models.train import reward_objective


@pytest.fixture
def model(model_folder):
    found = load_reward_model(ModelOptions(model=str(model_folder), dtype="fp32"), trainable=True)
    found.model.double()
    return found


@pytest.fixture
def pairs(model):
    """Nine pairs of five prompts, with margins and weights of their own."""
    rows = []
    for i in range(9):
        prompt = (Turn("user", f"what about {i // 2}" + " fox" * (i // 2)),)
        chosen, rejected = (Turn("assistant", w * (1 + i % 3)) for w in ("hello ", "dog "))
        pair = Pair(prompt, (chosen,), (rejected,), margin=i / 4, weight=1 + i / 9, origin=f"f:{i}")
        sides = [model.chat.encode(prompt, side) for side in (pair.chosen, pair.rejected)]
        rows.append((of_pair(pair), sides, [(), ()]))
    return tokenise(rows, max_length=512, truncation_mode="drop")[0]


def gradient(model, kind, pairs, budget):
    reference = TokenValues.zeros(pairs)
    loader = GroupBatches(pairs, reference, batch_size=9, max_tokens=budget, seed=0)
    seen, value, metrics = [], 0.0, {}
    objective = reward_objective(kind, model, seen)
    model.model.zero_grad()
    for part in loader.portions(range(9)):
        own, found = objective(part)
        own.backward()
        value += float(own.detach())
        metrics = {name: metrics.get(name, 0.0) + number for name, number in found.items()}
    grads = [p.grad.flatten() for p in model.model.parameters()]
    return value, metrics, torch.cat(grads), ranges(seen)


def test_portions_add_up_to_the_whole_batch(model, pairs):
    kind = scalar(margin_weight=1.0, label_smoothing=0.1, center_rewards_coefficient=0.3)
    whole, parts = (gradient(model, kind, pairs, budget) for budget in (10**6, 40))
    assert whole[0] == pytest.approx(parts[0], rel=1e-9)
    whole[1].pop("num_tokens"), parts[1].pop("num_tokens")  # fewer prefixes are shared
    assert whole[1] == pytest.approx(parts[1], rel=1e-7, abs=1e-9)
    assert (whole[2] - parts[2]).norm() < 1e-7 * whole[2].norm()  # norms are float32
    assert whole[3].keys() == {"min_reward", "mean_reward", "max_reward"}
    assert whole[3] == pytest.approx(parts[3])


def test_the_objective_is_the_papers_on_plain_rewards(model, pairs):
    """Each answer alone through the whole model, the equation by hand, weights and margins in."""
    kind = scalar(margin_weight=0.5, label_smoothing=0.1, center_rewards_coefficient=0.3)
    value, metrics, found, _ = gradient(model, kind, pairs, 200)

    def reward(side):
        hidden = model.core.model(input_ids=torch.tensor([list(side.tokens)])).last_hidden_state
        return model.core.score(hidden)[0, -1, 0]

    model.model.zero_grad()
    wanted, margins, losses = 0.0, [], []
    for pair in pairs:
        better, worse = map(reward, pair.answers)
        u = better - worse - 0.5 * pair.margin
        likelihood = 0.9 * torch.log(1 + torch.exp(-u)) + 0.1 * torch.log(1 + torch.exp(u))
        losses.append(likelihood + 0.3 * (better + worse) ** 2)
        wanted = wanted + pair.weight * losses[-1] / 9
        margins.append(float((better - worse).detach()))
    wanted.backward()
    right = torch.cat([p.grad.flatten() for p in model.model.parameters()])
    assert value == pytest.approx(float(wanted.detach()), rel=1e-6)
    assert (found - right).norm() < 1e-5 * right.norm()
    assert metrics["margin"] == pytest.approx(sum(margins) / 9, rel=1e-6, abs=1e-9)
    assert metrics["accuracy"] == pytest.approx(sum(m > 0 for m in margins) / 9)
    for budget in (40, 10**6):  # held-out rows do not weigh
        held_out = metrics_of(judgement(kind, model, pairs, max_tokens=budget))
        assert held_out["loss"] == pytest.approx(float(sum(losses).detach()) / 9, rel=1e-6)
        assert held_out["margin"] == pytest.approx(metrics["margin"], rel=1e-6, abs=1e-9)
        assert held_out["accuracy"] == pytest.approx(metrics["accuracy"])


@pytest.mark.parametrize(("share", "held"), [(0.0, 0), (0.01, 1), (0.6, 3), (0.99, 4)])
def test_prompts_are_held_out_whole(pairs, share, held):
    kept, apart = hold_out(pairs, share, seed=0)

    def prompts(some):
        return {pair.answers[0].tokens[: pair.answers[0].n_prompt].tobytes() for pair in some}

    assert len(kept) + len(apart) == 9
    assert len(prompts(apart)) == held
    assert not prompts(kept) & prompts(apart)
    assert hold_out(pairs, share, seed=0) == (kept, apart)


def test_a_single_prompt_is_trained_on(pairs):
    assert hold_out(pairs[:2], 0.5, seed=0) == (pairs[:2], [])
