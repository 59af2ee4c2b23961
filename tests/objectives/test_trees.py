"""Trees of steps: what paths share is computed once, and each path's numbers stay its own."""

import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from melior.data.batches import GroupBatches, TokenValues
from melior.data.steps import token_steps
from melior.models.loading import load
from melior.options import DataOptions, ModelOptions
from melior.stages.data import prepare
from melior.stages.preference import group_objective, read_answers
from melior.stages.reference import token_log_probs
from tests.objectives.rows import kind_of

BETA = 0.7
ROOT = "Step 1: the quick brown fox jumps over the lazy dog, and so on and on."
FORKS = ("Step 2: hello there, how are you today? I am fine.", "Step 2: Paris is the capital.")
LEAVES = ("Step 3: thank you!", "Step 3: the lazy fox.", "Step 3: I am fine, thank you, and you?")
PATHS = (
    ([ROOT, FORKS[0], LEAVES[0]], 90.0),
    ([ROOT, FORKS[0], LEAVES[1]], 20.0),
    ([ROOT, FORKS[1], LEAVES[2]], -40.0),
    ([ROOT, FORKS[1]], 20.0),
)
"""A root, two forks of it, and leaves on these; one path ends early, two score the same."""


@pytest.fixture
def model(llama):
    found = load(ModelOptions(model=str(llama), dtype="fp32"), trainable=True)
    found.model.double()
    return found


def groups_of(model, tmp_path, *rows):
    path = tmp_path / "trees.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return prepare([str(path)], model.chat, DataOptions((str(path),)), data="lists", seed=0).groups


def tree(prompt: str = "what is the capital of France?") -> dict:
    found = [{"response": steps, "score": score} for steps, score in PATHS]
    return {"prompt": prompt, "response_list": found}


def plain(model, answer):
    """Log-probabilities and last hidden states of a sequence's scored tokens, by itself."""
    ids, mask = torch.tensor([list(answer.tokens)]), torch.tensor(list(answer.mask)).bool()
    out = model.core(input_ids=ids, output_hidden_states=True)
    every = out.logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).squeeze(-1)
    return every[mask[1:]], out.hidden_states[-1][0][mask]


def batch_of(groups, reference, **changes):
    settings = {"batch_size": len(groups), "max_tokens": 10**6, "seed": 0} | changes
    return GroupBatches(groups, reference, **settings).portions(range(len(groups)))


def test_a_shared_step_is_computed_once(model, tmp_path):
    groups = groups_of(model, tmp_path, tree())
    (part,) = batch_of(groups, TokenValues.zeros(groups))
    paths = [tuple(answer.tokens) for answer in groups[0].answers]
    distinct = {path[:end] for path in paths for end in range(1, len(path) + 1)}
    # Stretches under 16 tokens are repeated, as a segment costs more than it saves: here only those
    # after a fork in the middle of a step, once for each of two forks.
    assert len(distinct) <= len(part.forest.tokens) < len(distinct) + 2 * 16
    assert len(part.forest.tokens) < 0.6 * sum(map(len, paths))
    assert len(part.forest.targets) < 0.6 * sum(answer.n_scored for answer in groups[0].answers)


def test_step_sums_of_a_tree_are_those_of_its_paths(model, tmp_path):
    groups = groups_of(model, tmp_path, tree())
    (part,) = batch_of(groups, TokenValues.zeros(groups))
    answers = read_answers(model, part)
    found = answers.step_sums(answers.tokens)
    for column, answer in enumerate(groups[0].answers):
        log_probs, _ = plain(model, answer)
        text = [model.chat.pieces([token])[0] for token in answer.tokens]
        scored = [piece for piece, is_scored in zip(text, answer.mask, strict=True) if is_scored]
        assert "".join(scored).startswith(ROOT)
        steps = torch.tensor(answer.steps.tolist())
        assert steps.tolist() == token_steps(scored, _steps_in("".join(scored)))
        for step in range(found.shape[-1]):
            wanted = log_probs[steps == step].sum()
            torch.testing.assert_close(found[0, column, step], wanted, rtol=1e-9, atol=1e-9)
    shared = found[0, :, 0]
    assert torch.allclose(shared, shared[0])  # the same step after the same prompt


def _steps_in(said: str) -> list[str]:
    return [step for step in (ROOT, *FORKS, *LEAVES) if step in said]


