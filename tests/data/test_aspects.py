"""Rated answers as files hold them: names, gaps, scales, sources that stay apart."""

import json
import math

import pytest

from melior.data.aspects import (
    KNOWN,
    Range,
    check_range,
    objectives,
    parse_ranges,
    range_of,
    read_rated,
)
from melior.records import Turn

HELPSTEER = {"prompt": "q", "response": "r", "helpfulness": 3, "correctness": 4, "coherence": 4,
             "complexity": 1, "verbosity": 2}  # fmt: skip
ULTRAFEEDBACK = {
    "instruction": "q",
    "completions": [
        {"response": "a", "overall_score": 7.5, "fine-grained_score": 3.25,
         "annotations": {"helpfulness": {"Rating": "4"}, "honesty": {"Rating": "N/A"}}},
        {"response": "b", "annotations": {"honesty": {"Rating": "2"}}},
    ],
}  # fmt: skip


def write(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def read(path, *rows):
    return list(read_rated([write(path, *rows)]))


def test_helpsteers_rows_of_one_prompt_are_one_group(tmp_path):
    second = {**HELPSTEER, "response": "s", "helpfulness": 0}
    other = {**HELPSTEER, "prompt": "another"}
    groups = read(tmp_path / "train.jsonl", HELPSTEER, second, other)
    assert [len(group.candidates) for group in groups] == [2, 1]
    assert groups[0].prompt == (Turn("user", "q"),)
    aspects = [one.aspects for one in groups[0].candidates]
    assert aspects[0] == {"helpsteer-helpfulness": 3, "helpsteer-correctness": 4,
                          "helpsteer-coherence": 4, "helpsteer-complexity": 1,
                          "helpsteer-verbosity": 2}  # fmt: skip
    assert aspects[1]["helpsteer-helpfulness"] == 0


def test_ultrafeedbacks_annotations_and_overall_scores_are_read(tmp_path):
    (group,) = read(tmp_path / "u.jsonl", ULTRAFEEDBACK)
    first, second = (one.aspects for one in group.candidates)
    assert first == {"ultrafeedback-helpfulness": 4, "ultrafeedback-overall_score": 7.5,
                     "ultrafeedback-fine-grained_score": 3.25}  # fmt: skip
    assert second == {"ultrafeedback-honesty": 2}  # no overall score is made up


def test_messages_have_a_column_for_each_objective(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    row = {"messages": turns, "clarity": 4, "is_safe": True, "missing": None, "row_id": 7,
           "id": 3, "note": "text"}  # fmt: skip
    (group,) = read(tmp_path / "m.jsonl", row)
    assert group.prompt == (Turn("user", "q"),)
    assert group.candidates[0].response == (Turn("assistant", "a"),)
    assert group.candidates[0].aspects == {"clarity": 4, "is_safe": 1}


def test_groups_with_aspects_and_single_answers_are_read(tmp_path):
    row = {"prompt": "q", "candidates": [{"response": "a", "aspects": {"wit": 2}}, "b"]}
    (group,) = read(tmp_path / "g.jsonl", row)
    assert [one.aspects for one in group.candidates] == [{"wit": 2}, {}]
    (group,) = read(tmp_path / "p.jsonl", {"prompt": "q", "response": "a", "wit": 3})
    assert group.candidates[0].aspects == {"wit": 3}


@pytest.mark.parametrize("gap", [None, math.nan])
def test_gaps_of_every_kind_are_no_ratings(tmp_path, gap):
    (group,) = read(tmp_path / "h.jsonl", {**HELPSTEER, "helpfulness": gap})
    assert "helpsteer-helpfulness" not in group.candidates[0].aspects
    turns = [{"role": "assistant", "content": "a"}]
    (group,) = read(tmp_path / "m.jsonl", {"messages": turns, "wit": gap, "clarity": 1})
    assert group.candidates[0].aspects == {"clarity": 1}


@pytest.mark.parametrize("row", [HELPSTEER, {"prompt": "q", "response": "r"}])
def test_what_is_infinite_is_refused_with_its_place(tmp_path, row):
    where = tmp_path / "r.jsonl"
    with pytest.raises(ValueError, match=r"r\.jsonl:2: 'verbosity' needs a finite number"):
        read(where, {**row, "verbosity": 1}, {**row, "verbosity": math.inf})


def test_ratings_spelled_as_text_are_numbers(tmp_path):
    rows = [{"prompt": q, "response": "a", "wit": wit, "note": "fine"}
            for q, wit in (("q", 3), ("r", "3"), ("s", " 2.5 "), ("t", ""), ("u", "N/A"))
            ]  # fmt: skip
    found = [one.aspects for g in read(tmp_path / "r.jsonl", *rows) for one in g.candidates]
    assert found == [{"wit": 3}, {"wit": 3}, {"wit": 2.5}, {}, {}]
    table = tmp_path / "h.csv"
    table.write_text("prompt,response,clarity,verbosity\nq,a,4,1\nr,b,,2\n", encoding="utf-8")
    found = [one.aspects for group in read_rated([str(table)]) for one in group.candidates]
    assert found == [{"clarity": 4, "verbosity": 1}, {"verbosity": 2}]


@pytest.mark.parametrize("order", [1, -1])
def test_text_among_an_objectives_numbers_is_refused_with_its_place(tmp_path, order):
    rows = [{"prompt": "q", "response": "a", "wit": 3}, {"prompt": "r", "response": "a",
             "wit": "three"}][::order]  # fmt: skip
    line = 2 if order == 1 else 1
    with pytest.raises(ValueError, match=rf"r\.jsonl:{line}: 'wit' needs .*; found 'three'"):
        read(tmp_path / "r.jsonl", *rows)


def test_names_keep_sources_apart(tmp_path):
    one = write(tmp_path / "one.jsonl", {"prompt": "q", "response": "a", "wit": 3})
    two = write(tmp_path / "two.jsonl", {"prompt": "q", "response": "b", "wit": 30})
    with pytest.raises(ValueError, match=r"'wit' in .*one\.jsonl, too; .* NAME=.*two\.jsonl"):
        list(read_rated([one, two]))
    groups = list(read_rated([f"mine={one}", f"theirs={two}"]))
    assert objectives(groups) == ("mine-wit", "theirs-wit")
    assert objectives(read_rated([f"all={one}", f"all={two}"])) == ("all-wit",)
    helpsteer = write(tmp_path / "h.jsonl", HELPSTEER)
    assert objectives(read_rated([helpsteer, f"second={helpsteer}"]))[::5] == (
        "helpsteer-helpfulness", "second-helpfulness")  # fmt: skip


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": "q", "answer": "a"}, "a rated answer needs 'messages', or 'prompt' and"),
        ({"messages": [{"role": "user", "content": "q"}], "wit": 1}, "an answer of the assistant"),
        ({"prompt": "q", "response": "a", "wit": "good"}, "needs a row with a rating; found none"),
    ],
)
def test_rows_that_are_no_rated_answers_are_refused(tmp_path, row, said):
    with pytest.raises(ValueError, match=said):
        read(tmp_path / "r.jsonl", row)


