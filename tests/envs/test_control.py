"""Tasks and their rules: logs say what was lived, whatever is lived beside it, and rules agree."""

import numpy as np
import pytest
import torch

from melior import ops
from melior.data.control import Transitions, lint_transitions
from melior.envs import control

gymnasium = pytest.importorskip("gymnasium")
PENDULUM = "Pendulum-v1"


def leaning(observations):
    """A policy that is none: against the speed."""
    return -0.1 * observations[:, -1:].clamp(-8, 8)


def random_actions(width, seed):
    generator = ops.generator(seed)
    return lambda seen: 2 * torch.rand(len(seen), width, generator=generator) - 1


def lived(seed, length):
    """One episode of Pendulum, by Gymnasium alone."""
    env = gymnasium.make(PENDULUM)
    seen, rows = env.reset(seed=seed)[0], []
    for _ in range(length):
        action = leaning(torch.from_numpy(seen)[None])[0].numpy()
        following, reward, _, over, _ = env.step(2 * action)
        rows.append((seen, action, reward, following))
        seen = following
        if over:
            break
    env.close()
    return [np.stack(column) for column in zip(*rows, strict=True)]


def test_a_log_is_what_was_lived():
    logged = control.collect(PENDULUM, leaning, steps=410, copies=2, seed=7)
    assert len(logged) == 410
    assert np.flatnonzero(logged.timeouts).tolist() == [199, 204, 404, 409]
    for first, seed in ((0, 7), (205, 8)):
        seen, acted, earned, followed = lived(seed, 200)
        rows = slice(first, first + 200)
        assert np.allclose(logged.observations[rows], seen)
        assert np.allclose(logged.actions[rows], acted, atol=1e-6)
        assert np.allclose(logged.rewards[rows], earned, atol=1e-5)
        assert np.allclose(logged.next_observations[rows], followed)
    assert lint_transitions(logged) == []


def test_the_number_of_steps_need_not_fit_the_copies():
    logged = control.collect(PENDULUM, leaning, steps=10, copies=4, seed=0)
    assert len(logged) == 10
    assert np.flatnonzero(logged.timeouts).tolist() == [2, 5, 8, 9]
    assert lint_transitions(logged) == []


def test_returns_are_those_of_episodes_lived_alone():
    found = control.returns(PENDULUM, leaning, episodes=3, seed=4)
    wanted = [lived(seed, 200)[2].sum() for seed in (4, 5, 6)]
    assert found.tolist() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    "task", ["Hopper-v5", "Walker2d-v5", "InvertedPendulum-v5", "HalfCheetah-v5"]
)
def test_rules_agree_with_the_tasks(task, tmp_path, monkeypatch):
    pytest.importorskip("mujoco")
    monkeypatch.chdir(tmp_path)  # MuJoCo leaves its log where it is
    actions = control.sizes(task)[1]
    logged = control.collect(task, random_actions(actions, 3), steps=600, copies=2, seed=0)
    assert logged.terminals.sum() > 5 or task == "HalfCheetah-v5"
    control.check_termination(control.termination(task), logged, where="f")
    if task != "HalfCheetah-v5":
        with pytest.raises(ValueError, match=r"f:\d+: termination must agree .* it goes on, in"):
            control.check_termination(control.never_over, logged, where="f")


@pytest.mark.parametrize(
    ("rule", "place", "values"),
    [
        (control.hopper_is_over, 0, {0.69: True, 0.71: False, 5.0: False}),
        (control.hopper_is_over, 1, {-0.21: True, -0.19: False, 0.19: False, 0.21: True}),
        (control.hopper_is_over, 4, {-100.0: True, -99.0: False, 99.0: False, 100.0: True}),
        (control.walker_is_over, 0, {0.79: True, 0.81: False, 1.99: False, 2.01: True}),
        (control.walker_is_over, 1, {-1.01: True, -0.99: False, 0.99: False, 1.01: True}),
        (control.pendulum_has_tipped, 1, {-0.21: True, -0.2: False, 0.2: False, 0.21: True}),
        (control.never_over, 0, {-1e9: False, 1e9: False}),
    ],
)
def test_rules_look_to_both_sides(rule, place, values):
    upright = torch.zeros(len(values), 6)
    upright[:, 0] = 1.2
    after = upright.clone()
    after[:, place] = torch.tensor(list(values))
    assert rule(upright, torch.zeros(len(values), 1), after).tolist() == list(values.values())


@pytest.mark.parametrize(
    "rule", [control.hopper_is_over, control.walker_is_over, control.pendulum_has_tipped]
)
def test_what_is_no_number_is_over(rule):
    after = torch.full((1, 6), torch.nan)
    assert rule(after, torch.zeros(1, 1), after).all()


def logged(terminals):
    n = len(terminals)
    places = np.arange(n, dtype=np.float32)[:, None]
    ends = np.array(terminals)
    return Transitions(places, places, places[:, 0], places + 1, ends, np.zeros(n, bool))


def beyond(limit):
    return lambda observations, actions, next_observations: next_observations[:, 0] > limit


