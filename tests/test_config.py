import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import tyro
import yaml
from hypothesis import given
from hypothesis import strategies as st

from melior.checks import in_range
from melior.config import config_from_dict, config_to_dict, config_values, read_config
from melior.options import LoopOptions, OptimConfig


@dataclass(frozen=True)
class Config:
    loop: Annotated[LoopOptions, tyro.conf.arg(name="")]
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(learning_rate=1e-3))
    beta: float = 2.0
    kind: Literal["a", "bee"] = "a"
    folder: Path | None = None
    sizes: tuple[int, ...] = (1, 2)
    span: tuple[int, float] = (1, 0.5)

    def __post_init__(self) -> None:
        in_range("beta", self.beta, 0, above=True)


def says(mapping: dict[str, object]) -> str:
    with pytest.raises(ValueError) as caught:
        config_from_dict(Config, mapping, where="c.yaml")
    return str(caught.value)


@given(
    beta=st.floats(1e-300, 1e300),
    rate=st.floats(1e-12, 1.0),
    sizes=st.lists(st.integers()),
    folder=st.none() | st.just(Path("a b/ü")),
    out=st.text(st.characters(codec="utf-8"), min_size=1),
)
def test_a_config_survives_yaml(beta, rate, sizes, folder, out):
    config = Config(
        LoopOptions(out, report_to=("wandb",)),
        OptimConfig(rate),
        beta=beta,
        sizes=tuple(sizes),
        folder=folder,
    )
    text = yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)
    assert config_from_dict(Config, yaml.safe_load(text)) == config


def test_groups_are_flat_and_keep_the_defaults_of_the_config():
    config = config_from_dict(Config, {"out": "a", "weight_decay": 0.1})
    assert config.optim == OptimConfig(learning_rate=1e-3, weight_decay=0.1)
    assert {"out", "learning_rate", "beta"} < config_to_dict(config).keys()


def test_aliases_and_hyphens_are_names_too():
    config = config_from_dict(Config, {"output_dir": "a", "num-train-epochs": 2, "max-steps": 3})
    assert config.loop == LoopOptions("a", epochs=2.0, max_steps=3)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("out: a\nlearning_rate: 5e-7\nsizes: 4\n")
    config = config_from_dict(Config, read_config(file))
    assert config.optim.learning_rate == 5e-7
    assert config.sizes == (4,)


def test_values_may_be_left_out_where_flags_will_give_them():
    assert config_values(Config, {"max-steps": 4}) == {"max_steps": 4}


@pytest.mark.parametrize(
    ("mapping", "sentence"),
    [
        ({"lerning_rate": 1}, "'lerning_rate' is not an option; did you mean 'learning_rate'?"),
        ({"beta": "high"}, "beta must be a number; found 'high'"),
        ({"beta": True}, "beta must be a number; found True"),
        ({"beta": None}, "beta must be a number; found None"),
        ({"max_steps": 1.5}, "max_steps must be a whole number; found 1.5"),
        ({"max_steps": True}, "max_steps must be a whole number; found True"),
        ({"resume": "yes"}, "resume must be true or false; found 'yes'"),
        ({"out": 7}, "out must be text; found 7; put it in quotes"),
        ({"kind": "be"}, "kind must be one of a, bee; found 'be'; did you mean 'bee'?"),
        ({"sizes": [1, "x"]}, "sizes must be a list, each a whole number; found [1, 'x']"),
        ({"span": [1]}, "span must be a list of 2: a whole number, a number; found [1]"),
        ({"folder": 3}, "folder must be a path or null; found 3"),
        ({"out": "a", "output-dir": "b"}, "out must be given once; found it again as 'output-dir'"),
        ({"beta": 1.0}, "out must be given; found beta"),
        ({"out": "a", "beta": -1.0}, "beta must be above 0; found -1"),
        ({"out": "a", "batch_size": 0}, "batch_size must be at least 1; found 0"),
    ],
)
def test_mistakes_are_one_sentence_with_file_and_key(mapping, sentence):
    assert says(mapping) == f"c.yaml: {sentence}"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("beta: 1\nbeta: 2\n", "c.yaml:2: beta must be given once; found it again here"),
        ("beta: [1\n", "c.yaml:2: YAML is needed; found that expected ',' or ']'"),
        ("- beta\n", "c.yaml: options as 'name: value' lines are needed; found a list"),
        ("beta", "c.yaml: options as 'name: value' lines are needed; found 'beta'"),
        ("!!python/object:os.system {}", "c.yaml:1: YAML is needed; found that could not"),
    ],
)
def test_damaged_files_are_named(tmp_path, text, sentence):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ValueError) as caught:
        read_config(file)
    assert str(caught.value).startswith(f"{tmp_path}/{sentence}")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"c\.yaml: a config file is needed"):
        read_config(tmp_path / "c.yaml")
    (tmp_path / "c.yaml").write_text("")
    assert read_config(tmp_path / "c.yaml") == {}


def test_option_names_must_differ():
    @dataclass(frozen=True)
    class Twice:
        loop: LoopOptions
        seed: int = 0

    with pytest.raises(TypeError, match="seed"):
        config_values(Twice, {})


def test_the_module_needs_no_torch():
    code = "import sys, melior.config; assert not {'torch', 'yaml'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
