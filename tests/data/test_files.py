"""What is written is read again as it was, and a file is written whole or not at all."""

import gzip
import itertools
import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.files import read_groups, read_pairs, write_groups, write_pairs
from melior.records import Candidate, Group, Pair, Turn

said = st.text(st.characters(codec="utf-8"), max_size=20) | st.sampled_from(
    ["\r\n", "\u2028", "\x00", "\n\nHuman: hi\n\nAssistant: yes", '[{"role": "x"}]', "\ud800", "🐈"]
)
numbers = st.floats(allow_nan=False, allow_infinity=False)
weights = st.floats(min_value=0, allow_nan=False, allow_infinity=False)
extras = st.dictionaries(st.sampled_from(["name", "tool_calls"]), said | st.lists(said), max_size=1)
facts = st.dictionaries(st.sampled_from(["id", "subset", "system", "label"]), said | st.none())


def turns(first, roles):
    """Parts of turns: the records are built in the test, as checking their types is random."""
    first = st.tuples(st.just(first), said, extras)
    others = st.lists(st.tuples(st.sampled_from(roles), said, extras), max_size=2)
    return st.builds(lambda one, more: [one, *more], first, others)


prompts = turns("user", ["user", "assistant", "system"]) | st.just([])
answers = turns("assistant", ["tool", "assistant", "user"])
pairs = st.tuples(prompts, answers, answers, numbers, weights, facts)
aspects = st.dictionaries(st.sampled_from(["helpfulness", "x"]), numbers)
candidates = st.tuples(answers, numbers | st.none(), aspects, st.lists(said), facts)
groups = st.tuples(prompts, st.lists(candidates, max_size=3), facts)


def built(parts):
    return tuple(Turn(*part) for part in parts)


def built_pair(prompt, chosen, rejected, *others):
    return Pair(built(prompt), built(chosen), built(rejected), *others)


def built_group(prompt, listed, facts):
    found = (Candidate(built(answer), s, a, tuple(t), f) for answer, s, a, t, f in listed)
    return Group(built(prompt), tuple(found), facts)


@given(st.lists(pairs, max_size=4), st.sampled_from(["", ".gz", ".zst"]))
def test_pairs_are_read_as_they_were_written(tmp_path_factory, listed, packed):
    path = str(tmp_path_factory.mktemp("pairs") / f"a.jsonl{packed}")
    listed = [built_pair(*parts) for parts in listed]
    assert write_pairs(path, listed) == len(listed)
    found = list(read_pairs(path))
    assert found == listed
    assert [pair.origin for pair in found] == [f"{path}:{i + 1}" for i in range(len(listed))]


@given(st.lists(groups, max_size=4))
def test_groups_are_read_as_they_were_written(tmp_path_factory, listed):
    path = str(tmp_path_factory.mktemp("groups") / "a.jsonl")
    listed = [built_group(*parts) for parts in listed]
    assert write_groups(path, listed) == len(listed)
    assert list(read_groups(path)) == listed


PAIR = Pair((Turn("user", "é"),), (Turn("assistant", "yes"),), (Turn("assistant", "no"),))


def test_text_is_written_for_people_to_read(tmp_path):
    write_pairs(tmp_path / "a.jsonl", [PAIR])
    assert "é" in (tmp_path / "a.jsonl").read_text("utf-8")


def test_a_written_file_loads_as_conversations_in_datasets(tmp_path):
    datasets = pytest.importorskip("datasets")
    write_pairs(tmp_path / "a.jsonl", [PAIR, PAIR])
    found = datasets.load_dataset(
        "json", data_files=str(tmp_path / "a.jsonl"), cache_dir=str(tmp_path / "cache")
    )
    assert found["train"][1]["chosen"] == [{"role": "assistant", "content": "yes"}]


def test_the_same_rows_give_the_same_bytes(tmp_path):
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_pairs(tmp_path / name, [PAIR])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress((tmp_path / "a.jsonl.gz").read_bytes()).count(b"\n") == 1


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.jsonl"
    write_pairs(path, [PAIR])
    before = path.read_bytes()

    def breaks():
        yield PAIR
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pairs(path, breaks())
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]


def test_a_file_can_be_rewritten_in_place(tmp_path):
    path = str(tmp_path / "a.jsonl")
    write_pairs(path, [PAIR] * 3)
    assert write_pairs(path, itertools.islice(read_pairs(path), 2)) == 2
    assert list(read_pairs(path)) == [PAIR, PAIR]


def test_wrong_names_are_refused_before_a_row_is_taken(tmp_path):
    rows = iter([PAIR])
    with pytest.raises(ValueError, match=r"a\.csv: needs a name in \.jsonl"):
        write_pairs(tmp_path / "a.csv", rows)
    with pytest.raises(FileNotFoundError, match=r"the folder '.*nowhere' does not exist"):
        write_pairs(tmp_path / "nowhere" / "a.jsonl", rows)
    assert next(rows) is PAIR


def test_standard_output_gets_each_row_at_once(capfdbinary, monkeypatch):
    lines = []

    def rows():
        for _ in range(3):
            lines.append(capfdbinary.readouterr().out.count(b"\n"))
            yield PAIR

    with monkeypatch.context() as patch, open(sys.__stdout__.fileno(), "w", closefd=False) as out:
        patch.setattr(sys, "stdout", out)
        assert write_pairs("-", rows()) == 3
    assert lines == [0, 1, 1]


def test_reading_asks_for_no_more_rows_than_are_taken(tmp_path):
    """The thousandth row is broken; the first ten do not notice."""
    good = {"prompt": "hi", "chosen": "yes", "rejected": "no"}
    text = (json.dumps(good) + "\n") * 999 + "broken\n"
    (tmp_path / "a.jsonl").write_text(text)
    found = read_pairs(tmp_path / "a.jsonl")
    assert len(list(itertools.islice(found, 10))) == 10
    with pytest.raises(ValueError, match=r"a\.jsonl:1000"):
        list(found)
