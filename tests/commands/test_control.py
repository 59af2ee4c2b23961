"""`collect control` and `evaluate control`: sets that can be learned from, scores that add up."""

import json
import shutil
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import numpy as np
import pytest

from melior import cli
from melior.commands import collect_control, evaluate_control
from melior.data.control import lint_transitions
from melior.data.control_files import read_logged
from melior.recipes import cloning, morec
from melior.stages.control.collect import EPISODES, FRESH, FRESH_SEED, KINDS, SEED

TASK = "tests.control_task:Dot-v0"
Dot = pytest.importorskip("tests.control_task").Dot if find_spec("gymnasium") else None
needs_gymnasium = pytest.mark.skipif(
    find_spec("gymnasium") is None, reason="needs the extra control"
)


def test_both_lists_of_kinds_are_one():
    assert collect_control.KINDS == KINDS


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    pytest.importorskip("gymnasium")
    out = tmp_path_factory.mktemp("sets")
    config = collect_control.Config(
        TASK, str(out), rows=80, steps=200, random_steps=100, judge_every=20, hidden=8, copies=2,
        learning_rate=1e-2,
    )  # fmt: skip
    collect_control.run(config)
    return out


@needs_gymnasium
def test_five_sets_are_written_that_can_be_learned_from(sets, capsys):
    references = set()
    for kind in KINDS:
        found = read_logged(sets / f"{kind}.npz")
        assert found.about.task == TASK
        assert found.about.facts["kind"] == kind
        assert [one for one in lint_transitions(found.transitions) if one.level == "error"] == []
        references.add(found.about.reference)
    assert len(references) == 1
    replay = read_logged(sets / "medium-replay.npz")
    assert len(replay.transitions) == replay.about.facts["steps_of_medium"]
    halves = [read_logged(sets / f"{k}.npz").transitions for k in ("medium", "expert")]
    both = read_logged(sets / "medium-expert.npz").transitions
    for name in ("observations", "actions", "rewards"):
        wanted = np.concatenate([getattr(half, name)[:40] for half in halves])
        assert np.array_equal(getattr(both, name), wanted)


@needs_gymnasium
def test_the_same_seed_collects_the_same(sets, tmp_path):
    config = collect_control.Config(
        TASK, str(tmp_path), rows=80, steps=200, random_steps=100, judge_every=20, hidden=8,
        copies=2, learning_rate=1e-2,
    )  # fmt: skip
    collect_control.run(config)
    for kind in KINDS:
        left, right = (read_logged(place / f"{kind}.npz").transitions for place in (sets, tmp_path))
        for name, column in vars(left).items():
            assert np.array_equal(column, vars(right)[name]), (kind, name)


def rows_of(run):
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """How a collection is set up, and the folder of one that nothing has interrupted."""
    pytest.importorskip("gymnasium")
    config = partial(
        collect_control.Config, TASK, rows=80, steps=200, random_steps=100, judge_every=15,
        hidden=8, copies=4, learning_rate=1e-2,
    )  # fmt: skip
    whole = tmp_path_factory.mktemp("collected") / "whole"
    collect_control.run(config(out=str(whole)))
    return config, whole


@needs_gymnasium
@pytest.mark.parametrize("n_left", [0, 1])
def test_a_killed_collection_goes_on_to_the_same_sets(collected, tmp_path, n_left):
    config, whole = collected
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    checkpoints = sorted((cut / "checkpoints").glob("step-*"))
    assert [one.name for one in checkpoints] == ["step-000090", "step-000100"]
    for left in [*checkpoints[n_left:], cut / "evaluation.json"]:
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    for kind in KINDS[2:]:
        (cut / f"{kind}.npz").unlink()
    with pytest.raises(ValueError, match="go on by --resume"):
        config(out=str(cut))
    collect_control.run(config(out=str(cut), resume=True))
    assert rows_of(cut) == rows_of(whole)
    for name in [*(f"{kind}.npz" for kind in KINDS), "evaluation.json"]:
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


@needs_gymnasium
def test_a_task_that_does_not_give_the_same_again_cannot_be_gone_on_with(tmp_path, monkeypatch):
    config = partial(
        collect_control.Config, TASK, str(tmp_path / "run"), rows=80, steps=200, random_steps=100,
        judge_every=20, hidden=8, learning_rate=1e-2,
    )  # fmt: skip
    collect_control.run(config())
    shutil.rmtree(max((tmp_path / "run" / "checkpoints").glob("step-*")))
    monkeypatch.setattr(Dot, "goes", 0.3)
    with pytest.raises(ValueError, match="same again for the same actions; found other rewards"):
        collect_control.run(config(resume=True))


