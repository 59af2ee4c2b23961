"""Designs hold every cell that they should, and none twice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.evaluation.grid import Grid, read_alone, varied

FACTORS = {
    "data": ("clean", "noisy"),
    "objective": ("dpo", "madpo"),
    "reward_model": ("small", "large", "none"),
    "seed": (1, 2),
}


def test_a_full_design_holds_every_combination_once():
    settings = Grid(FACTORS).settings()
    assert len(settings) == len({tuple(one.items()) for one in settings}) == 2 * 2 * 3 * 2


def test_one_at_a_time_walks_from_the_centre_and_crosses_arms_with_seeds():
    settings = Grid(FACTORS, "one_at_a_time").settings()
    places = {(one["data"], one["reward_model"]) for one in settings}
    assert places == {
        ("clean", "small"), ("noisy", "small"), ("clean", "large"), ("clean", "none"),
    }  # fmt: skip
    assert len(settings) == 4 * 2 * 2


def test_cells_that_ignore_a_factor_are_one():
    def reads(setting):
        more = {"reward_model"} if setting["objective"] == "madpo" else set()
        return {"data", "objective", "seed"} | more

    settings = read_alone(Grid(FACTORS).settings(), reads)
    by_name = [one["objective"] for one in settings]
    assert by_name.count("dpo") == 2 * 2
    assert by_name.count("madpo") == 2 * 3 * 2
    assert {one["reward_model"] for one in settings if one["objective"] == "dpo"} == {""}


def test_a_factor_varies_where_cells_read_several_of_its_values():
    settings = [{"a": 1, "b": "", "c": "x"}, {"a": 2, "b": "y", "c": "x"}]
    assert varied(settings) == ["a"]


@given(st.dictionaries(st.sampled_from("defg"), st.lists(st.integers(), min_size=1, max_size=3)))
def test_designs_agree_where_one_factor_varies(factors):
    factors = {name: tuple(dict.fromkeys(values)) for name, values in factors.items()}
    if sum(len(values) > 1 for values in factors.values()) <= 1:
        full, walked = (Grid(factors, design).settings() for design in ("full", "one_at_a_time"))
        assert sorted(map(str, full)) == sorted(map(str, walked))


@pytest.mark.parametrize("design", ["full", "one_at_a_time"])
def test_the_first_setting_is_the_centre(design):
    first = Grid(FACTORS, design).settings()[0]
    assert first == {name: values[0] for name, values in FACTORS.items()}
