"""`collect control` and `evaluate control`: sets that can be learned from, scores that add up."""

import json
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest

from melior import cli
from melior.commands import collect_control, evaluate_control
from melior.data.control import lint_transitions
from melior.data.control_files import read_logged
from melior.recipes import cloning, morec
from melior.stages.control.collect import KINDS

TASK = "tests.control_task:Dot-v0"
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
        TASK, str(out), rows=80, steps=160, random_steps=100, judge_every=20, hidden=8, copies=2
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
        TASK, str(tmp_path), rows=80, steps=160, random_steps=100, judge_every=20, hidden=8,
        copies=2,
    )  # fmt: skip
    collect_control.run(config)
    for kind in KINDS:
        left, right = (read_logged(place / f"{kind}.npz").transitions for place in (sets, tmp_path))
        for name, column in vars(left).items():
            assert np.array_equal(column, vars(right)[name]), (kind, name)


@needs_gymnasium
def test_sets_that_are_there_are_not_written_over(sets):
    with pytest.raises(ValueError, match=r"a folder without random, medium, .* is needed; found"):
        collect_control.Config(TASK, str(sets))


@needs_gymnasium
def test_policies_are_scored_alone_and_repetitions_together(sets, tmp_path, capsys):
    for seed in (0, 1):
        config = cloning.Config.tiny(str(sets / "medium.npz"), str(tmp_path / f"{seed}"))
        cloning.run(replace(config, train=replace(config.train, seed=seed)))
    other = cloning.Config.tiny(str(sets / "medium.npz"), str(tmp_path / "other"))
    cloning.run(replace(other, learning_rate=0.1))
    runs = tuple(str(tmp_path / name) for name in ("0", "1", "other"))
    evaluate_control.run(evaluate_control.Config(runs, episodes=3, out=str(tmp_path / "out.json")))
    found = json.loads((tmp_path / "out.json").read_text("utf-8"))
    reference = read_logged(sets / "medium.npz").about.reference
    for row in found["runs"]:
        share = (row["return"]["estimate"] - reference.random) / (
            reference.expert - reference.random
        )
        assert row["score"]["estimate"] == pytest.approx(100 * share)
    ((name, together),) = found["together"].items()
    assert name.startswith(f"cloning in {TASK}") and "other" not in name
    scores = [row["score"]["estimate"] for row in found["runs"][:2]]
    assert together["estimate"] == pytest.approx(np.mean(scores))
    assert together["n"] == 2


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
        "Pendulum-v1", str(tmp_path), rows=8, steps=24, random_steps=16, judge_every=8, hidden=8
    )
    with pytest.raises(ValueError, match=r"better than random actions.* raise --steps"):
        collect_control.run(config)


@needs_gymnasium
def test_a_task_of_ones_own_is_learned_in_with_its_own_rule(sets, tmp_path):
    config = morec.Config.tiny(str(sets / "medium.npz"), str(tmp_path / "run"))
    log = replace(config.log, termination="tests.control_task:has_left")
    morec.run(replace(config, log=log))
    found = json.loads((tmp_path / "run" / "evaluation.json").read_text("utf-8"))
    assert [row["name"] for row in found["comparisons"]] == ["normalised score", "return"]
    assert found["facts"] == {"reward of imagined steps": "learned"}
    with pytest.raises(ValueError, match=r"termination is needed of 'tests.control_task:Dot-v0'"):
        morec.run(morec.Config.tiny(str(sets / "medium.npz"), str(tmp_path / "none")))
