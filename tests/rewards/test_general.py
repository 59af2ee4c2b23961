"""Scores of embedded answers: comparisons, means, cuts, and what has none."""

import pytest
import torch

from melior.models.general import Geometry, embedded, start_general_model
from melior.options import ModelOptions
from melior.records import Candidate, Group, Turn
from melior.rewards import general
from melior.rewards.general import load_scorer


@pytest.fixture
def folder(model_folder, tmp_path):
    options = ModelOptions(model=str(model_folder), dtype="fp32")
    model = start_general_model(options, Geometry(4, beta=0.25), "mean-one", seed=1)
    model.save(tmp_path / "gpm")
    return tmp_path / "gpm"


def scorer(folder, **options):
    options = {"max_tokens": 10**6} | options
    return load_scorer(ModelOptions(model=str(folder), dtype="fp32"), **options)


def group(number, *answers) -> Group:
    asked = (Turn("user", f"what about {number} foxes?"),)
    said = tuple(Candidate((Turn("assistant", one),)) for one in answers)
    return Group(asked, said, {"id": number}, origin=f"f:{number}")


GROUPS = [
    group(1, "hello", "Paris is the capital."),
    group(2, *(f"thank you {'fox ' * i}" for i in range(5))),
    group(3),
    group(4, "hello"),
]


def test_comparisons_are_log_odds_and_scores_their_means(folder):
    own = scorer(folder)
    found = list(own.groups(GROUPS))
    assert [one.facts["id"] for one in found] == [1, 2, 3, 4]
    assert own.remarks() == []
    for one in found:
        logits = torch.tensor(one.facts["comparisons"], dtype=torch.float64)
        if len(one.candidates):
            assert torch.equal(logits, -logits.T)
            scores = [candidate.score for candidate in one.candidates]
            assert scores == pytest.approx(logits.mean(1).tolist())
    first = found[0]
    chat = own.model.chat
    sides = [chat.encode(first.prompt, candidate.response) for candidate in first.candidates]
    (both,) = embedded(own.model, [sides], max_tokens=1000)
    logit = float(both.scores[0, 1]) / 0.25
    assert first.facts["comparisons"][0][1] == pytest.approx(logit, abs=1e-5)
    better, worse = (candidate.score for candidate in first.candidates)
    assert better - worse == pytest.approx(logit, abs=1e-5)  # of two, as a scalar's margin
    assert [candidate.score for candidate in found[3].candidates] == [0.0]
    assert found[2].facts["comparisons"] == []


@pytest.mark.parametrize(("chunk", "budget"), [(1, 16), (2, 80)])
def test_order_and_company_change_nothing(folder, monkeypatch, chunk, budget):
    whole = list(scorer(folder).groups(GROUPS))
    monkeypatch.setattr(general, "CHUNK", chunk)
    parts = list(scorer(folder, max_tokens=budget).groups(reversed(GROUPS)))
    for one, other in zip(whole, reversed(parts), strict=True):
        for row, same in zip(one.facts["comparisons"], other.facts["comparisons"], strict=True):
            assert row == pytest.approx(same, abs=1e-4)


def test_what_is_too_long_loses_its_prompts_start_or_has_no_score(folder):
    said = "thank you fox"
    whole = scorer(folder).model.chat.encode(GROUPS[0].prompt, (Turn("assistant", said),))
    own = scorer(folder, max_length=len(whole.tokens) - whole.n_prompt + 8)
    (found,) = own.groups([group(7, said, "fox " * 60, "hello")])
    scores = [candidate.score for candidate in found.candidates]
    assert scores[1] is None
    assert scores[0] == -scores[2] != 0
    unknown = [[logit is None for logit in row] for row in found.facts["comparisons"]]
    assert unknown == [[False, True, False], [True, False, True], [False, True, False]]
    cut, too_long = own.remarks()
    assert "lost the start of their prompt" in cut
    assert "1 answers" in too_long and "f:7" in too_long
    (none,) = scorer(folder, max_length=8).groups([group(8, "fox " * 60, "dog " * 60)])
    assert [candidate.score for candidate in none.candidates] == [None, None]
    assert none.facts["comparisons"] == [[0.0, None], [None, 0.0]]


def test_equal_answers_are_equal(folder):
    (found,) = scorer(folder).groups([group(1, "hello", "hello", "Paris")])
    logits = found.facts["comparisons"]
    assert logits[0][1] == logits[1][0] == 0
    assert logits[0][2] == pytest.approx(logits[1][2], abs=1e-6)


def test_a_model_that_is_broken_is_said_with_its_row(folder):
    own = scorer(folder)
    with torch.no_grad():
        own.model.reward.core.score.weight.fill_(float("nan"))
    with pytest.raises(ValueError, match="f:1: scores must be finite"):
        list(own.groups(GROUPS[:1]))
