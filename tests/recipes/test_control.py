"""MOREC and the methods of a log alone: resumed to the same bits, refused what is wrong, better."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from melior import ops
from melior.claims.morec_world import STABILISING, lived
from melior.config import config_from_dict, read_config
from melior.data.control_files import About, Logged, Reference, write_logged
from melior.envs.control import collect
from melior.models.control_policies import Critics, GaussianPolicy, PolicyOptions, load_policy
from melior.recipes import cloning, cql, morec, td3_bc
from melior.stages.control.inputs import read_inputs
from melior.stages.control.learners import Rows, SoftActorCritic
from melior.stages.control.options import LogOptions, TrainOptions, WorldOptions, as_learned
from melior.stages.control.replay import NO_FLOOR, Floor

TASK = "tests.control_task:Dot-v0"
METHODS = (morec, cloning, td3_bc, cql)
NO_REWARD = WorldOptions(members=3, elites=2, dynamics_hidden=16, dynamics_layers=2, max_epochs=10)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    place = tmp_path_factory.mktemp("control") / "mass.npz"
    write_logged(place, Logged(lived(STABILISING, 400, generator=ops.generator(0)), About()))
    return place


def config_of(method, dataset, out, **train):
    """A tiny config that never acts in a task, which need not be installed."""
    config = method.Config.tiny(str(dataset), str(out))
    log = replace(config.log, termination="melior.envs.control:never_over")
    return replace(config, log=log, train=replace(config.train, eval_episodes=0, **train))


def files_of(run: Path) -> dict[str, bytes]:
    names = [*run.glob("model/*/model.safetensors"), *run.glob("evaluation.json")]
    return {str(name.relative_to(run)): name.read_bytes() for name in names}


def rows_of(run: Path) -> list[dict]:
    lines = (run / "metrics.jsonl").read_text("utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


def notes_of(run: Path) -> list[str]:
    return json.loads((run / "run.json").read_text("utf-8"))["notes"]


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """Runs that nothing has interrupted, with all their checkpoints."""
    folder = tmp_path_factory.mktemp("whole")
    for method in METHODS:
        out = folder / method.__name__.rpartition(".")[2]
        method.run(config_of(method, dataset, out, save_steps=10, save_total_limit=1000))
    return folder


CUTS = [
    (morec, "dynamics", 10), (morec, "reward", 10), (morec, "reward", 40), (morec, "policy", 10),
    (morec, "policy", 30), (morec, "policy", 40), (cloning, "policy", 30), (td3_bc, "policy", 30),
    (cql, "policy", 40),
]  # fmt: skip


@pytest.mark.parametrize(("method", "phase", "step"), CUTS)
def test_a_run_that_was_cut_off_goes_on_to_the_same_bits(
    method, phase, step, dataset, whole, tmp_path
):
    name = method.__name__.rpartition(".")[2]
    run = tmp_path / name
    shutil.copytree(whole / name, run)
    order = ["dynamics", "reward", "policy"]
    for place in run.glob("checkpoints/*/step-*"):
        number, own = int(place.name.removeprefix("step-")), order.index(place.parent.name)
        if own > order.index(phase) or (own == order.index(phase) and number > step):
            shutil.rmtree(place)
    shutil.rmtree(run / "model")
    (run / "evaluation.json").unlink()
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 100000, "time": 0.0, "policy/lo')  # half a line of a lost future
    method.run(config_of(method, dataset, run, save_steps=10, save_total_limit=1000, resume=True))
    assert files_of(run) == files_of(whole / name)
    assert rows_of(run) == rows_of(whole / name)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A policy that is judged before it learns, and at its half and end, in a task of our own."""
    pytest.importorskip("gymnasium")
    folder = tmp_path_factory.mktemp("judged")
    drawn = torch.Generator().manual_seed(0)
    logged = collect(
        TASK, lambda seen: 2 * torch.rand(len(seen), 1, generator=drawn) - 1,
        steps=200, copies=2, seed=0,
    )  # fmt: skip
    write_logged(folder / "dot.npz", Logged(logged, About(TASK, Reference(0.0, 20.0))))
    config = cloning.Config.tiny(str(folder / "dot.npz"), str(folder / "run"))
    cloning.run(config)
    return config


