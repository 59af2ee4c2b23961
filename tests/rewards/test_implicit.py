"""Implicit rewards: the log-ratio of two models, answer by answer, as transformers gives it."""

import pytest
import torch

from melior.models.loading import load, save_model
from melior.options import ModelOptions
from melior.records import Candidate, Group, Turn
from melior.rewards import implicit
from melior.rewards.implicit import load_implicit
from tests.tiny import tiny_folder, tiny_model, tiny_tokenizer

HELD = ModelOptions(model="", dtype="fp32", device="cpu")


def group(number, *answers):
    asked = (Turn("user", f"what about {number} foxes?"),)
    said = tuple(Candidate((Turn("assistant", one),)) for one in answers)
    return Group(asked, said, origin=f"f:{number}")


GROUPS = [
    group(1, "hello", "Paris is the capital."),
    group(2),
    group(3, *(f"thank you {'fox ' * i}" for i in range(4))),
]


@pytest.fixture
def names(tmp_path):
    """Two models of one tokenizer and different weights."""
    for seed, name in enumerate(("policy", "reference")):
        tiny_model(seed=seed).save_pretrained(tiny_folder(tmp_path / name))
    return f"{tmp_path / 'policy'},{tmp_path / 'reference'}"


def scores(groups):
    return [[one.score for one in group.candidates] for group in groups]


def plain_log_prob(seed, prompt, answer):
    """Sum of the answer's log-probabilities, its end token included, by transformers alone."""
    tokenizer = tiny_tokenizer()
    messages = [{"role": "user", "content": prompt}]
    opened = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    begin, said = tokenizer.encode(opened), tokenizer.encode(answer + "<|im_end|>")
    tokens = torch.tensor([begin + said])
    with torch.no_grad():
        log_probs = tiny_model(seed=seed)(tokens).logits[0].double().log_softmax(-1)
    return sum(float(log_probs[len(begin) - 1 + i, token]) for i, token in enumerate(said))


@pytest.mark.parametrize(("chunk", "budget"), [(1, 16), (2, 80), (256, 10**6)])
def test_the_score_is_the_log_ratio_of_the_answer(names, monkeypatch, chunk, budget):
    monkeypatch.setattr(implicit, "CHUNK", chunk)
    found = scores(load_implicit(names, HELD, max_tokens=budget).groups(GROUPS))
    assert [len(row) for row in found] == [2, 0, 4]
    for one, row in zip(GROUPS, found, strict=True):
        for candidate, score in zip(one.candidates, row, strict=True):
            said = one.prompt[0].content, candidate.response[0].content
            assert score == pytest.approx(
                plain_log_prob(0, *said) - plain_log_prob(1, *said), abs=1e-4
            )


def test_a_model_against_itself_scores_zero(names):
    policy = names.split(",")[0]
    found = scores(load_implicit(f"{policy},{policy}", HELD, max_tokens=10**6).groups(GROUPS))
    assert {score for row in found for score in row} == {0.0}


def test_an_adapters_reference_is_its_base(tmp_path):
    base = tiny_folder(tmp_path / "base")
    options = ModelOptions(model=str(base), dtype="fp32", device="cpu", lora_r=2)
    adapted = load(options, trainable=True)
    with torch.no_grad():
        for parameter in adapted.trainable().values():
            parameter.normal_(std=0.1)
    save_model(adapted, tmp_path / "adapter")
    short = load_implicit(str(tmp_path / "adapter"), HELD, max_tokens=10**6)
    named = load_implicit(f"{tmp_path / 'adapter'},{base}", HELD, max_tokens=10**6)
    found = scores(short.groups(GROUPS))
    assert found == scores(named.groups(GROUPS))
    assert all(score for row in found for score in row)


def test_answers_that_are_too_long_have_no_score_and_are_counted(names):
    groups = [group(1, "hello", "hello " * 200), group(2, "hello " * 300)]
    scorer = load_implicit(names, HELD, max_tokens=10**6, max_length=64)
    found = scores(scorer.groups(groups))
    assert found[0][0] is not None and found[0][1] is None and found[1] == [None]
    assert scorer.remarks() == [
        "2 answers longer than 64 tokens with their prompt have no score (first f:1)"
    ]
    whole = load_implicit(names, HELD, max_tokens=10**6)
    assert whole.max_length == 512  # the positions that both models have


def test_models_that_do_not_belong_together_are_refused(names, tmp_path):
    policy = names.split(",")[0]
    with pytest.raises(ValueError, match="needs two models, POLICY,REFERENCE"):
        load_implicit(policy, HELD, max_tokens=64)
    other = tiny_folder(tmp_path / "other")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["capital-letter"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ValueError, match="two models of one vocabulary; found different ones"):
        load_implicit(f"{policy},{other}", HELD, max_tokens=64)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_implicit(f"{policy},{tmp_path / 'nowhere'}", HELD, max_tokens=64)


def test_a_broken_model_is_said(names, tmp_path):
    broken = tiny_model(seed=0)
    with torch.no_grad():
        broken.lm_head.weight.fill_(float("nan"))
    broken.save_pretrained(tmp_path / "policy")
    with pytest.raises(ValueError, match=r"f:1: an implicit reward must be finite; found \[nan"):
        list(load_implicit(names, HELD, max_tokens=10**6).groups(GROUPS))
