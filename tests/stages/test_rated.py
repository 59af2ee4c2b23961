"""Rated answers on their way to the model: scales, lengths, and which prompt an answer is to."""

import json

import pytest

from melior.models.heads import reward_chat
from melior.options import DataOptions, ModelOptions
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