def by_the_paper(model, group, reference, *, adaptive: bool):
    """TPO's loss of a list, path by path and pair by pair."""
    rows = [(*plain(model, answer), answer.steps.tolist() or [0] * answer.n_scored)
            for answer in group.answers]  # fmt: skip
    rewards, states = [], []
    for (policy, hidden, steps), start in zip(rows, reference, strict=True):
        at = [torch.tensor([step == k for step in steps]) for k in range(max(steps) + 1)]
        rewards.append([BETA * (policy - start)[own].sum() for own in at])
        states.append([hidden[own].mean(0).detach() for own in at])
    common = torch.stack([state for own in states for state in own]).mean(0)
    states = [[state - common for state in own] for own in states]
    totals = [sum(own) for own in rewards]
    order = sorted(range(len(totals)), key=lambda i: (-float(totals[i].detach()), i))
    rank = {i: place for place, i in enumerate(order, 1)}
    low, high = min(group.scores), max(group.scores)
    psi = [(score - low) / (high - low) for score in group.scores]
    loss = 0.0
    for i in range(len(psi)):
        for j in range(len(psi)):
            if psi[i] <= psi[j]:
                continue
            weight = abs(2 ** psi[i] - 2 ** psi[j]) * abs(
                1 / math.log(1 + rank[i]) - 1 / math.log(1 + rank[j])
            )
            margin = totals[i] - totals[j]
            if adaptive:
                margin = sum(
                    _unlike(states, i, j, k) * (_at(rewards, i, k) - _at(rewards, j, k))
                    for k in range(max(map(len, rewards)))
                )
            loss = loss + weight * F.softplus(-margin)
    return loss


def _at(values, i, k):
    return values[i][k] if k < len(values[i]) else 0.0


def _unlike(states, i, j, k):
    if k >= min(len(states[i]), len(states[j])):
        return 1.0
    return 1 - F.cosine_similarity(states[i][k], states[j][k], dim=0)


@pytest.mark.parametrize("adaptive", [True, False])
def test_the_loss_and_its_gradient_are_the_papers_on_each_path_alone(adaptive, model, tmp_path):
    groups = groups_of(model, tmp_path, tree(), tree("who are you?"))
    drawn = torch.Generator().manual_seed(0)
    said = token_log_probs(model, groups, max_tokens=10**6)
    noise = torch.rand(len(said.values), generator=drawn, dtype=torch.float64)
    reference = replace(said, values=said.values + noise - 0.5)
    method = kind_of("tpo")(beta=BETA, adaptive_steps=adaptive).method()

    def gradient(loss):
        model.model.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in model.model.parameters()])

    (part,) = batch_of(groups, reference)
    loss, _ = group_objective(model, method)(part)
    wanted = 0.0
    for place, group in enumerate(groups):
        starts = reference.of([place]).split(reference.lengths[place])
        wanted = wanted + by_the_paper(model, group, starts, adaptive=adaptive) / len(groups)
    assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-9)
    found, right = gradient(loss), gradient(wanted)
    # Norms of the model are computed in float32 whatever its dtype.
    assert (found - right).norm() < 1e-6 * right.norm()


def test_a_list_without_steps_is_not_weighed_by_those_of_its_neighbours(model, tmp_path):
    """Or the loss would depend on how a batch is cut into portions."""
    bare = {"prompt": "hello?", "response_list": [
        {"response": "I am fine, thank you.", "score": 1}, {"response": "the dog", "score": 0},
    ]}  # fmt: skip
    groups = groups_of(model, tmp_path, tree(), bare)
    said = token_log_probs(model, groups, max_tokens=10**6)
    reference = replace(said, values=1.1 * said.values)
    objective = group_objective(model, kind_of("tpo")(beta=BETA).method())
    (together,) = batch_of(groups, reference)
    apart = batch_of(groups, reference, max_tokens=16)
    assert len(apart) == 2
    shares = [float(objective(part)[0].detach()) for part in apart]
    assert float(objective(together)[0].detach()) == pytest.approx(sum(shares), rel=1e-12)
    plain_loss, _ = group_objective(
        model, kind_of("tpo")(beta=BETA, adaptive_steps=False).method()
    )(apart[1])
    assert float(plain_loss.detach()) == pytest.approx(shares[1], rel=1e-12)


def test_absent_answers_are_in_no_accuracy(model, tmp_path):
    """A list of two beside one of four: scores below 0 must not lose against the void."""
    low = {"prompt": "hello?", "response_list": [
        {"response": "I am fine, thank you.", "score": -1}, {"response": "the dog", "score": -2},
    ]}  # fmt: skip
    groups = groups_of(model, tmp_path, tree(), low)
    said = token_log_probs(model, groups, max_tokens=10**6)
    # Every answer's reward is its score: all lists are ranked right.
    values = [said.of([place]) for place in range(2)]
    for place, group in enumerate(groups):
        parts = values[place].split(said.lengths[place])
        moved = [part - score / len(part) for part, score in zip(parts, group.scores, strict=True)]
        values[place] = torch.cat(moved)
    reference = replace(said, values=torch.cat(values))
    (part,) = batch_of(groups, reference)
    _, metrics = group_objective(model, kind_of("plackett-luce")(beta=1.0).method())(part)
    assert metrics["rewards/accuracies"] == pytest.approx(1.0)
    assert metrics["rewards/chosen"] == pytest.approx((90 - 1) / 2, rel=1e-6)
    assert metrics["rewards/rejected"] == pytest.approx((-40 - 2) / 2, rel=1e-6)
