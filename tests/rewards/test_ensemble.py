"""Several scorers as one: the formulas again, what may not matter, and real reward models."""

import json
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.cli import main
from melior.models.heads import load_reward_model, save_reward_model
from melior.options import EnsembleOptions, ModelOptions, ScoringOptions
from melior.records import Candidate, Group, Turn
from melior.rewards.ensemble import AGGREGATES, FACT, SCALES, EnsembleScorer
from melior.rewards.named import load_scorer

TABLES = st.tuples(st.integers(2, 5), st.integers(1, 6)).flatmap(
    lambda size: st.lists(
        st.lists(st.floats(-20, 20), min_size=size[1], max_size=size[1]),
        min_size=size[0], max_size=size[0],
    )
)  # fmt: skip
"""Members by candidates."""


class Table:
    """A scorer that knows its scores: the next group's, row by row."""

    def __init__(self, *rows):
        self.rows = rows

    def groups(self, groups):
        for group, row in zip(groups, self.rows, strict=True):
            pairs = zip(group.candidates, row, strict=True)
            yield Group(group.prompt, tuple(Candidate(c.response, s) for c, s in pairs))

    def remarks(self):
        return ["1 answer was odd"]


def group(k, **facts):
    said = tuple(Candidate((Turn("assistant", f"fox {i}"),), facts={"id": i}) for i in range(k))
    return Group((Turn("user", "hello"),), said, facts)


def together(rows, **options):
    members = {f"m{i}": Table(row) for i, row in enumerate(rows)}
    scorer = EnsembleScorer(members, EnsembleOptions(**options))
    (found,) = scorer.groups([group(len(rows[0]), id=7)])
    return found, scorer


def scores(found):
    return [one.score for one in found.candidates]


FORMULAS = {
    "mean": lambda r, c: sum(r) / len(r),
    "median": lambda r, c: statistics.median(r),
    "worst": lambda r, c: min(r),
    "mean_minus_std": lambda r, c: sum(r) / len(r) - c * statistics.pstdev(r),
    "mean_minus_variance": lambda r, c: sum(r) / len(r) - c * statistics.pvariance(r),
}


def test_every_name_has_a_formula():
    assert set(FORMULAS) == set(AGGREGATES)


@pytest.mark.parametrize("by", FORMULAS)
@given(rows=TABLES, coefficient=st.floats(0, 3))
def test_each_way_is_its_formula_over_members(by, rows, coefficient):
    found, _ = together(rows, ensemble_by=by, ensemble_coefficient=coefficient)
    columns = list(zip(*rows, strict=True))
    assert scores(found) == pytest.approx([FORMULAS[by](c, coefficient) for c in columns], abs=1e-8)
    assert found.facts == {"id": 7}
    for i, (one, column) in enumerate(zip(found.candidates, columns, strict=True)):
        assert one.facts["id"] == i
        assert list(one.facts[FACT]["scores"].values()) == list(column)
        assert one.facts[FACT]["spread"] == pytest.approx(statistics.pstdev(column), abs=1e-8)


@pytest.mark.parametrize("by", AGGREGATES)
@given(rows=TABLES, shifts=st.lists(st.floats(-9, 9), min_size=5, max_size=5))
def test_a_members_own_constant_changes_nothing_once_centred(by, rows, shifts):
    """Bradley and Terry's rewards are known up to a constant of the prompt."""
    moved = [[score + shift for score in row] for row, shift in zip(rows, shifts, strict=False)]
    ours, theirs = (
        scores(together(own, ensemble_by=by, ensemble_scale="centred")[0]) for own in (rows, moved)
    )
    assert ours == pytest.approx(theirs, abs=1e-6)


@pytest.mark.parametrize("by", AGGREGATES)
@given(row=st.lists(st.floats(-20, 20), min_size=1, max_size=6), m=st.integers(2, 4))
def test_members_that_agree_say_what_each_says(by, row, m):
    found, _ = together([row] * m, ensemble_by=by)
    assert scores(found) == pytest.approx(row, abs=1e-12)


@given(rows=TABLES)
def test_standardised_members_weigh_the_same_whatever_their_unit(rows):
    table = np.array(rows)
    found = SCALES["standardised"](table)
    spread = np.where(table.std(1) > 1e-9, 1.0, found.std(1))
    assert found.mean(1) == pytest.approx(np.zeros(len(rows)), abs=1e-6)
    assert found.std(1) == pytest.approx(spread, abs=1e-6)
    assert SCALES["standardised"](8 * table) == pytest.approx(found, abs=1e-9)


def test_equal_scores_stay_equal_when_standardised():
    found, _ = together([[2.0, 2.0], [1.0, 3.0]], ensemble_scale="standardised")
    assert scores(found) == [-0.5, 0.5]