def test_a_run_that_was_cut_off_before_its_first_checkpoint_is_judged_once_there(judged, tmp_path):
    whole, run = Path(judged.train.out), tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints")
    cloning.run(replace(judged, train=replace(judged.train, out=str(run), resume=True)))
    assert [row["step"] for row in rows_of(run) if "eval_return" in row] == [0, 30, 60]
    assert files_of(run) == files_of(whole)
    assert rows_of(run) == rows_of(whole)


def test_a_score_is_not_of_the_policy_before_it_learned(judged):
    run = Path(judged.train.out)
    before, half, end = (row["eval_return"] for row in rows_of(run) if "eval_return" in row)
    (table,) = json.loads((run / "evaluation.json").read_text("utf-8"))["tables"]
    assert table["title"] == "Mean of the last 2 judgements"
    assert dict(table["rows"])["return"] == pytest.approx((half + end) / 2, rel=1e-12)
    assert before != half


@pytest.mark.parametrize("step", [0, 40, 60])
def test_a_run_that_is_judged_only_once_it_is_resumed_keeps_each_judgement(step, judged, tmp_path):
    """Cut off at a step of 60, of which 30 and 60 are judged; before it learned only where at 0."""
    blind = replace(judged.train, out=str(tmp_path / "run"), eval_episodes=0, save_steps=10)
    cloning.run(replace(judged, train=replace(blind, save_total_limit=100)))
    run = tmp_path / "run"
    for place in run.glob("checkpoints/policy/step-*"):
        if int(place.name.removeprefix("step-")) > step:
            shutil.rmtree(place)
    again = replace(blind, resume=True, allow_changes=True, eval_episodes=2)
    cloning.run(replace(judged, train=again))
    found = {row["step"]: row["eval_return"] for row in rows_of(run) if "eval_return" in row}
    assert list(found) == [one for one in (0, 30, 60) if one > step or step == one == 0]
    tables = json.loads((run / "evaluation.json").read_text("utf-8"))["tables"]
    learned = [value for at, value in found.items() if at > 0]
    means = [dict(table["rows"])["return"] for table in tables]
    assert means == ([pytest.approx(np.mean(learned), rel=1e-12)] if learned else [])
    assert (run / "report.html").exists()


@pytest.mark.parametrize(("base", "cut"), [("mopo", 10), ("mobile", 6)])
def test_a_run_in_a_learned_world_that_is_judged_on_its_way_goes_on_to_the_same(
    base, cut, judged, tmp_path
):
    """Cut off between two judgements, and just after one; they are at 0, 6, 12 and the end."""
    tiny = morec.Config.tiny(judged.log.dataset, str(tmp_path / "whole"))
    config = replace(
        tiny, base=base, log=replace(tiny.log, termination="tests.control_task:has_left"),
        train=replace(tiny.train, steps=16, eval_steps=6, save_steps=2, save_total_limit=100),
        world=replace(tiny.world, max_epochs=2, reward_steps=10, snapshot_every=2),
        imagine=replace(tiny.imagine, every=4),
    )  # fmt: skip
    morec.run(config)
    whole, run = tmp_path / "whole", tmp_path / "cut"
    shutil.copytree(whole, run)
    for place in run.glob("checkpoints/policy/step-*"):
        if int(place.name.removeprefix("step-")) > cut:
            shutil.rmtree(place)
    morec.run(replace(config, train=replace(config.train, out=str(run), resume=True)))
    assert sum("eval_return" in row for row in rows_of(run)) == 4
    assert files_of(run) == files_of(whole)
    assert rows_of(run) == rows_of(whole)


