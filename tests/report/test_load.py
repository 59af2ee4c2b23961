"""Every part of a run folder may be missing, half-written or of another shape."""

import itertools
import json

import pytest

from melior.report.load import number, read_run, read_runs, spoken
from melior.report.page import page, worth_a_look
from tests.report import runs

PARTS = [
    "run.json", "config.yaml", "data.json", "metrics.jsonl",
    "evaluation.json", "samples.jsonl", "scores.jsonl", "health.json",
]  # fmt: skip
DAMAGE = [b"", b"{", b"[]", b"null\n", b"\xff\xfe\x00", b'{"a": 1}\n{"b": ', b"3"]


@pytest.mark.parametrize("part", PARTS)
def test_a_page_without_any_one_part(tmp_path, part):
    folder = runs.finished(tmp_path / "r", n=5)
    (folder / part).unlink()
    run = read_run(folder)
    assert run.damage == ()
    assert page([run]).endswith("</html>")


@pytest.mark.parametrize("content", DAMAGE)
def test_a_page_whatever_the_files_hold(tmp_path, content):
    folder = tmp_path / "r"
    folder.mkdir()
    for part in PARTS:
        (folder / part).write_bytes(content)
    run = read_run(folder)
    assert page([run]).endswith("</html>")
    assert content == b"" or run.damage


NESTED = [None, "text", [3], {"a": {}}, [{}]]


@pytest.mark.parametrize("value", NESTED, ids=repr)
def test_a_page_whatever_a_field_holds(tmp_path, value):
    folder = runs.finished(tmp_path / "r", n=3, steps=20)
    parts = ("run.json", "data.json", "evaluation.json", "health.json")
    whole = {part: json.loads((folder / part).read_text(encoding="utf-8")) for part in parts}
    for keys in itertools.zip_longest(*whole.values()):
        for part, key in zip(parts, keys, strict=True):
            changed = whole[part] | ({} if key is None else {key: value})
            (folder / part).write_text(json.dumps(changed), encoding="utf-8")
        assert page([read_run(folder)]).endswith("</html>")
    for part in ("metrics.jsonl", "samples.jsonl", "scores.jsonl"):
        row = json.loads((folder / part).read_text(encoding="utf-8").split("\n")[0])
        rows = [json.dumps(row | {key: value}) for key in row]
        (folder / part).write_text("\n".join(rows), encoding="utf-8")
    for key in runs.HEALTH[0]:
        runs.write(folder / "health.json", {"findings": [runs.HEALTH[0] | {key: value}]})
        assert page([read_run(folder)]).endswith("</html>")
    for outer, inner in (("comparisons", "low"), ("comparisons", "before"), ("subsets", "after")):
        whole = runs.evaluation(0.1)
        whole[outer][0][inner] = value
        runs.write(folder / "evaluation.json", whole)
        assert page([read_run(folder)]).endswith("</html>")
    assert page([read_run(folder)] * 2).endswith("</html>")


def test_what_is_damaged_is_counted_and_said(tmp_path):
    run = read_run(runs.running(tmp_path / "r"))
    assert run.last_step == 12
    assert run.damage == ("metrics.jsonl: 1 damaged line left out of 13.",)
    assert run.damage[0] in worth_a_look(run)


def test_a_resumed_run_shows_what_it_wrote_last(tmp_path):
    rows = [{"step": s, "loss": 1.0} for s in (1, 2, 3)] + [{"step": 2, "loss": 5.0}]
    rows += [{"step": 2, "eval_loss": 7.0}]
    runs.write_lines(tmp_path / "metrics.jsonl", rows)
    run = read_run(tmp_path)
    assert run.curve("loss") == [(1, 1.0), (2, 5.0), (3, 1.0)]
    assert run.curve("eval_loss") == [(2, 7.0)]


def test_labels_are_as_short_as_they_can_be(tmp_path):
    folders = [tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "a" / "run"]
    for folder in folders[:2]:
        runs.bare(folder)
    assert [run.label for run in read_runs(folders[:1])] == ["run"]
    assert [run.label for run in read_runs(folders[:2])] == ["a/run", "b/run"]
    assert [run.label for run in read_runs(folders)] == ["run (1)", "run (2)", "run (3)"]


def test_options_are_flat_and_numbers_are_finite(tmp_path):
    run = read_run(runs.finished(tmp_path / "r"))
    assert run.config["optim.learning_rate"] == 5e-6 or run.config["optim.learning_rate"] == "5e-06"
    assert [number(v) for v in (1, 2.5, True, "3", float("inf"), 10**400)] == [1, 2.5] + [None] * 4
    assert spoken([{"role": "user", "content": [{"type": "text"}]}]) == [
        ("user", '[{"type": "text"}]')
    ]


@pytest.mark.parametrize(
    ("before", "after", "is_said"),
    [
        ([30, 34, 38, 42], [3, 4, 5, 6], True),
        ([30, 34], [3, 4], False),  # two answers say nothing
        ([2, 80, 30, 5, 60, 3], [1, 2, 50, 3, 30, 4], False),  # nor do answers of all lengths
        ([30, 31, 32, 33], [33, 34, 35, 36], False),  # nor is a tenth worth a look
    ],
)
def test_a_change_of_length_is_said_where_it_is_no_chance(tmp_path, before, after, is_said):
    said = [
        {"before": "word " * b, "after": "word " * a} for b, a in zip(before, after, strict=True)
    ]
    runs.write_lines(tmp_path / "samples.jsonl", said)
    remarks = worth_a_look(read_run(tmp_path))
    assert any(remark.startswith("Answers shrank") for remark in remarks) == is_said
