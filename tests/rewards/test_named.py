"""A folder says which kind of reward model it holds, and a temperature what its scores mean."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from melior.models.names import kind_of
from melior.options import ModelOptions, ScoringOptions
from melior.records import Candidate, Group, Turn
from melior.rewards.named import (
    about_scorer,
    check_prompted,
    cooled,
    find_scorer,
    folder_hash,
    load_reward_scorer,
    load_scorer,
)
from melior.rewards.rules import RuleScorer


def folder(tmp_path: Path, said: str) -> str:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "melior.json").write_text(said)
    return str(tmp_path)


def test_a_folder_names_its_kind(tmp_path: Path) -> None:
    assert kind_of(folder(tmp_path, '{"kind": "general"}')) == "general"


def test_an_ordinary_folder_is_scalar(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert kind_of(str(tmp_path)) == "scalar"


@pytest.mark.parametrize("said", ["", "[]", "{}", "\x00"])
def test_a_damaged_file_is_named(tmp_path: Path, said: str) -> None:
    with pytest.raises(ValueError, match=r"melior\.json: needs the 'kind'"):
        kind_of(folder(tmp_path, said))


def test_an_unknown_kind_is_refused_with_the_nearest(tmp_path: Path) -> None:
    name = folder(tmp_path, '{"kind": "genral"}')
    with pytest.raises(ValueError, match="did you mean 'general'"):
        load_reward_scorer(ModelOptions(model=name), max_tokens=64)


def test_a_temperature_divides_scores_or_else_what_is_compared() -> None:
    answers = tuple(Candidate((Turn("assistant", "x"),), score) for score in (1.0, None))
    group = Group((Turn("user", "y"),), answers, {"id": 1})
    assert cooled(group, 1.0) is group
    assert [one.score for one in cooled(group, 4.0).candidates] == [0.25, None]
    compared = replace(group, facts={"comparisons": [[0.0, None], [None, 0.0]], "id": 1})
    found = cooled(replace(compared, facts={**compared.facts, "comparisons": [[0, 2], [-2, 0]]}), 4)
    assert found.facts == {"comparisons": [[0.0, 0.5], [-0.5, 0.0]], "id": 1}
    assert found.candidates == answers
    assert cooled(compared, 4.0) == compared


def test_a_folder_is_known_by_every_byte_and_name_in_it(tmp_path: Path) -> None:
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / "w").write_bytes(b"1")
    first = folder_hash(tmp_path)
    (tmp_path / "gate" / "w").write_bytes(b"2")
    second = folder_hash(tmp_path)
    (tmp_path / "gate" / "w").rename(tmp_path / "gate" / "v")
    assert len({first, second, folder_hash(tmp_path)}) == 3


def test_what_is_stored_says_all_that_decides_the_scores(model_folder: Path) -> None:
    options = ScoringOptions(dtype="fp32", max_length=9)
    rules = load_scorer("rules", options)
    assert about_scorer("rules", rules, options) == {"name": "rules"}
    name = f"implicit:{model_folder},{model_folder}"
    about = about_scorer(name, load_scorer(name, options), options)
    assert about["hashes"] == [folder_hash(model_folder)[:16]] * 2
    assert (about["dtype"], about["max_length"]) == ("fp32", 9)
    assert json.loads(json.dumps(about)) == about


def test_another_template_base_or_home_is_another_scoring(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `about_scorer` says of models by their names alone: none is loaded."""
    monkeypatch.setenv("HOME", str(model_folder.parent))
    (tmp_path / "adapter").mkdir()
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(json.dumps({"base_model_name_or_path": str(model_folder)}))
    template = tmp_path / "mine.jinja"

    def about(name: str, chat_template: str = "auto") -> dict[str, Any]:
        return about_scorer(name, RuleScorer(), ScoringOptions(chat_template=chat_template))

    base, own = (folder_hash(one)[:16] for one in (model_folder, config.parent))
    assert about(f"~/{model_folder.name}")["hashes"] == [base]
    assert about(f"implicit:{config.parent}")["hashes"] == [own, base]
    assert "chat_template" not in about(str(model_folder))
    name = f"implicit:{model_folder},~/{model_folder.name}"
    said = [about(name, one)["chat_template"] for one in ("auto", "plain")]
    for text in ("a", "b"):
        template.write_text(text)
        said.append(about(name, str(template))["chat_template"])
    assert len(set(said)) == 4
    assert about(name)["hashes"] == [base, base]


@pytest.mark.parametrize(
    ("names", "is_read"),
    [
        (["rules"], False),
        (["org/model"], False),
        (["judge:http://localhost:8000"], False),
        (["ensemble:rules,org/model"], False),
        (["judge:smollm2"], True),
        (["ensemble:rules,implicit:a/b,c/d"], True),
        (["rules", "implicit:a/b,c/d"], True),
    ],
)
def test_a_chat_template_that_nothing_reads_is_refused(names: list[str], *, is_read: bool) -> None:
    check_prompted(names, ScoringOptions())
    options = ScoringOptions(chat_template="chatml")
    if is_read:
        check_prompted(names, options)
    else:
        with pytest.raises(ValueError, match=r"--chat-template needs a judge .* found .*: rules"):
            check_prompted(names, options)


@pytest.mark.parametrize(
    "name",
    ["judge:smolm2", "implicit:no/such/folder,smollm2", "no/such/folder", "ensemble:rules,./x"],
)
def test_what_is_not_there_is_said_before_anything_is_loaded(name: str) -> None:
    with pytest.raises(FileNotFoundError, match="needs a folder, a hub name"):
        find_scorer(name)