@pytest.mark.parametrize("options", [{"filter": "best"}, {"filter": "none"}, {"base": "mobile"}])
def test_each_base_and_filter_runs_in_a_world_that_was_learned_before(
    options, dataset, whole, tmp_path
):
    config = config_of(morec, dataset, tmp_path / "run")
    config = replace(config, world=WorldOptions(str(whole / "morec")), **options)
    morec.run(config)
    assert load_policy(tmp_path / "run" / "model" / "policy").options.observations == 2
    again = replace(config, train=replace(config.train, out=str(tmp_path / "again")))
    morec.run(again)
    assert files_of(tmp_path / "run") == files_of(tmp_path / "again")


def columns_of_rewards(observations, actions, next_observations):
    """A reward as a user may well write it, `[n 1]`: it must not be spread to `[n n]`."""
    return -observations.square().sum(-1, keepdim=True)


def true_rewards(observations, actions, next_observations):
    return -observations.square().sum(-1)


def test_a_true_reward_is_checked_before_anything_is_learned_and_told_after(dataset, tmp_path):
    config = config_of(morec, dataset, tmp_path / "run")
    wrong, right = (
        replace(config, imagine=replace(config.imagine, true_reward=f"{__name__}:{one.__name__}"))
        for one in (columns_of_rewards, true_rewards)
    )
    with pytest.raises(ValueError, match=r"true_reward must give a tensor \[400\].*\[400, 1\]"):
        morec.run(wrong)
    assert not (tmp_path / "run").exists()
    morec.run(right)
    said = json.loads((tmp_path / "run" / "evaluation.json").read_text("utf-8"))["facts"]
    assert said["reward of imagined steps"].startswith("the true one, ")
    assert said["reward of imagined steps"].endswith("true_rewards, 0 off the log's on average")
    notes = notes_of(tmp_path / "run")
    assert any("and not one learned from the log" in note for note in notes)


def test_the_targets_of_cql_are_without_entropy(dataset, tmp_path):
    shape, n = PolicyOptions(2, 1, hidden=8), 64
    policy, critics = GaussianPolicy(shape, seed=0), Critics(shape, seed=1)
    with torch.no_grad():
        for weight in critics.parameters():
            weight.zero_()
    options = cql._options(config_of(cql, dataset, tmp_path / "run"))
    learner = SoftActorCritic(policy, critics, options, total_steps=9, seed=0)
    seen, never = torch.randn(n, 2), torch.zeros(n, dtype=torch.bool)
    rows = Rows(seen, torch.zeros(n, 1), torch.zeros(n), seen, never, never)
    assert learner([rows])["critic/loss"] == 0  # all is worth 0, and 0 is earned


def test_one_elite_cannot_disagree(dataset, tmp_path):
    config = config_of(morec, dataset, tmp_path / "run")
    with pytest.raises(ValueError, match="elites must be at least 2; found 1"):
        replace(config, base="mobile", world=replace(config.world, elites=1))
    alone = replace(config, filter="none", world=replace(NO_REWARD, elites=1))
    morec.run(alone)
    taken = replace(config, base="mobile", filter="none", world=WorldOptions(alone.train.out))
    with pytest.raises(ValueError, match="elites of the world must be at least 2; found 1"):
        morec.run(replace(taken, train=replace(taken.train, out=str(tmp_path / "taken"))))


def test_a_bound_within_the_log_is_refused(tmp_path):
    """Steps of 300 would be followed by 25, the bound that is meant for D4RL's tasks."""
    small = lived(STABILISING, 400, generator=ops.generator(0))
    wide = replace(
        small,
        observations=150 * small.observations,
        next_observations=150 * small.next_observations,
    )
    write_logged(tmp_path / "wide.npz", Logged(wide, About()))
    config = config_of(morec, tmp_path / "wide.npz", tmp_path / "run")
    largest = max(abs(wide.observations).max(), abs(wide.next_observations).max())
    said = rf"bound must be above the log's observations, {largest:.6g}; found 25; give --bound"
    with pytest.raises(ValueError, match=said):
        morec.run(config)
    assert not (tmp_path / "run").exists()