def test_a_rule_is_held_against_the_log():
    rows = logged([False, False, True])
    control.check_termination(beyond(2.5), rows, where="f")
    with pytest.raises(ValueError, match=r"f:3: .* found a terminal, .* it goes on, in 1 rows"):
        control.check_termination(beyond(9), rows, where="f")
    with pytest.raises(ValueError, match=r"f:2: .* found no terminal, .* it is over, in 1 rows"):
        control.check_termination(beyond(1.5), rows, where="f")
    with pytest.raises(ValueError, match=r"termination must give bools; found torch.float32"):
        control.check_termination(lambda s, a, after: after[:, 0], rows, where="f")


WRONG = [
    (lambda s, a, after: after[:, 9] > 0, "found IndexError: index 9 is out of bounds"),
    (lambda s, a: a > 0, "found TypeError: .* takes 2 positional arguments but 3 were given"),
    (lambda s, a, after: True, "found bool"),
    (lambda s, a, after: [False] * 3, "found list"),
    (lambda s, a, after: (after > 0).numpy(), "found ndarray"),
    (lambda s, a, after: after > 0, r"found the shape \[3, 1\]"),
]


@pytest.mark.parametrize(("function", "found"), WRONG)
def test_a_users_function_that_fails_or_says_something_else_is_told(function, found):
    rows = logged([False, False, True])
    for check, option in (
        (lambda: control.check_termination(function, rows, where="f"), "termination"),
        (lambda: control.check_reward(function, rows), "true_reward"),
    ):
        sentence = rf"{option} must give a tensor \[3\] of as many transitions; {found}"
        with pytest.raises(ValueError, match=sentence):
            check()


def test_what_a_users_function_does_in_place_stays_with_it():
    rows = logged([False, False, True])

    def writes(observations, actions, next_observations):
        for given in (observations, actions, next_observations):
            given *= 0
        return torch.zeros(3)

    with pytest.raises(ValueError, match="termination must give bools"):
        control.check_termination(writes, rows, where="f")
    control.check_reward(writes, rows)
    for name, column in vars(logged([False, False, True])).items():
        assert (getattr(rows, name) == column).all()


def test_a_true_reward_is_held_against_the_log():
    """The log's rewards are its places: 0, 1, 2."""
    rows = logged([False, False, True])
    assert control.check_reward(lambda s, a, after: s[:, 0], rows) == 0
    assert control.check_reward(lambda s, a, after: after[:, 0], rows) == 1
    for reward in (lambda s, a, after: 1 / s[:, 0], lambda s, a, after: s[:, 0] > 1):
        with pytest.raises(ValueError, match="true_reward must give finite floats; found"):
            control.check_reward(reward, rows)


def test_a_module_that_does_not_run_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "halfmade.py").write_text("def rule(:\n", encoding="utf-8")
    (tmp_path / "undone.py").write_text("raise RuntimeError('no')\n", encoding="utf-8")
    for module, found in (("halfmade", "SyntaxError: "), ("undone", "RuntimeError: no")):
        with pytest.raises(ValueError, match=f"termination must be 'module:function'.*{found}"):
            control.named_function(f"{module}:rule", "termination")


def test_rules_are_found_by_task_or_by_name():
    assert control.termination("Hopper-v5") is control.hopper_is_over
    assert control.termination("any/Pendulum-v1") is control.never_over
    own = control.termination("Own-v0", "melior.envs.control:walker_is_over")
    assert own is control.walker_is_over
    for named, sentence in (
        ("", "termination is needed of 'Own-v0', as 'module:function' .* known are Pendulum"),
        ("melior.envs.control:none", "must be 'module:function'; found 'melior.envs.control:none'"),
        ("nowhere:rule", "must be 'module:function'; found 'nowhere:rule'"),
        ("rule", "must be 'module:function'; found 'rule'"),
        ("melior.envs.control:RULES", "termination must be a function"),
    ):
        with pytest.raises(ValueError, match=sentence):
            control.termination("Own-v0", named)


@pytest.mark.parametrize(
    ("task", "sentence"),
    [
        ("Pendulum-v99", "Pendulum-v99: a task that Gymnasium knows is needed"),
        ("Nothing-v0", "Nothing-v0: a task that Gymnasium knows is needed"),
        ("nowhere:Task-v0", "nowhere:Task-v0: a task that Gymnasium knows is needed"),
        ("MountainCar-v0", "MountainCar-v0: actions must be vectors; found Discrete"),
        ("Blackjack-v1", "Blackjack-v1: observations must be vectors; found Tuple"),
    ],
)
def test_tasks_that_are_none_of_ours_are_told(task, sentence):
    with pytest.raises(ValueError, match=sentence):
        control.sizes(task)


def test_a_task_without_an_end_is_told(monkeypatch):
    monkeypatch.setattr(control, "_ENDLESS", 199)
    with pytest.raises(ValueError, match="found one that has gone on for 199 steps; register"):
        control.returns(PENDULUM, leaning, episodes=1, seed=0)
    monkeypatch.setattr(control, "_ENDLESS", 200)
    assert len(control.returns(PENDULUM, leaning, episodes=1, seed=0)) == 1


def test_versions_of_a_task_are_one_task():
    assert control.unversioned("Hopper-v5") == control.unversioned("any/Hopper-v4") == "Hopper"
    assert control.unversioned("own:Hopper-v5") != "Hopper"


def test_sizes_are_known():
    assert control.sizes(PENDULUM) == (3, 1)
