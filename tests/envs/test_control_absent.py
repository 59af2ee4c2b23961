"""Without the extra `control` whatever needs it says so, and what does not need it goes on."""

import sys

import pytest

from melior.data.control_files import read_logged
from melior.envs import control


def test_tasks_say_which_extra_is_missing(monkeypatch):
    monkeypatch.setitem(
        sys.modules, "gymnasium", None
    )  # importing it fails as if it were not there
    with pytest.raises(
        ValueError, match=r"Pendulum-v1: tasks need .* pip install 'melior\[control\]'"
    ):
        control.sizes("Pendulum-v1")


def test_tasks_of_mujoco_say_which_extra_brings_it(monkeypatch):
    pytest.importorskip("gymnasium")
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(ValueError, match=r"Hopper-v5: needs MuJoCo.*'melior\[mujoco\]'"):
        control.sizes("Hopper-v5")


def test_sets_of_minari_say_which_extra_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ValueError, match=r"minari:a/b-v0: .* pip install 'melior\[control\]'"):
        read_logged("minari:a/b-v0")


def test_rules_need_no_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    assert control.termination("Hopper-v5") is control.hopper_is_over