def test_a_world_is_handed_on_and_must_not_change_meanwhile(dataset, whole, tmp_path):
    """A run in another's world keeps that world, and is not resumed once its weights are others."""
    config = config_of(morec, dataset, tmp_path / "first", save_steps=20)
    config = replace(config, world=WorldOptions(str(whole / "morec")))
    morec.run(config)
    second = replace(config, world=WorldOptions(str(tmp_path / "first")))
    second = replace(second, train=replace(second.train, out=str(tmp_path / "second")))
    morec.run(second)
    files = files_of(tmp_path / "second")
    assert files == files_of(tmp_path / "first")
    assert (
        files["model/dynamics/model.safetensors"]
        == files_of(whole / "morec")["model/dynamics/model.safetensors"]
    )
    weights = tmp_path / "first" / "model" / "dynamics" / "model.safetensors"
    held = load_file(weights)
    save_file(held | {"log_variance_high": held["log_variance_high"] + 1}, weights)
    with pytest.raises(ValueError, match="found that world was"):
        morec.run(replace(second, train=replace(second.train, resume=True)))


def test_without_a_filter_no_reward_is_learned(dataset, tmp_path):
    config = replace(config_of(morec, dataset, tmp_path / "none"), filter="none", world=NO_REWARD)
    morec.run(config)
    run = tmp_path / "none"
    assert not any("counted from" in note for note in notes_of(run))
    assert not (run / "model" / "dynamics_reward").exists()
    assert not any(key.startswith("reward/") for row in rows_of(run) for key in row)
    world = json.loads((run / "evaluation.json").read_text("utf-8"))["world"]
    assert list(world["errors"]["the log's own actions"]) == ["any candidate", "the elites' mean"]
    there = replace(config, filter="best", world=WorldOptions(str(run)))
    with pytest.raises(ValueError, match=r"world: the folder of a finished run .*dynamics_reward"):
        morec.run(replace(there, train=replace(there.train, out=str(tmp_path / "best"))))


@pytest.mark.parametrize(
    ("named", "part", "option"),
    [("none", "imagine", {"threshold": 0.9}), ("none", "imagine", {"temperature": 5.0}),
     ("none", "imagine", {"on_reject": "drop"}), ("none", "world", {"reward_steps": 9}),
     ("none", "world", {"gradient_penalty": 1.0}), ("best", "imagine", {"temperature": 5.0})],
)  # fmt: skip
def test_options_that_a_filter_does_not_read_are_refused(named, part, option, tmp_path):
    plain = morec.Config(LogOptions("x.npz"), TrainOptions(str(tmp_path)), filter=named)
    name = next(iter(option)).replace("_", "-")
    with pytest.raises(ValueError, match=f"^--{name} is not read with --filter {named}"):
        replace(plain, **{part: replace(getattr(plain, part), **option)})
    there = replace(plain, world=WorldOptions("runs/morec", reward_steps=9))  # as that world's run
    assert there.world.reward_steps == 9


def test_rewards_are_counted_from_the_lowest_only_where_a_rejected_step_can_be_a_terminal(
    dataset, whole
):
    """No logged reward is above 0, and so are few that are imagined, unless counted from there."""
    assert any("counted from the log's lowest" in note for note in notes_of(whole / "morec"))
    (place,) = (whole / "morec" / "checkpoints" / "policy").glob("step-*60")
    imagined = load_file(place / "state.safetensors")["batches/imagined/rewards"]
    config = config_of(morec, dataset, "nowhere")
    inputs = read_inputs(config.log, config.train)
    lowest = float(inputs.logged.rewards.min())
    assert inputs.logged.rewards.max() <= 0 < imagined.median()
    assert morec._floor(config, inputs) == Floor(lowest, config.discount) != NO_FLOOR
    for changed in ({"on_reject": "truncate"}, {"on_reject": "drop"}, {"threshold": 0.3}):
        other = replace(config, imagine=replace(config.imagine, **changed))
        assert morec._floor(other, inputs) == NO_FLOOR


