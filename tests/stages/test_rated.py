"""Rated answers on their way to the model: scales, lengths, and which prompt an answer is to."""

import json

import pytest

from melior.models.aspects import opening_length
from melior.models.heads import reward_chat
from melior.options import DataOptions, ModelOptions
from melior.stages.data import hold_out, prepare
from melior.stages.ratings.rated import prepare_rated


@pytest.fixture
def chat(model_folder):
    return reward_chat(ModelOptions(model=str(model_folder)))


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def rated(prompt, response, **ratings):
    return {"prompt": prompt, "response": response, **ratings}


def test_a_range_without_a_finite_width_is_refused_by_name(chat, tmp_path):
    far = write(tmp_path / "r.jsonl", rated("q", "a", wit=1e308), rated("q", "b", wit=-1e308))
    with pytest.raises(ValueError, match=r"'wit' needs a scale of finite width; .*-1e\+308"):
        prepare_rated([far], chat, DataOptions(data=(far,)), scales=())


def cut_options(path):
    return DataOptions(data=(path,), max_length=60, truncation_mode="keep_end", max_long_share=1.0)


def test_answers_for_which_a_prompt_is_cut_differently_are_to_one_prompt(chat, tmp_path):
    long = "hello " * 40
    said = ("no", "no, thank you, not today")
    path = write(tmp_path / "r.jsonl", *(rated(long, own, wit=k) for k, own in enumerate(said)),
                 rated("q", "a", wit=1), rated(long, "fine, I say", wit=2))  # fmt: skip
    found = prepare_rated([path], chat, cut_options(path), scales=())
    assert found.prepared.record["cut"] == 3
    assert found.prompts == [0, 0, 1, 0]
    pairs = [{"prompt": long, "chosen": own, "rejected": "yes"} for own in said]
    pairs.append({"prompt": "q", "chosen": "a", "rejected": "b"})
    file = write(tmp_path / "p.jsonl", *pairs)
    groups = prepare([file], chat, cut_options(file), seed=0).groups
    cut, again, other = groups
    assert cut.answers[0].n_prompt != again.answers[0].n_prompt
    assert cut.prompt == again.prompt == found.prepared.groups[0].prompt != other.prompt
    assert len(hold_out(groups, 0.4, seed=0)[0]) in (1, 2)  # both or none of the long prompt's


def test_pairs_for_which_the_opening_would_be_cut_are_left_out_and_counted(chat, tmp_path):
    opening = opening_length(chat)
    pairs = [{"prompt": "hello " * 40, "chosen": "a" * n, "rejected": "b"} for n in range(30, 60)]
    file = write(tmp_path / "p.jsonl", *pairs)
    whole = prepare([file], chat, cut_options(file), seed=0)
    found = prepare([file], chat, cut_options(file), opening=opening, seed=0)
    kept = {group.origin for group in found.groups}
    assert min(group.answers[0].n_prompt for group in found.groups) == opening
    assert any(1 <= group.answers[0].n_prompt < opening for group in whole.groups)
    assert kept.isdisjoint(found.record["left_out"])
    assert len(kept) + len(found.record["left_out"]) == len(pairs)
