"""Every way to learn is a command with a paper and a page; what it cannot do, one sentence says."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from melior import cli
from melior.objectives.objective import ChosenLikelihood
from melior.objectives.table import OBJECTIVES
from tests.objectives.rows import kind_of

DOCS = Path(__file__).parents[2] / "docs"


def page(name: str) -> Path:
    own = DOCS / f"{name}.md"
    return own if own.exists() else DOCS / "losses" / f"{name}.md"


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_name_is_a_command_with_a_paper_and_a_page(name):
    assert cli.COMMANDS[name][0] == "recipes.preference"
    kind = kind_of(name)
    assert re.search(r"\b(19|20)\d\d\b", kind.paper)
    said = page(name).read_text("utf-8")
    assert f"`{name}`" in said or f"`melior {name}`" in said
    numbers = re.findall(r"\d{4}\.\d{5}", kind.paper)
    assert all(number in said for number in numbers)
    index = (DOCS / "losses" / "index.md").read_text("utf-8")
    assert f"[`{name}`]" in index


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_option_stands_on_its_page(name):
    shared = {"likelihood"} | ({"beta"} if name == "dpo" else set())
    said = page(name).read_text("utf-8")
    for field in fields(kind_of(name)):
        written_so = (f"`{field.name}`", f"`--{field.name.replace('_', '-')}")
        assert field.name in shared or any(one in said for one in written_so), field.name


WRONG = [
    ("dpo", {"label_smoothing": 0.5}, "label_smoothing must be at least 0 and below 0.5"),
    ("robust-dpo", {"label_smoothing": 0.5}, "label_smoothing must be"),
    ("exo", {"label_smoothing": 0.0}, "label_smoothing must be above 0 and below 0.5"),
    ("aot", {"label_smoothing": 0.5}, "label_smoothing must be"),
    ("cpo", {"label_smoothing": -0.1}, "label_smoothing must be"),
    ("simpo", {"label_smoothing": 0.5}, "label_smoothing must be"),
    ("simpo", {"label_smoothing": 0.1, "loss_type": "hinge"}, "is for loss_type sigmoid"),
    ("simpo", {"gamma": -1.0}, "gamma must be at least 0"),
    ("ipo", {"tau": 0.0}, "tau must be above 0; found 0"),
    ("ipo-mean", {"tau": -1.0}, "tau must be above 0"),
    ("orpo", {"lam": -0.1}, "lam must be at least 0; found -0.1"),
    ("dpop", {"lam": -1.0}, "lam must be at least 0"),
    ("r-dpo", {"alpha": -0.1}, "alpha must be at least 0"),
    ("ld-dpo", {"alpha": 1.1}, "alpha must be at least 0 and at most 1; found 1.1"),
    ("f-dpo", {"alpha": 0.0}, "alpha must be above 0 and at most 1"),
    ("beta-dpo", {"alpha": -1.0}, "alpha must be at least 0"),
    ("beta-dpo", {"keep": 0.0}, "keep must be above 0 and at most 1"),
    ("beta-dpo", {"momentum": 1.0}, "momentum must be at least 0 and below 1"),
    ("slic", {"delta": 0.0}, "delta must be above 0"),
    ("discopop", {"tau": 0.0}, "tau must be above 0"),
    ("bco", {"decay": 1.0}, "decay must be at least 0 and below 1"),
    ("kto", {"desirable_weight": -1.0}, "desirable_weight must be at least 0"),
    ("kto", {"undesirable_weight": -1.0}, "undesirable_weight must be at least 0"),
    ("list-softmax", {"temperature": 0.0}, "temperature must be above 0"),
    ("tpo", {"score_low": 0.0}, "score_low and score_high are given together; found one"),
    ("tpo", {"score_high": 1.0}, "score_low and score_high are given together; found one"),
    ("tpo", {"score_low": 1.0, "score_high": 1.0}, "score_high must be above 1; found 1"),
    ("madpo", {"c_max": 0.9}, "c_max must be at least 1"),
    ("madpo", {"tau": 0.0}, "tau must be above 0"),
]
NONE = [
    (name, {"beta": value}, "beta must be above 0")
    for name in OBJECTIVES
    for value in (0.0, -0.1, float("nan"), float("inf"))
    if "beta" in {field.name for field in fields(kind_of(name))}
]


@pytest.mark.parametrize(("name", "options", "said"), [*WRONG, *NONE])
def test_options_out_of_range_are_refused(name, options, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        kind_of(name)(**options)


def test_a_negative_weight_of_the_likelihood_is_refused():
    with pytest.raises(ValueError, match="sft_weight must be at least 0"):
        ChosenLikelihood(sft_weight=-1.0)
