"""SCIR in rounds on a tiny model: what is asked, what each round leaves, what is refused."""

import json

import pytest

from melior.cli import main
from melior.data.files import read_pairs
from melior.models.loading import load_chat
from melior.options import DataOptions, LoopOptions, ModelOptions, OptimConfig
from melior.records import Candidate, Group, Turn, text
from melior.stages.internal.material import read_material
from melior.stages.internal.opinions import SelfJudge
from melior.stages.internal.options import ConsistencyOptions, ConsistencyPlan, StopOptions
from melior.stages.internal.rounds import disjoint_pairs
from tests.recipes.test_madpo import WORDS, read, rows, write_pairs
from tests.recipes.test_scir import save_judge, training


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory):
    return save_judge(tmp_path_factory.mktemp("models") / "tiny-judge")


@pytest.fixture
def labelled(tmp_path):
    return write_pairs(tmp_path / "seed.jsonl", 0, 12)


@pytest.fixture
def held_out(tmp_path):
    return write_pairs(tmp_path / "held.jsonl", 60, 64)


def write_prompts(path, n, *more):
    said = [*(f"about {WORDS[i % 10]} {i}?" for i in range(n)), *more]
    path.write_text("".join(json.dumps({"prompt": one}) + "\n" for one in said), encoding="utf-8")
    return str(path)


@pytest.fixture
def prompts(tmp_path):
    return write_prompts(tmp_path / "prompts.jsonl", 6)


def words(model, labelled, prompts, out, *more):
    return ["scir", "--model", str(model), "--data", labelled, "--prompts", prompts, "--out",
            str(out), "--rounds", "2", "--max-new-tokens", "6", "--learning-rate", "3e-3",
            "--batch-size", "4", "--n-samples", "1", "--dtype", "fp32", "--max-tokens", "16384",
            *more]  # fmt: skip


