"""Which prompts are asked: each once, however it is written, and none that is held out."""

import json
import random

import pytest

from melior.models.loading import load_chat
from melior.options import ModelOptions
from melior.records import text
from melior.stages.online.options import PromptOptions
from melior.stages.online.propose import asked_before, divide, write_prompts


@pytest.fixture
def chat(model_folder):
    return load_chat(ModelOptions(model=str(model_folder)))


def source(path, contents):
    rows = [json.dumps({"prompt": one}) + "\n" for one in contents]
    path.write_text("".join(rows), encoding="utf-8")
    return str(path)


def said(groups):
    return [text(group.prompt) for group in groups]


def test_prompts_that_differ_in_case_and_white_space_are_one(chat, tmp_path):
    pool = ["What is  it?", "what is it?", "WHO ARE YOU?", "Why\nnot?", "hello", "Where to?"]
    prompts = source(tmp_path / "p.jsonl", pool)
    held_out = source(tmp_path / "e.jsonl", ["who are you?", "why not?", "Who  are you?"])
    asked = divide(PromptOptions((prompts,), (held_out,), rounds=1), chat, longest=99, seed=0)
    assert sorted(said(asked.rounds[0])) == ["What is  it?", "Where to?", "hello"]
    assert said(asked.held_out) == ["who are you?", "why not?"]
    assert asked.counts == {"repeated": 2, "held out": 2, "too long": 0}


@pytest.mark.parametrize("n_prompts", [0, 2])
@pytest.mark.parametrize("seed", range(8))
def test_a_run_that_goes_on_asks_as_if_it_had_not_stopped(n_prompts, seed, chat, tmp_path):
    """Stopped anywhere: the rounds begun keep their prompts, the others get the same ones."""
    draw = random.Random(seed)
    pool = [f"word {i}" + " and more" * 9 * (draw.random() < 0.2) for i in range(29)]
    options = PromptOptions(
        (source(tmp_path / "p.jsonl", pool),), rounds=draw.randint(2, 7), n_prompts=n_prompts,
        n_eval_prompts=3,
    )  # fmt: skip
    whole = divide(options, chat, longest=40, seed=seed)
    assert whole.counts["too long"] > 0
    if not n_prompts:
        sizes = list(map(len, whole.rounds))
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= 1
    for number, groups in enumerate([whole.held_out, *whole.rounds]):
        write_prompts(tmp_path / "run" / f"round-{number}", groups)
        earlier = asked_before(tmp_path / "run")
        assert sorted(earlier) == list(range(number + 1))
        again = divide(options, chat, longest=40, seed=seed, earlier=earlier)
        assert said(again.held_out) == said(whole.held_out)
        assert list(map(said, again.rounds)) == list(map(said, whole.rounds))
        assert again.counts == whole.counts


def test_further_rounds_take_what_is_left(chat, tmp_path):
    prompts = source(tmp_path / "p.jsonl", [f"word {i}" for i in range(12)])
    for rounds in (1, 2, 3):
        options = PromptOptions((prompts,), rounds=rounds, n_prompts=3, n_eval_prompts=2)
        asked = divide(options, chat, longest=99, seed=0, earlier=asked_before(tmp_path))
        for number, groups in enumerate([asked.held_out, *asked.rounds]):
            write_prompts(tmp_path / f"round-{number}", groups)
    everything = [one for groups in asked_before(tmp_path).values() for one in said(groups)]
    assert len(everything) == len(set(everything)) == 2 + 3 * 3
    options = PromptOptions((prompts,), rounds=5, n_eval_prompts=2)
    with pytest.raises(ValueError, match=r"5 rounds of some .*found 1 and 2 \(9 asked in earlier"):
        divide(options, chat, longest=99, seed=0, earlier=asked_before(tmp_path))
