"""Scores of a reward model: by order, in any company, cut where they must be."""

import pytest
import torch

from melior.models.heads import load_reward_model, save_reward_model
from melior.options import ModelOptions
from melior.records import Candidate, Group, Pair, Turn
from melior.rewards import scalar
from melior.rewards.scalar import ScalarScorer, load_scorer


@pytest.fixture
def folder(model_folder, tmp_path):
    options = ModelOptions(model=str(model_folder), dtype="fp32")
    save_reward_model(load_reward_model(options, trainable=False), tmp_path / "rm")
    return tmp_path / "rm"


def scorer(folder, **options) -> ScalarScorer:
    return load_scorer(
        ModelOptions(model=str(folder), dtype="fp32"), **({"max_tokens": 10**6} | options)
    )


def group(number, *answers) -> Group:
    asked = (Turn("user", f"what about {number} foxes?"),)
    said = tuple(Candidate((Turn("assistant", one),)) for one in answers)
    return Group(asked, said, origin=f"f:{number}")


GROUPS = [
    group(1, "hello", "Paris is the capital."),
    group(2, *(f"thank you {'fox ' * i}" for i in range(5))),
    group(3),
    group(4, "hello"),
]


def scores(groups):
    return [[one.score for one in group.candidates] for group in groups]


@pytest.mark.parametrize(("chunk", "budget"), [(1, 16), (2, 80), (256, 10**6)])
def test_order_and_company_change_nothing(folder, monkeypatch, chunk, budget):
    whole = scores(scorer(folder).groups(GROUPS))
    assert [len(row) for row in whole] == [2, 5, 0, 1]
    monkeypatch.setattr(scalar, "CHUNK", chunk)
    found = scores(reversed(list(scorer(folder, max_tokens=budget).groups(reversed(GROUPS)))))
    for left, right in zip(whole, found, strict=True):
        assert left == pytest.approx(right, abs=1e-5)


def test_a_pair_is_scored_as_the_group_of_its_answers(folder):
    one = GROUPS[0]
    pair = Pair(one.prompt, *(it.response for it in one.candidates))
    ((found, chosen, rejected),) = scorer(folder).pairs([pair])
    assert found is pair
    assert [chosen, rejected] == pytest.approx(scores(scorer(folder).groups([one]))[0], abs=1e-6)


def test_a_long_prompt_loses_its_start_and_a_long_answer_its_score(folder):
    ask = (Turn("user", "never mind " * 20 + "what about the fox?"),)
    said = [(Turn("assistant", "hello"),), (Turn("assistant", "fox " * 60),)]
    long = Group(ask, tuple(map(Candidate, said)), origin="f:7")
    short = scorer(folder, max_length=40)
    (found,) = short.groups([long])
    assert found.candidates[1].score is None
    assert short.remarks() == [
        "1 conversations longer than 40 tokens lost the start of their prompt",
        "1 answers longer than 40 tokens by themselves have no score (first f:7)",
    ]
    tokens = short.model.chat.encode(ask, said[0]).tokens[-40:]
    with torch.no_grad():
        hidden = short.model.core.model(input_ids=torch.tensor([tokens])).last_hidden_state
        wanted = short.model.core.score(hidden)[0, -1, 0]
    assert found.candidates[0].score == pytest.approx(float(wanted), abs=1e-5)
    assert scorer(folder, max_length=10**6).fitting.limit == 512  # of the model
    assert scorer(folder).remarks() == []


def test_a_model_without_a_trained_head_is_refused(model_folder):
    with pytest.raises(ValueError, match=r"needs a trained reward model.*melior train-reward"):
        scorer(model_folder)


def test_a_reward_that_is_no_number_is_refused_with_its_row(folder):
    broken = scorer(folder)
    with torch.no_grad():
        broken.model.core.score.weight.fill_(float("inf"))
    with pytest.raises(ValueError, match=r"f:1: a reward must be finite"):
        list(broken.groups(GROUPS))