def refused(line, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(line)
    assert stopped.value.code == 2
    return capsys.readouterr().err


def damaged(path):
    """The same rows, each with the trace of a wrong encoding."""
    worse = [row | {"prompt": row["prompt"] + " \ufffd"} for row in rows(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in worse), encoding="utf-8")


def test_rounds_ask_all_prompts_but_held_out_ones_and_leave_what_they_were_made_of(
    judge_folder, labelled, held_out, tmp_path
):
    out, apart = tmp_path / "run", [pair.prompt[0].content for pair in read_pairs([held_out])]
    prompts = write_prompts(tmp_path / "prompts.jsonl", 6, *apart)
    main(words(judge_folder, labelled, prompts, out, "--eval-data", held_out, "--eval-steps", "1"))
    asked = [row["prompt"][0]["content"] for n in (1, 2)
             for row in rows(out / f"round-{n}" / "prompts.jsonl")]  # fmt: skip
    assert sorted(asked) == sorted(f"about {WORDS[i]} {i}?" for i in range(6))
    manifests = [read(out / f"round-{n}" / "manifest.json") for n in (1, 2)]
    assert manifests[0]["models"]["learned"] == manifests[1]["models"]["policy"]
    for number, manifest in enumerate(manifests, 1):
        here = out / f"round-{number}"
        pairs, learned = rows(here / "pairs.jsonl"), here / "learn"
        assert 0 < len(pairs) <= 6
        assert all(row["chosen"] != row["rejected"] for row in pairs)
        assert manifest["counts"] == {"prompts": 3, "paired": 3, "pairs": len(pairs)}
        assert set(manifest["files"]) == {"prompts.jsonl", "candidates.jsonl", "pairs.jsonl"}
        assert manifest["seeds"]["learning"] == 42 + number
        assert manifest["template"]["hash"]
        examined = [row for row in rows(learned / "metrics.jsonl") if "eval_judge/accuracy" in row]
        assert [row["step"] for row in examined] == [row["step"] for row in training(learned)]
        assert not (learned / "checkpoints").exists()
    told = [row for row in rows(out / "metrics.jsonl") if "round/pairs" in row]
    assert [row["step"] for row in told] == [1, 2]
    assert told[1]["round/right_by_the_judge"] == manifests[1]["facts"]["right by the judge, after"]
    assert (out / "report.html").stat().st_size > 10_000


def test_nothing_else_is_gone_on_with_and_no_failed_run_is_mixed_with_a_new_one(
    judge_folder, labelled, prompts, tmp_path, capsys
):
    out = tmp_path / "run"
    line = words(judge_folder, labelled, prompts, out, "--rounds", "1", "--n-prompts", "2")
    main(line)
    write_prompts(tmp_path / "prompts.jsonl", 7)
    assert "found that prompts was" in refused([*line, "--resume"], capsys)
    write_prompts(tmp_path / "prompts.jsonl", 6)
    write_pairs(tmp_path / "seed.jsonl", 0, 13)
    assert "found that data was" in refused([*line, "--resume"], capsys)
    record = read(out / "run.json") | {"status": "failed"}
    (out / "run.json").write_text(json.dumps(record))
    said = refused([*line, "--seed", "7"], capsys)
    assert "a folder without rounds is needed; found those of a failed run" in said
    main([*line, "--seed", "7", "--overwrite"])
    assert read(out / "round-1" / "manifest.json")["seeds"]["learning"] == 8


def test_too_few_prompts_and_labelled_pairs_with_errors_are_refused_before_any_answer(
    judge_folder, labelled, prompts, tmp_path, capsys
):
    line = words(judge_folder, labelled, prompts, tmp_path / "run")
    said = refused([*line, "--n-prompts", "4"], capsys)
    assert "2 rounds of 4 prompts are needed, all different; found 6; lower --n-prompts or" in said
    damaged(tmp_path / "seed.jsonl")
    assert "text damaged by a wrong encoding" in refused(line, capsys)
    assert not (tmp_path / "run").exists()


def plan(model, labelled, free, held_out=(), *, has_own_answers):
    return ConsistencyPlan(
        "scir", "", ConsistencyOptions(), StopOptions(), (free,), ModelOptions(model=str(model)),
        DataOptions((labelled,), held_out), OptimConfig(), LoopOptions("nowhere"), {},
        has_own_answers=has_own_answers,
    )  # fmt: skip


def test_errors_in_given_pairs_are_refused_and_in_the_models_own_said(
    judge_folder, labelled, held_out, tmp_path
):
    """Pairs of held-out prompts are errors; what only a label says is none, as nothing reads it."""
    judge = SelfJudge(load_chat(ModelOptions(model=str(judge_folder))))
    given = plan(judge_folder, labelled, held_out, (held_out,), has_own_answers=False)
    with pytest.raises(ValueError, match="a held-out row whose prompt is also trained on"):
        read_material(given, judge)
    own = plan(judge_folder, labelled, held_out, (held_out,), has_own_answers=True)
    assert read_material(own, judge).free.said_of("unlabelled") == [
        "unlabelled pairs: 4 rows (100.0%): a held-out row whose prompt is also trained on"
    ]
    turned = tmp_path / "turned.jsonl"
    there = rows(tmp_path / "held.jsonl")
    back = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} for row in there]
    turned.write_text("".join(json.dumps(row) + "\n" for row in [*there, *back]), encoding="utf-8")
    assert len(read_material(plan(judge_folder, labelled, str(turned), has_own_answers=False),
                             judge).free.groups) == 8  # fmt: skip


def test_pairs_of_answers_are_disjoint_and_different_and_say_which_was_cut_off():
    said = ["a", "b", "a", "", "c", "d", "e"]
    group = Group((Turn("user", "x"),), tuple(Candidate((Turn("assistant", t),)) for t in said))
    found = disjoint_pairs(group, seed=0)
    drawn = [text(side) for pair in found for side in (pair.chosen, pair.rejected)]
    assert len(found) == 2
    assert len(set(drawn)) == 4
    assert set(drawn) <= set("abcde")
    assert found == disjoint_pairs(group, seed=0)
    several = {str(disjoint_pairs(group, seed=seed)) for seed in range(8)}
    assert len(several) > 4
    one = Group(group.prompt, group.candidates[:1] * 3)
    assert disjoint_pairs(one, seed=0) == []
    cut = Candidate((Turn("assistant", "f"),), facts={"is_finished": False})
    (pair,) = disjoint_pairs(Group(group.prompt, (group.candidates[0], cut)), seed=0)
    side = "chosen" if text(pair.chosen) == "f" else "rejected"
    assert pair.facts[f"is_finished_{side}"] is False