@needs_gymnasium
def test_references_are_of_episodes_that_chose_nobody(sets):
    found = json.loads((sets / "evaluation.json").read_text("utf-8"))
    reference = read_logged(sets / "medium.npz").about.reference
    (returns,) = found["comparisons"]
    assert (returns["before"], returns["after"]) == (reference.random, reference.expert)
    lines = (sets / "metrics.jsonl").read_text("utf-8").splitlines()
    judged = [json.loads(line) for line in lines]
    best = max(row["eval_return"] for row in judged if "eval_return" in row)
    assert reference.expert != best
    assert FRESH_SEED >= SEED + EPISODES and FRESH >= 100
    page = (sets / "report.html").read_text("utf-8")
    assert "Returns of whole episodes in each data set" in page
    assert page.count('<img src="data:image/svg+xml') == 1


@needs_gymnasium
def test_sets_that_are_there_are_not_written_over(sets):
    with pytest.raises(ValueError, match=r"a folder without random, medium, .* is needed; found"):
        collect_control.Config(TASK, str(sets))


def cloned(sets, place, **changes):
    """A run of cloning in a folder; `seed` and `task` besides what is the recipe's own."""
    config = cloning.Config.tiny(str(sets / f"{changes.pop('kind', 'medium')}.npz"), str(place))
    train = replace(config.train, seed=changes.pop("seed", 0), eval_episodes=0)
    log = replace(config.log, task=changes.pop("task", ""))
    cloning.run(replace(config, train=train, log=log, **changes))
    return str(place)


def evaluated(runs, place, **options):
    """What is found of runs, as numbers, and the page."""
    out = place / "evaluated"
    config = evaluate_control.Config(tuple(runs), episodes=3, out=str(out), **options)
    page = evaluate_control.run(config)
    return json.loads((out / "evaluation.json").read_text("utf-8")), page.read_text("utf-8")


@needs_gymnasium
def test_policies_are_scored_alone_and_repetitions_together(sets, tmp_path, capsys):
    runs = [cloned(sets, tmp_path / f"{seed}", seed=seed) for seed in (0, 1)]
    runs.append(cloned(sets, tmp_path / "other", learning_rate=0.1))
    found, page = evaluated(runs, tmp_path)
    reference = read_logged(sets / "medium.npz").about.reference
    for row in found["runs"]:
        share = (row["return"]["estimate"] - reference.random) / (
            reference.expert - reference.random
        )
        assert row["score"]["estimate"] == pytest.approx(100 * share)
        assert np.mean(row["returns"]) == pytest.approx(row["return"]["estimate"])
    both, other = found["methods"]
    assert both["runs"] == runs[:2] and other["runs"] == runs[2:]
    assert both["name"] == "cloning, learning rate 0.001"
    scores = [row["score"]["estimate"] for row in found["runs"][:2]]
    assert both["score"]["estimate"] == pytest.approx(np.mean(scores))
    assert (both["score"]["n"], other["score"]["n"]) == (2, 1)
    said = capsys.readouterr().out
    assert "cloning, learning rate 0.001 in tests.control_task:Dot-v0: score" in said
    assert "over 2 seeds" in said
    assert page.count('<img src="data:image/svg+xml') == 2
    assert "One seed alone says nothing of another: cloning, learning rate 0.1." in page


@needs_gymnasium
def test_only_seeds_of_one_method_on_one_log_are_repetitions(sets, tmp_path, capsys):
    runs = [cloned(sets, tmp_path / name) for name in ("a", "b")]
    runs.append(cloned(sets, tmp_path / "c", seed=1))
    runs.append(cloned(sets, tmp_path / "d", seed=2, kind="expert"))
    found, _ = evaluated(runs, tmp_path)
    same, other = found["methods"]
    assert (same["runs"], same["left_out"]) == ([runs[0], runs[2]], [runs[1]])
    assert (other["name"], other["runs"]) == ("cloning 2", [runs[3]])
    assert f"a run of the same seed is counted: {runs[1]}" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"^each run is needed once; found"):
        evaluate_control.Config((runs[0], f"{runs[0]}/../a"))


