"""Numbers as people read them, and the verdict that they add up to."""

import pytest

from melior.report import words
from melior.report.load import read_run
from tests.report import runs


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0, "0"), (1, "1"), (12345, "12,345"), (0.5, "0.5"), (-0.0123, "−0.0123"),
        (3.14159, "3.14"), (88.44, "88.4"), (5e-7, "5×10⁻⁷"), (-1.234e-5, "−1.23×10⁻⁵"),
        (123.9, "124"), (2.5e12, "2.5×10¹²"), (100.0, "100"), (None, "–"),
    ],
)  # fmt: skip
def test_figures(value, written):
    assert words.figure(value) == written


def test_units_and_signs():
    assert words.amount(0.314, "share") == "31%"
    assert words.amount(0.0314, "share") == "3.1%"
    assert words.amount(3.25, "nats") == "3.25 nats"
    assert words.change(0.21, "share") == "+21 points"
    assert words.change(-0.01, "share") == "−1 point"
    assert words.change(0.0, "share") == "0 points"
    assert words.change(-2.0, "words") == "−2 words"
    assert words.interval(-0.04, 0.08, "share") == "−4 to 8"
    assert words.interval(None, 0.08, "share") == "no interval"
    assert words.p_value(0.0001) == "p < 0.001"
    assert words.p_value(1.0) == "p = 1"
    assert [words.duration(s) for s in (4.2, 664, 7265)] == ["4.2 s", "11 min 4 s", "2 h 1 min"]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({}, "Better by 21 points (15 to 27), n = 100"),
        ({"difference": -0.21, "low": -0.27, "high": -0.15},
         "Worse by 21 points (15 to 27), n = 100"),
        ({"low": -0.01, "high": 0.43}, "No gain shown: +21 points (−1 to 43), n = 100"),
        ({"low": 0.21, "high": 0.21, "n": 3, "p_value": 0.25},
         "No gain shown: +21 points (21 to 21), n = 3"),
        ({"low": None, "high": None, "n": 1}, "No gain shown: +21 points (no interval), n = 1"),
        ({"higher_is_better": False}, "Worse by 21 points (15 to 27), n = 100"),
        ({"higher_is_better": None}, "Up by 21 points (15 to 27), n = 100"),
        ({"higher_is_better": None, "low": -0.1},
         "No change shown: +21 points (−10 to 27), n = 100"),
        ({"unit": "nats", "difference": 1.5, "low": 1.0, "high": 2.0, "n": None},
         "Better by 1.5 nats (1 to 2)"),
    ],
)  # fmt: skip
def test_the_verdict_of_a_comparison(row, sentence):
    full = runs.comparison("constraints met", 0.31, 0.21, 0.06) | row
    assert words.of_comparison(full).sentence == sentence


def test_the_verdict_of_a_run(tmp_path):
    made = [runs.failed(tmp_path / "f"), runs.running(tmp_path / "r"), runs.bare(tmp_path / "b")]
    sentences = [words.of_run(read_run(folder)).sentence for folder in made]
    assert sentences == [
        "Failed after 37 steps", "Not finished: after 12 steps", "Not judged",
    ]  # fmt: skip
