import math

import pytest
import torch

from melior.data.chat import ChatFormat
from melior.models.language import LanguageModel
from melior.options import Sampling
from melior.records import Candidate, Group, Turn
from melior.sampling.candidates import candidates
from tests.tiny import tiny_model, tiny_tokenizer

SAMPLING = Sampling(k=3, max_new_tokens=8)
PROMPTS = [
    Group((Turn("user", text),), (), {"id": i}, f"p.jsonl:{i}")
    for i, text in enumerate(["hello", "what is the capital", "fox", "you", "dog and fox"])
]


@pytest.fixture(scope="module")
def model():
    return LanguageModel(tiny_model(), ChatFormat(tiny_tokenizer()))


def draw(model, prompts, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return list(candidates(model, prompts, SAMPLING, generator=generator, **options))


def test_every_prompt_gets_k_answers_and_keeps_its_facts(model):
    old = Group(PROMPTS[0].prompt, (Candidate((Turn("assistant", "old"),)),), {"id": 9}, "x:1")
    groups = draw(model, [*PROMPTS, old])
    assert [(g.prompt, g.facts, g.origin) for g in groups] == [
        (g.prompt, g.facts, g.origin) for g in [*PROMPTS, old]
    ]
    for group in groups:
        assert len(group.candidates) == 3
        for one in group.candidates:
            (turn,) = one.response
            assert turn.role == "assistant" and turn.content != "old"
            assert one.score is None
            assert one.facts["log_prob"] < 0
            assert 0 < one.facts["n_tokens"] <= 8
            assert one.facts["is_finished"] or one.facts["n_tokens"] == 8


def same(left, right):
    """The same answers, and log-probabilities up to rounding."""
    for one, other in zip(left, right, strict=True):
        assert one.prompt == other.prompt
        for a, b in zip(one.candidates, other.candidates, strict=True):
            assert a.response == b.response
            assert math.isclose(a.facts["log_prob"], b.facts["log_prob"], abs_tol=1e-3)


def test_what_is_drawn_together_changes_no_answer(model):
    whole = draw(model, PROMPTS)
    for max_tokens in (1, 100, 200):
        same(whole, draw(model, PROMPTS, max_tokens=max_tokens))


@pytest.mark.parametrize("start", [1, 2, 3, 5])
def test_going_on_gives_the_answers_of_an_undisturbed_run(model, start):
    same(draw(model, PROMPTS, start=start), draw(model, PROMPTS)[start:])


def test_groups_come_in_order_and_prompts_are_read_only_as_far_as_there_is_room(model):
    asked = []

    def prompts():
        for group in PROMPTS:
            asked.append(group)
            yield group

    generator = torch.Generator().manual_seed(0)
    groups = candidates(model, prompts(), SAMPLING, generator=generator, max_tokens=100)
    assert next(groups).prompt == PROMPTS[0].prompt
    assert len(asked) < len(PROMPTS)
    assert [group.prompt for group in groups] == [group.prompt for group in PROMPTS[1:]]


def test_a_prompt_that_cannot_be_asked_is_named(model):
    long = Group((Turn("user", "fox " * 500),), (), {}, "p.jsonl:7")
    with pytest.raises(ValueError, match=r"p.jsonl:7: .*512 positions"):
        draw(model, [PROMPTS[0], long])
