"""Features kept by what they depend on, and a gate that ends at its best step."""

import pytest
import torch

from melior import ops
from melior.data.batches import TokenGroup, Tokens
from melior.models.gate import AspectGate, GateOptions
from melior.models.heads import load_reward_model
from melior.options import LoopOptions, ModelOptions, OptimConfig
from melior.records import Turn
from melior.stages.ratings import features
from melior.stages.ratings.features import KeptFeatures
from melior.stages.ratings.gate import (
    GateRun,
    PairTable,
    drawn_batches,
    gate_objective,
    gated_scores,
    train_gate,
)
from melior.training.run import Run, read_rows


def token_groups(chat, count):
    found = []
    for number in range(count):
        prompt = (Turn("user", f"what about {number}?"),)
        sides = [chat.encode(prompt, (Turn("assistant", said),)) for said in ("hello", "the fox")]
        answers = tuple(Tokens.of(side, slice(0, None)) for side in sides)
        found.append(TokenGroup(answers, (0.0, 0.0), origin=f"f:{number}"))
    return found


def test_features_are_computed_once_shard_by_shard(model_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "SHARD", 3)
    model = load_reward_model(
        ModelOptions(model=str(model_folder), dtype="fp32"), trainable=False, seed=1
    )
    groups = token_groups(model.chat, 8)
    first = KeptFeatures(model, max_tokens=64).of(groups, "answers")
    assert first.answers.shape == (16, 32)
    assert first.prompts.shape == (8, 32)
    kept = set((tmp_path / "cache" / "features").iterdir())
    assert len(kept) == 3
    runs = []
    model.model.register_forward_pre_hook(lambda *_: runs.append(1))
    model.core.base_model.register_forward_pre_hook(lambda *_: runs.append(1))
    again = KeptFeatures(model, max_tokens=10**6).of(groups, "answers")
    assert torch.equal(first.answers, again.answers)
    assert torch.equal(first.prompts, again.prompts)
    assert not runs
    KeptFeatures(model, max_tokens=64).of(groups[:6] + groups[7:], "answers")
    assert len(set((tmp_path / "cache" / "features").iterdir()) - kept) == 1  # one shard is new
    with torch.no_grad():
        next(model.core.base_model.parameters()).add_(0.01)
    other = KeptFeatures(model, max_tokens=64).of(groups, "answers")
    assert not torch.allclose(first.answers, other.answers)


def world(count, *, seed):
    """Prompts of two types; the first objective counts for one, the second for the other."""
    draw = ops.generator(seed)
    kind = torch.randint(2, (count,), generator=draw)
    left, right = (torch.randn(count, 3, generator=draw).double() for _ in range(2))
    gap = (left - right)[torch.arange(count), kind]
    is_won = gap > 0
    chosen, rejected = left.where(is_won[:, None], right), right.where(is_won[:, None], left)
    prompts = torch.nn.functional.one_hot(kind, 4).float()
    weights = torch.ones(count, dtype=torch.float64)
    return PairTable(chosen, rejected, prompts, weights, tuple(map(str, range(count))))


def trained(tmp_path, train, held_out, *, steps=60, rate=1e-2):
    options = GateOptions(4, 3, hidden=16, layers=1, dropout=0.1, temperature=1.0, scale=3.0)
    gate = AspectGate(options, seed=0)
    loop = LoopOptions(out=str(tmp_path), max_steps=steps, batch_size=64, eval_steps=10)
    optim = OptimConfig(learning_rate=rate, warmup_ratio=0.0)
    what = GateRun(gate, torch.eye(3).double(), optim, loop, {})
    with Run.create(tmp_path, "test", optim, ["test"]) as run:
        best = train_gate(what, run, train, held_out)
    return gate, best


def test_a_gate_learns_which_objective_a_prompt_asks_for(tmp_path):
    held_out = world(300, seed=1)
    gate, best = trained(tmp_path, world(600, seed=0), held_out)
    margin = gated_scores(gate, torch.eye(3).double(), held_out).margin
    assert float((margin > 0).double().mean()) > 0.9
    rows = read_rows(tmp_path)
    losses = {int(row["step"]): row["eval_loss"] for row in rows if "eval_loss" in row}
    assert set(losses) == {0, 10, 20, 30, 40, 50, 60}
    assert best.step == min(losses, key=lambda step: losses[step]) > 0
    assert float(torch.nn.functional.softplus(-margin).mean()) == pytest.approx(losses[best.step])
    assert not gate.training


def test_a_gate_that_only_gets_worse_is_left_as_it_began(tmp_path):
    """Labels are turned round: every step is a step away, and the start is the best."""
    right = world(100, seed=0)
    wrong = PairTable(right.rejected, right.chosen, right.prompts, right.weights, right.origins)
    gate, best = trained(tmp_path, wrong, world(300, seed=1))
    assert best.step == 0
    start = AspectGate(gate.options, seed=0)
    assert all(
        torch.equal(mine, its)
        for mine, its in zip(gate.parameters(), start.parameters(), strict=True)
    )


def test_batches_are_drawn_by_their_number(tmp_path):
    pairs = world(20, seed=0)
    whole = [batch[0].origins for batch in drawn_batches(pairs, 8, 6, seed=3)]
    rest = [batch[0].origins for batch in drawn_batches(pairs, 8, 6, start=4, seed=3)]
    assert whole[4:] == rest
    assert len(set(whole)) == 6
    assert any(len(set(origins)) < 8 for origins in whole)  # with replacement


def test_the_objective_weighs_pairs_and_reports_what_it_looks_at():
    pairs = world(10, seed=0)
    gate = AspectGate(GateOptions(4, 3, hidden=8, layers=1, scale=2.0), seed=0).eval()
    objective = gate_objective(gate, torch.eye(3).double())
    loss, metrics = objective(pairs)
    doubled = PairTable(
        pairs.chosen, pairs.rejected, pairs.prompts, 2 * pairs.weights, pairs.origins
    )
    assert objective(doubled)[0].item() == 2 * loss.item()
    assert metrics["scale"] == torch.tensor(2.0).log().exp().item()
    assert 0 < metrics["entropy"] <= 1.0987
    scores = gated_scores(gate, torch.eye(3).double(), pairs)
    assert metrics["margin"] == float(scores.margin.mean())