def test_a_weight_is_refused(tmp_path):
    path = write(tmp_path / "h.jsonl", HELPSTEER)
    with pytest.raises(ValueError, match="ratings need no weight"):
        list(read_rated([f"{path}*2"]))


@pytest.mark.parametrize(
    ("name", "values", "wanted"),
    [
        ("helpsteer-verbosity", [2, 3], Range(0, 4, True)),
        ("helpsteer-verbosity", [0.1, 0.9], Range(0, 1, False)),  # brought there before
        ("ultrafeedback-overall_score", [7.5], Range(1, 10, True)),
        ("is_safe", [0, 1], Range(0, 1, False)),
        ("is_safe", [1], Range(0, 1, False)),
        ("wit", [2, 5, 3], Range(2, 5, True)),
        ("wit", [-1.5, 2], Range(-1.5, 2, False)),
        ("given", [3], Range(1, 5, True)),
    ],
)
def test_a_range_is_given_or_known_or_that_of_the_ratings(name, values, wanted):
    assert range_of(name, values, {"given": Range(1, 5, True)}) == wanted


def test_scales_are_read_and_wrong_ones_refused():
    assert parse_ranges(["a=1:5", "b=c=0:1", "d=-1.5:2"]) == {
        "a": Range(1, 5, True), "b=c": Range(0, 1, False), "d": Range(-1.5, 2, False)}  # fmt: skip
    for wrong in ("a=5", "a=5:1", "=1:5", "a=1:x", "a=1:inf"):
        with pytest.raises(ValueError, match="scales must be NAME=LOW:HIGH"):
            parse_ranges([wrong])


def test_a_rating_off_its_scale_is_refused(tmp_path):
    (group,) = read(tmp_path / "h.jsonl", {**HELPSTEER, "verbosity": 5})
    with pytest.raises(ValueError, match=r"h\.jsonl:1: 'helpsteer-verbosity' must lie from 0 to 4"):
        check_range(group, KNOWN)
