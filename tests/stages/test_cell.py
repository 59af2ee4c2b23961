"""What the parts of a bake-off leave is named after all that it was made of."""

import json

import pytest

from melior.models.heads import load_reward_model, save_reward_model
from melior.objectives.adaptive import Madpo
from melior.options import ModelOptions
from melior.records import Candidate, Group, Turn
from melior.stages.bakeoff.cell import Scoring
from melior.stages.bakeoff.exam import Exam, _scored


def test_margins_are_made_anew_for_other_rows_models_and_lengths(tmp_path):
    """A split of another share keeps its name, but the margins of the old one are not its own."""

    def place(said: str = "a", model: str = "rm", length: int = 64) -> str:
        row = {"prompt": "who?", "chosen": said, "rejected": "none"}
        (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
        return Scoring(str(tmp_path / "train.jsonl"), model, length).out

    assert place() == place()
    assert len({place(), place(said="b"), place(model="other"), place(length=32)}) == 4


def test_tau_is_the_90th_percentile_of_the_margins_sizes():
    assert Madpo().fitted([-1.0, 2.0, 3.0, -4.0, 5.0]).tau == pytest.approx(4.6)
    assert Madpo(tau=3.0).fitted([0.0, 0.0]).tau == 3.0
    assert Madpo(tau=3.0).fitted([]).tau == 3.0


def test_an_answer_beyond_the_scorer_is_no_score_of_0(model_folder, tmp_path):
    options = ModelOptions(model=str(model_folder), dtype="fp32")
    model = load_reward_model(options, trainable=False)
    save_reward_model(model, tmp_path / "rm")
    config = tmp_path / "rm" / "config.json"
    held = json.loads(config.read_text(encoding="utf-8")) | {"max_position_embeddings": 16}
    config.write_text(json.dumps(held), encoding="utf-8")
    answer = Candidate((Turn("assistant", "hello " * 40),))
    groups = [Group((Turn("user", "who?"),), (answer,), origin="held.jsonl:3")]
    with pytest.raises(ValueError, match=r"held\.jsonl:3: the scorer reads 16 tokens at most"):
        _scored(Exam(scorer=str(tmp_path / "rm")), groups)
