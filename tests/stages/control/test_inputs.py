"""What a run of control must not learn from: each gets its sentence before anything is learned."""

from dataclasses import replace

import numpy as np
import pytest

from melior import ops
from melior.claims.morec_world import STABILISING, lived
from melior.data.control_files import About, Logged, Reference, write_logged
from melior.stages.control.inputs import digest, read_about, read_inputs, rule_of, write_inputs
from melior.stages.control.options import LogOptions, TrainOptions

LOGGED = lived(STABILISING, 64, generator=ops.generator(0))
NEVER = "melior.envs.control:never_over"


UNKNOWN = About()


def options(tmp_path, logged=LOGGED, about=UNKNOWN, **log) -> tuple[LogOptions, TrainOptions]:
    write_logged(tmp_path / "log.npz", Logged(logged, about))
    train = TrainOptions(str(tmp_path / "run"), eval_episodes=0)
    return LogOptions(str(tmp_path / "log.npz"), **log), train


def test_a_sound_log_is_read_with_what_is_known_of_it(tmp_path):
    about = About("Some-v0", Reference(-1.0, 2.0), {"seed": 3})
    log, train = options(tmp_path, about=about, termination=NEVER)
    found = read_inputs(log, train)
    assert (found.task, found.reference) == ("Some-v0", Reference(-1.0, 2.0))
    assert found.sha256 == digest(LOGGED)
    rule_of(log, found)
    (tmp_path / "other").mkdir()
    write_inputs(tmp_path / "other", found, log, train)
    assert read_about(tmp_path / "other") == about
    named = replace(log, task="Other-v1")
    assert read_inputs(named, train).task == "Other-v1"


def test_the_digest_tells_any_change():
    rewards = LOGGED.rewards.copy()
    rewards[5] += 1e-6
    assert digest(LOGGED) == digest(replace(LOGGED))
    assert digest(LOGGED) != digest(replace(LOGGED, rewards=rewards))


def test_errors_of_the_log_are_refused_with_their_rows_unless_allowed(tmp_path):
    log, train = options(tmp_path, replace(LOGGED, actions=LOGGED.actions * 3))
    with pytest.raises(ValueError, match=r"actions-out-of-range .*row \d.*--allow-lint-errors"):
        read_inputs(log, train)
    found = read_inputs(replace(log, allow_lint_errors=True), train)
    assert [one.code for one in found.findings] == ["actions-out-of-range"]


def test_time_outs_that_were_logged_as_terminals_are_refused(tmp_path):
    wrong = replace(LOGGED, terminals=LOGGED.timeouts, timeouts=np.zeros_like(LOGGED.timeouts))
    log, train = options(tmp_path, wrong)
    with pytest.raises(ValueError, match="timeouts-as-terminals"):
        read_inputs(log, train)


def test_constant_observations_are_warned_of(tmp_path):
    columns = {
        name: np.concatenate([getattr(LOGGED, name), np.full((64, 1), 0.5, np.float32)], axis=1)
        for name in ("observations", "next_observations")
    }
    log, train = options(tmp_path, replace(LOGGED, **columns))
    findings = read_inputs(log, train).findings
    assert [(one.level, one.code) for one in findings] == [("warning", "constant-dimensions")]


def test_a_rule_is_needed_and_must_agree_with_the_log(tmp_path):
    log, train = options(tmp_path)
    with pytest.raises(ValueError, match="termination is needed of 'a data set that names no task"):
        rule_of(log, read_inputs(log, train))
    terminals = np.zeros_like(LOGGED.terminals)
    terminals[[7, 15]] = True
    wrong = replace(LOGGED, terminals=terminals, timeouts=LOGGED.timeouts & ~terminals)
    said = r"log\.npz:8: termination must agree .*it goes on"
    for known in ({"termination": NEVER}, {"task": "Pendulum-v1"}):
        with pytest.raises(ValueError, match=said):  # whatever learns from it
            read_inputs(*options(tmp_path, wrong, **known))


def test_a_task_is_needed_where_policies_are_judged(tmp_path):
    log, train = options(tmp_path)
    with pytest.raises(ValueError, match=r"the task to judge policies in is needed.*--task"):
        read_inputs(log, replace(train, eval_episodes=1))


def test_a_folder_that_holds_a_run_is_not_written_over(tmp_path):
    log, train = options(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="a folder without a run is needed"):
        read_inputs(log, train)
    with pytest.raises(ValueError, match="the folder of a run on logged transitions is needed"):
        read_about(tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"eval_episodes": -1}, "eval_episodes must be at least 0"),
        ({"seed": -1}, "seed must be at least 0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(changed, said):
    with pytest.raises(ValueError, match=said):
        TrainOptions("out", **changed)