def test_the_options_of_a_world_that_is_taken_hold_and_are_written_down(dataset, whole, tmp_path):
    config = config_of(morec, dataset, tmp_path / "run")
    theirs = replace(config.world, world=str(whole / "morec"))
    with pytest.raises(ValueError, match=r"members: the world in .* learned with 3, .*; found 4"):
        morec.run(replace(config, world=replace(theirs, members=4)))
    assert not (tmp_path / "run").exists()
    morec.run(replace(config, world=WorldOptions(str(whole / "morec"))))
    written = config_from_dict(morec.Config, read_config(tmp_path / "run" / "config.yaml"))
    assert written.world == theirs == as_learned(written.world)
    (said,) = (one for one in notes_of(tmp_path / "run") if one.startswith("world: that of"))
    assert "learned with members 3, elites 2, dynamics hidden 16," in said


def test_a_world_of_other_data_is_refused(whole, tmp_path):
    other = tmp_path / "other.npz"
    write_logged(other, Logged(lived(STABILISING, 400, generator=ops.generator(1)), About()))
    config = config_of(morec, other, tmp_path / "run")
    config = replace(config, world=WorldOptions(str(whole / "morec")))
    with pytest.raises(ValueError, match="world: dynamics of the same data are needed; found"):
        morec.run(config)
    half = tmp_path / "half"
    shutil.copytree(whole / "morec", half, ignore=shutil.ignore_patterns("model"))
    for place, said in (
        (tmp_path, "no run in"), (whole / "cloning", "another run in"), (half, "no model/dynamics"),
    ):  # fmt: skip
        config = replace(config, world=WorldOptions(str(place)))
        with pytest.raises(ValueError, match=f"world: the folder of a finished run .*found {said}"):
            morec.run(replace(config, train=replace(config.train, overwrite=True)))


def test_resuming_with_other_data_or_options_is_refused(dataset, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole / "cloning", run)
    config = config_of(cloning, dataset, run, save_steps=10, save_total_limit=1000, resume=True)
    with pytest.raises(ValueError, match=r"learning_rate was 0\.001, is now 0\.1"):
        cloning.run(replace(config, learning_rate=0.1))
    other = tmp_path / "mass.npz"
    write_logged(other, Logged(lived(STABILISING, 400, generator=ops.generator(1)), About()))
    wrong = replace(config, log=replace(config.log, dataset=str(other)))
    with pytest.raises(ValueError, match=r"dataset was .* is now"):
        cloning.run(wrong)
    shutil.copy(other, dataset.with_name("kept.npz"))
    before = dataset.read_bytes()
    dataset.write_bytes(other.read_bytes())
    try:
        with pytest.raises(ValueError, match="found that data was"):
            cloning.run(config)
    finally:
        dataset.write_bytes(before)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cloning_does_what_was_done_far_better_than_doing_the_mean(seed, dataset, tmp_path):
    config = config_of(cloning, dataset, tmp_path / "run", seed=seed)
    cloning.run(replace(config, train=replace(config.train, steps=400)))
    policy = load_policy(tmp_path / "run" / "model" / "policy")
    fresh = lived(STABILISING, 400, generator=ops.generator(99))
    with torch.no_grad():
        found = policy.act(torch.from_numpy(fresh.observations)).numpy()
    error, spread = np.square(found - fresh.actions).mean(), fresh.actions.var()
    assert error < 0.6 * spread  # the controller's own noise is 0.09 of about 0.35


def test_the_record_says_what_was_learned_from(whole):
    said = json.loads((whole / "morec" / "data.json").read_text("utf-8"))["train"]
    assert said["rows"] == 400
    assert said["findings"] == []
    world = json.loads((whole / "morec" / "evaluation.json").read_text("utf-8"))["world"]
    assert len(world["errors"]["the log's own actions"]["any candidate"]) == STABILISING.length
    assert np.shape(world["reward"]["rewards"]) == (17, 17)
    page = (whole / "morec" / "report.html").read_text("utf-8")
    assert "Trained, not judged" in page and "in 20 new ones" not in page
    assert "Dynamics reward around what followed" in page
    assert "Error of the world, by the log&#x27;s own actions" in page
    assert "those that it was fitted to: there it errs less than in new ones" in page