@needs_gymnasium
def test_runs_that_share_a_world_are_told(sets, tmp_path, capsys):
    def learned(name, seed, world="", **options):
        config = morec.Config.tiny(str(sets / "medium.npz"), str(tmp_path / name))
        log = replace(config.log, termination="tests.control_task:has_left")
        train = replace(config.train, seed=seed, eval_episodes=0, steps=4)
        learn = replace(config.world, world=str(tmp_path / world) if world else "", **options)
        morec.run(replace(config, log=log, train=train, world=learn))
        return str(tmp_path / name)

    runs = [learned("a", 0), learned("b", 1), learned("c", 2, "a"), learned("d", 3, "b"),
            learned("f", 5, "c"), learned("e", 4, members=4)]  # fmt: skip
    found, page = evaluated(runs, tmp_path)
    assert [row["runs"] for row in found["methods"]] == [runs[:5], runs[5:]]
    assert found["methods"][0]["worlds"] == "in 2 worlds"  # the fifth's was handed on by the third
    assert "over 5 seeds, in 2 worlds" in capsys.readouterr().out
    assert "5 runs in 2 worlds, whose luck they share" in page
    assert evaluated(runs[:2], tmp_path)[0]["methods"][0]["worlds"] == ""


@needs_gymnasium
def test_references_of_another_task_are_none(sets, tmp_path, capsys):
    run = cloned(sets, tmp_path / "a", task="tests.control_task:Spot-v0")
    about = json.loads((tmp_path / "a" / "data.json").read_text("utf-8"))["train"]["about"]
    assert about["reference"] is None
    own = cloned(sets, tmp_path / "b")
    found, page = evaluated([own], tmp_path, task="tests.control_task:Spot-v0")
    assert found["runs"][0]["score"] is None and found["methods"][0]["score"] is None
    assert "no score, since no references are known" in capsys.readouterr().out
    assert page.count('<img src="data:image/svg+xml') == 1
    with pytest.raises(ValueError, match=r"references of .*Spot-v0 are needed; found those of"):
        evaluated([run], tmp_path, dataset=str(sets / "medium.npz"))


@needs_gymnasium
def test_a_policy_of_another_width_is_refused(sets, tmp_path):
    run = cloned(sets, tmp_path / "a")
    with pytest.raises(ValueError, match=r"must read 3 numbers and act by 1; found 2 and 1"):
        evaluated([run], tmp_path, task="Pendulum-v1")


@needs_gymnasium
def test_it_is_said_that_the_true_reward_was_used(sets, tmp_path, capsys):
    config = morec.Config.tiny(str(sets / "medium.npz"), str(tmp_path / "run"))
    log = replace(config.log, termination="tests.control_task:has_left")
    imagine = replace(config.imagine, true_reward="tests.control_task:closeness")
    morec.run(replace(config, log=log, imagine=imagine))
    found, page = evaluated([str(tmp_path / "run")], tmp_path)
    assert found["runs"][0]["true_reward"] == "tests.control_task:closeness"
    said = "learned from the true reward, tests.control_task:closeness"
    assert said in capsys.readouterr().out and said in page


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["collect", "control", "--task", "X-v0", "--out", "o", "--rows", "3"], "rows must be"),
        (["collect", "control", "--task", "X-v0", "--out", __file__], "out: a folder is needed"),
        (["evaluate", "control"], "at least one run folder is needed; found none"),
        (["evaluate", "control", "there/is/none"], "the folder of a run on logged transitions"),
        (["morec", "--dataset", "x.csv", "--out", "o", "--penalty", "-1"], "penalty must be"),
        (["morec", "--dataset", "x.csv", "--out", "o"], "transitions are read from"),
        (["td3-bc", "--dataset", "x.npz", "--out", "o"], "there is no such file"),
    ],
)
def test_a_wrong_input_gets_its_sentence(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


@needs_gymnasium
def test_a_learner_that_learned_nothing_says_so(tmp_path):
    config = collect_control.Config(
        "tests.control_task:Idle-v0", str(tmp_path), rows=8, steps=24, random_steps=16,
        judge_every=8, hidden=8,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"better than random actions.* raise --steps"):
        collect_control.run(config)


@needs_gymnasium
def test_a_task_of_ones_own_is_learned_in_with_its_own_rule(sets, tmp_path):
    config = morec.Config.tiny(str(sets / "medium.npz"), str(tmp_path / "run"))
    log = replace(config.log, termination="tests.control_task:has_left")
    morec.run(replace(config, log=log))
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text("utf-8"))
    assert [row["name"] for row in found["comparisons"]] == ["normalised score", "return"]
    assert found["facts"]["reward of imagined steps"] == "learned"
    assert "of the log's own steps" in found["facts"]["dynamics reward"]
    with pytest.raises(ValueError, match=r"termination is needed of 'tests.control_task:Dot-v0'"):
        morec.run(morec.Config.tiny(str(sets / "medium.npz"), str(tmp_path / "none")))
