"""No prompt stands on both sides of a split, and no row is lost."""

import csv

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.split import shared_prompts, split_by_prompt
from melior.data.tables import write_csv, write_parquet
from melior.records import Pair, Turn


def pair(prompt, n):
    turns = [(Turn("user", str(prompt)),), (Turn("assistant", f"a{n}"),), (Turn("assistant", "b"),)]
    return Pair(*turns, origin=f"rows:{n}")


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=40).filter(lambda p: len(set(p)) > 1),
    st.floats(0.01, 0.99),
    st.integers(0, 5),
)
def test_prompts_stand_on_one_side_and_rows_stay(prompts, share, seed):
    rows = [pair(prompt, n) for n, prompt in enumerate(prompts)]
    kept, apart = split_by_prompt(rows, share=share, seed=seed)
    assert kept and apart
    assert not {row.prompt for row in kept} & {row.prompt for row in apart}
    assert sorted([*kept, *apart], key=lambda row: row.origin) == sorted(
        rows, key=lambda row: row.origin
    )
    assert (kept, apart) == split_by_prompt(rows, share=share, seed=seed)
    assert shared_prompts(kept, apart) == 0 and shared_prompts(rows, rows) == len(rows)


def test_the_share_is_of_the_prompts():
    rows = [pair(n // 3, n) for n in range(60)]
    kept, apart = split_by_prompt(rows, share=0.25, seed=1)
    assert (len(kept), len(apart)) == (45, 15)


@pytest.mark.parametrize("rows", [[], [pair("x", 1), pair("x", 2)]])
def test_one_prompt_cannot_be_held_apart(rows):
    with pytest.raises(ValueError, match=r"needs two or more; found [01]"):
        split_by_prompt(rows, share=0.5, seed=0)


def test_tables_hold_every_column_of_every_row(tmp_path):
    rows = [{"cell": "a", "loss": 0.5, "note": 'say "x", y'}, {"cell": "b", "seed": 3}]
    write_csv(tmp_path / "t.csv", rows)
    with (tmp_path / "t.csv").open(encoding="utf-8", newline="") as stream:
        found = list(csv.DictReader(stream))
    assert found[0] == {"cell": "a", "loss": "0.5", "note": 'say "x", y', "seed": ""}
    assert found[1] == {"cell": "b", "loss": "", "note": "", "seed": "3"}
    parquet = pytest.importorskip("pyarrow.parquet")
    assert write_parquet(tmp_path / "t.parquet", rows)
    assert parquet.read_table(tmp_path / "t.parquet").to_pylist() == [
        {"cell": "a", "loss": 0.5, "note": 'say "x", y', "seed": None},
        {"cell": "b", "loss": None, "note": None, "seed": 3},
    ]
