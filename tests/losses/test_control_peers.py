"""The losses of control against d3rlpy's, frozen in `tests/peers/d3rlpy.json`.

d3rlpy gives one number for a batch: the mean over rows, and, for CQL, of each critic.
"""

import json
import math
from pathlib import Path

import pytest
import torch

from melior.losses import control as losses
from melior.recipes import cql

CASES = json.loads(
    (Path(__file__).parents[1] / "peers" / "d3rlpy.json").read_text(encoding="utf-8")
)["cases"]


def tensors(name: str, *keys: str) -> list[torch.Tensor]:
    return [torch.tensor(CASES[name][key]) for key in keys]


def near(value: float):
    return pytest.approx(value, rel=2e-6, abs=1e-6)


def test_cloning_is_d3rlpys():
    found = losses.cloning(*tensors("cloning", "actions", "logged")).mean()
    assert found.item() == near(CASES["cloning"]["loss"])


def test_td3_bc_is_d3rlpys():
    found = losses.td3_bc(
        *tensors("td3_bc", "values", "actions", "logged"), alpha=CASES["td3_bc"]["alpha"]
    )
    assert found.mean().item() == near(CASES["td3_bc"]["loss"])


def test_the_critic_of_sac_is_half_of_d3rlpys():
    """d3rlpy leaves out the half of eq. 5."""
    case = CASES["sac"]
    following, log_prob = tensors("sac", "next_values", "next_log_prob")
    values, rewards, terminals = tensors("sac", "values", "rewards", "terminals")
    worth = losses.soft_value(following, log_prob, temperature=case["temperature"])
    targets = losses.td_target(rewards, terminals.bool(), worth, discount=case["discount"])
    found = losses.critic(values, targets).mean()
    assert 2 * found.item() == near(case["critic_loss"])


def test_the_actor_of_sac_is_d3rlpys():
    """d3rlpy moves the temperature first, and reads the new one."""
    case = CASES["sac"]
    values, log_prob = tensors("sac", "actor_values", "actor_log_prob")
    found = losses.soft_actor(values, log_prob, temperature=case["actor_temperature"]).mean()
    assert found.item() == near(case["actor_loss"])


def test_the_temperature_of_sac_is_d3rlpys():
    case = CASES["sac"]
    (log_prob,) = tensors("sac", "actor_log_prob")
    found = losses.soft_temperature(
        torch.tensor(math.log(case["temperature"])),
        log_prob,
        target_entropy=case["target_entropy"],
    )
    assert found.mean().item() == near(case["temperature_loss"])


def test_the_conservatism_of_cql_is_d3rlpys_but_for_what_grows_with_the_draws():
    """d3rlpy leaves the estimate's log k in, and takes a threshold off; both have no slope."""
    case = CASES["cql"]
    sampled, densities, logged = tensors("cql", "sampled", "log_densities", "logged")
    found = losses.conservatism(sampled, densities, logged).mean()
    n_critics, _, k = sampled.shape
    theirs = sum(case["loss_of_each_critic"]) / case["weight"] + n_critics * case["threshold"]
    assert found.item() == near(theirs - n_critics * math.log(k))


def test_the_caution_of_cql_weighs_as_much_as_d3rlpys_beside_half_a_squared_distance():
    assert 2 * cql.Config.conservatism == CASES["cql"]["weight"]
