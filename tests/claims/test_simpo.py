"""SimPO's world: expectations against enumeration, the sampler against its exact distribution."""

from itertools import product

import pytest
import torch

from melior import ops
from melior.claims import simpo_world
from tests.claims.chances import fits


@pytest.fixture
def small(monkeypatch):
    """A world whose answers can be listed: 2 prompts, 4 tokens, 3 positions."""
    for name, value in {"PROMPTS": 2, "VOCABULARY": 4, "POSITIONS": 3}.items():
        monkeypatch.setattr(simpo_world, name, value)


def logits(seed: int = 0) -> torch.Tensor:
    shape = (
        simpo_world.PROMPTS,
        simpo_world.POSITIONS,
        simpo_world.VOCABULARY,
        simpo_world.VOCABULARY,
    )
    return torch.randn(shape, generator=ops.generator(seed), dtype=torch.float64)


def answers() -> list[tuple[int, ...]]:
    """Every answer: words without an end that fill all positions, or words and an end."""
    words = range(1, simpo_world.VOCABULARY)
    ended = [(*w, 0) for n in range(1, simpo_world.POSITIONS) for w in product(words, repeat=n)]
    return [*ended, *product(words, repeat=simpo_world.POSITIONS)]


def chance(table: torch.Tensor, prompt: int, answer: tuple[int, ...]) -> float:
    """The probability of an answer, token by token, with no end at the first position."""
    total, before = 1.0, 0
    for position, token in enumerate(answer):
        weights = table[prompt, position, before].exp()
        if position == 0:
            weights = torch.cat([torch.zeros(1), weights[1:]])
        total *= float(weights[token] / weights.sum())
        before = token
    return total


def quality(prompt: int, answer: tuple[int, ...]) -> float:
    words = [token for token in answer if token != 0]
    return sum((token + prompt) % 3 == 0 for token in words) / len(words)


def test_expected_quality_and_length_are_those_of_all_answers(small):
    table = logits()
    wanted_quality = wanted_length = total = 0.0
    for prompt, answer in product(range(simpo_world.PROMPTS), answers()):
        share = chance(table, prompt, answer) / simpo_world.PROMPTS
        wanted_quality += share * quality(prompt, answer)
        wanted_length += share * len(answer)
        total += share
    assert total == pytest.approx(1)
    found_quality, found_length = simpo_world.expected_quality_and_length(table[None])
    assert found_quality.item() == pytest.approx(wanted_quality, rel=1e-12)
    assert found_length.item() == pytest.approx(wanted_length, rel=1e-12)


def test_answers_are_sampled_from_the_policy_and_scored_as_sampled(small):
    """Chi-square over all answers to each prompt; a false alarm in 10,000 runs."""
    table, n = logits(1), 20_000
    drawn = simpo_world.sampled(table, n, ops.generator(2))
    scores = simpo_world.log_prob(table[None], simpo_world.stacked([drawn]))[0]
    counts = dict.fromkeys(product(range(simpo_world.PROMPTS), answers()), 0)
    for i in range(n):
        places = [place for place in drawn.places[i].tolist() if place >= 0]
        answer = tuple(place % simpo_world.VOCABULARY for place in places)
        counts[i % simpo_world.PROMPTS, answer] += 1
        if i < 200:
            assert drawn.lengths[i] == len(answer)
            assert drawn.quality[i].item() == pytest.approx(
                quality(i % simpo_world.PROMPTS, answer)
            )
            wanted = chance(table, i % simpo_world.PROMPTS, answer)
            assert scores[i].exp().item() == pytest.approx(wanted)
    exact = [chance(table, prompt, answer) / simpo_world.PROMPTS for prompt, answer in counts]
    assert fits(list(counts.values()), exact)


def test_the_world_is_the_one_that_is_described():
    world = simpo_world.drawn_world(ops.generator(100))
    found_quality, length = simpo_world.expected_quality_and_length(world.start[None])
    assert found_quality.item() == pytest.approx(1 / 3, abs=0.02)
    assert length.item() == pytest.approx(10.4, abs=0.2)
    for pairs, n in ((world.train, 4000), (world.test, 2000)):
        assert pairs.chosen.places.shape == (n, 16)
    assert (world.test.chosen.quality >= world.test.rejected.quality).all()
    longer = (world.train.chosen.lengths - world.train.rejected.lengths).mean().item()
    better = (world.train.chosen.quality - world.train.rejected.quality).mean().item()
    assert longer > 1.5  # labels favour length ...
    assert better > 0.1  # ... and quality


def test_labels_are_bradley_terry():
    """Within a band of the logit, the share that wins is its sigmoid; a false alarm in 10,000."""
    dice = ops.generator(3)
    hits = expected = variance = 0.0
    for _ in range(5):
        world = simpo_world.drawn_world(dice)
        chosen, rejected = world.train.chosen, world.train.rejected
        logit = 8 * (chosen.quality - rejected.quality) + 0.3 * (chosen.lengths - rejected.lengths)
        size = logit.abs()
        band = (size > 0.5) & (size < 2)
        hits += float((logit[band] > 0).sum())
        expected += float(size[band].sigmoid().sum())
        variance += float((size[band].sigmoid() * (-size[band]).sigmoid()).sum())
    assert abs(hits - expected) < 3.9 * variance**0.5


def test_reward_of_dpo_is_zero_at_the_start():
    world = simpo_world.stacked_worlds([simpo_world.drawn_world(ops.generator(100))])
    found = simpo_world.judged(world.start, world)
    assert found["right by DPO's reward"].tolist() == [0.0]  # all ties
    assert found["right by p"][0] == pytest.approx(0.5, abs=0.06)
