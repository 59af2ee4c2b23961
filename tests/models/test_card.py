"""The card of a saved model: what it says can be done."""

import re

import pytest
import yaml

from melior.cli import main
from melior.models.card import Card
from melior.models.loading import load, save_model
from melior.options import ModelOptions
from tests.tiny import tiny_folder


def card(**changes):
    about = {
        "name": "a", "base": "org/base", "method": "dpo", "paper": "someone 2023",
        "data": [{"path": "a|b.jsonl", "rows": 3, "sha256": "f" * 64}], "options": {"beta": 0.1},
        "evaluation": {}, "metrics": {"loss": 0.5}, "versions": {"melior": "1"},
        "command": "melior",
    }  # fmt: skip
    return Card(**(about | changes))


def run_quick_start(folder, monkeypatch):
    """Run the card's Python as it stands."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(folder)
    exec(compile(code.replace("max_new_tokens=128", "max_new_tokens=3"), "README.md", "exec"), {})


def test_the_quick_start_runs_in_the_folder_of_the_card(tmp_path, monkeypatch, capsys):
    folder = tiny_folder(tmp_path / "whole")
    (folder / "README.md").write_text(card().text(), encoding="utf-8")
    run_quick_start(folder, monkeypatch)
    assert "<|im_start|>user\nHello!" in capsys.readouterr().out


def test_the_quick_start_of_an_adapter_runs_and_that_of_its_merged_model(
    tmp_path, monkeypatch, capsys, recwarn
):
    base = tiny_folder(tmp_path / "base")
    options = ModelOptions(str(base), dtype="fp32", lora_r=2)
    save_model(load(options, trainable=True), tmp_path / "adapter")
    text = card(is_adapter=True).text()
    (tmp_path / "adapter" / "README.md").write_text(text, encoding="utf-8")
    run_quick_start(tmp_path / "adapter", monkeypatch)
    main(["merge", str(tmp_path / "adapter"), "--out", str(tmp_path / "whole")])
    run_quick_start(tmp_path / "whole", monkeypatch)
    assert capsys.readouterr().out.count("<|im_start|>user\nHello!") == 2
    assert not [one for one in recwarn if "exclude_modules" in str(one.message)]


@pytest.mark.parametrize(
    ("base", "head"),
    [
        ("org/base", {"base_model": "org/base"}),
        ("smollm2", {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "license": "apache-2.0"}),
    ],
)
def test_a_hub_can_read_the_head_and_people_the_tables(base, head):
    text = card(base=base).text()
    found = yaml.safe_load(text.split("---")[1])
    assert head.items() <= found.items()
    assert ("license" in found) == ("license" in head)
    assert "| a\\|b.jsonl | 3 | ffffffffffffffff |" in text
    assert f"`{base}`, trained with dpo (someone 2023)" in text