def test_an_answer_that_one_member_cannot_score_has_none_and_no_part_in_the_scale():
    found, scorer = together([[1.0, None, 3.0], [0.0, 5.0, 2.0]], ensemble_scale="centred")
    assert scores(found) == [-1.0, None, 1.0]
    assert FACT not in found.candidates[1].facts
    said = [*(f"m{i}: 1 answer was odd" for i in range(2))]
    assert scorer.remarks() == [
        *said, "1 answers have no score, as a member could give none"
    ]  # fmt: skip


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("rows", [[[], []], [[1.0], [2.0]], [[None], [2.0]]])
def test_no_answer_and_one_answer_are_no_trouble(rows, scale):
    found, _ = together(rows, ensemble_scale=scale)
    assert len(scores(found)) == len(rows[0])


@pytest.fixture
def folders(model_folder, tmp_path):
    """Two reward models that differ in their heads."""
    options = ModelOptions(model=str(model_folder), dtype="fp32")
    made = [tmp_path / name for name in ("one", "two")]
    for seed, folder in enumerate(made):
        save_reward_model(load_reward_model(options, trainable=False, seed=seed), folder)
    return [str(folder) for folder in made]


def written(path, groups):
    rows = [{"prompt": f"say {i}", "candidates": [{"response": f"fox {i} {j}"} for j in range(k)]}
            for i, k in enumerate(groups)]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def read(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_reward_models_score_together_from_the_command_line(folders, tmp_path, capsys):
    data, out = written(tmp_path / "groups.jsonl", [3, 1, 2]), tmp_path / "scored.jsonl"
    name = f"ensemble:{','.join(folders)}"
    words = ["--dtype", "fp32", "--ensemble-by", "worst"]
    main(["score", data, "--with", name, "--out", str(out), *words])
    for place, folder in enumerate(folders):
        alone = tmp_path / f"{place}.jsonl"
        main(["score", data, "--with", folder, "--out", str(alone), "--dtype", "fp32"])
        for row, own in zip(read(out), read(alone), strict=True):
            for one, other in zip(row["candidates"], own["candidates"], strict=True):
                members = one["facts"]["ensemble"]["scores"]
                assert members[folder] == pytest.approx(other["score"], abs=1e-6)
                assert one["score"] == min(members.values())
    about = read(out)[0]["scorer"]
    assert [one["name"] for one in about["members"]] == folders
    assert about["ensemble_by"] == "worst"


def test_an_ensemble_goes_on_only_as_the_same_ensemble(folders, tmp_path, capsys):
    data, out = written(tmp_path / "groups.jsonl", [2, 2]), tmp_path / "scored.jsonl"
    command = ["score", data, "--with", f"ensemble:{','.join(folders)}", "--out", str(out)]
    command += ["--dtype", "fp32"]
    main(command)
    whole = read(out)
    out.write_bytes(out.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(SystemExit):
        main([*command, "--resume", "--ensemble-by", "median"])
    assert "needs rows of the same scorer" in capsys.readouterr().err
    main([*command, "--resume"])
    assert len(read(out)) == 2
    for row, before in zip(read(out), whole, strict=True):
        both = [[one["score"] for one in each["candidates"]] for each in (row, before)]
        assert both[0] == pytest.approx(both[1], abs=1e-6)


def test_evaluation_says_what_disagreement_is_worth(folders, tmp_path, capsys):
    rows = [{"prompt": f"say {i}", "chosen": f"fox {i}", "rejected": f"the dog {i} {i}"}
            for i in range(12)]  # fmt: skip
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    name, out = f"ensemble:{','.join(folders)}", tmp_path / "eval"
    main(["evaluate", "reward", "--data", str(data), "--with", name, "--out", str(out)])
    (found,) = json.loads((out / "evaluation.json").read_text("utf-8"))["scorers"]
    ways = [one["by"] for one in found["sureness"]]
    assert ways == ["size of the margin", "members close together", "margin over spread"]
    told = capsys.readouterr().out
    assert all(f"by {way} the surest half is right in " in told for way in ways)
    assert "The surest pairs" in (out / "report.html").read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ensemble:", "needs a model behind it"),
        ("ensemble:rules", "an ensemble needs two different scorers or more"),
        ("ensemble:rules,rules", "an ensemble needs two different scorers or more"),
        ("ensemble:rules,rule", "--with must be one of"),
        ("ensemble:rules,no/such/place", "found no such folder"),
    ],
)
def test_what_is_no_ensemble_is_said_in_a_sentence(name, said, tmp_path, capsys):
    data = written(tmp_path / "groups.jsonl", [2])
    with pytest.raises(SystemExit) as stopped:
        main(["score", data, "--with", name])
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err


def test_any_scorers_score_together(folders):
    options = ScoringOptions(dtype="fp32", constraints='[{"name": "no_commas"}]')
    scorer = load_scorer(f"ensemble:rules,{folders[0]}", options)
    (found,) = scorer.groups([group(3)])
    alone = [
        [one.score for one in next(iter(load_scorer(name, options).groups([group(3)]))).candidates]
        for name in ("rules", folders[0])
    ]
    assert scores(found) == pytest.approx(np.mean(alone, 0).tolist())
