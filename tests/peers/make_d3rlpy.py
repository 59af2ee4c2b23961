"""Freeze what d3rlpy's losses of control are, for `tests/losses/test_control_peers.py`.

Run inside an environment with d3rlpy, not in melior's: `python tests/peers/make_d3rlpy.py`. It
writes `d3rlpy.json` beside itself: networks' answers on a batch, as d3rlpy asks for them, and the
loss that it makes of these, a number for the whole batch.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import d3rlpy
import torch

FILE = Path(__file__).with_name("d3rlpy.json")
N, WIDTH, ACTIONS, DRAWS = 6, 3, 2, 4


def main() -> None:
    torch.manual_seed(0)
    batch = SimpleNamespace(
        observations=torch.randn(N, WIDTH),
        actions=torch.rand(N, ACTIONS) * 2 - 1,
        rewards=torch.randn(N, 1),
        next_observations=torch.randn(N, WIDTH),
        returns_to_go=torch.zeros(N, 1),
        terminals=torch.tensor([[0.0], [1.0]]).repeat(N // 2, 1),
        intervals=torch.ones(N, 1),
    )
    cases = {
        "cloning": cloning(batch), "td3_bc": td3_bc(batch), "sac": sac(batch), "cql": cql(batch),
    }  # fmt: skip
    made = {"package": "d3rlpy", "version": d3rlpy.__version__, "by": Path(__file__).name}
    FILE.write_text(json.dumps(made | {"cases": cases}, indent=1) + "\n", encoding="utf-8")


def impl_of(config: object) -> object:
    algorithm = config.create(device="cpu")
    algorithm.create_impl((WIDTH,), ACTIONS)
    return algorithm.impl


def cloning(batch: SimpleNamespace) -> dict:
    impl = impl_of(d3rlpy.algos.BCConfig(policy_type="deterministic"))
    with torch.no_grad():
        found = impl._modules.imitator(batch.observations).squashed_mu
        loss = impl.compute_loss(batch.observations, batch.actions).loss
    return {"actions": found.tolist(), "logged": batch.actions.tolist(), "loss": float(loss)}


def td3_bc(batch: SimpleNamespace) -> dict:
    impl = impl_of(d3rlpy.algos.TD3PlusBCConfig())
    with torch.no_grad():
        action = impl._modules.policy(batch.observations)
        values = impl._q_func_forwarder.compute_expected_q(
            batch.observations, action.squashed_mu, "none"
        )[0]
        loss = impl.compute_actor_loss(batch, action).actor_loss
    return {
        "values": values[:, 0].tolist(), "actions": action.squashed_mu.tolist(),
        "logged": batch.actions.tolist(), "alpha": impl._alpha, "loss": float(loss),
    }  # fmt: skip


def recorded(draw: object, keep: dict, name: str) -> object:
    """Return a draw of actions that keeps what it drew."""

    def drawing(*args: object) -> object:
        keep[name] = draw(*args)
        return keep[name]

    return drawing


def sac(batch: SimpleNamespace) -> dict:
    import d3rlpy.algos.qlearning.torch.sac_impl as module

    impl = impl_of(d3rlpy.algos.SACConfig(initial_temperature=0.3))
    kept: dict = {}
    made = module.build_squashed_gaussian_distribution

    def build(action: object) -> object:
        found = made(action)
        found.sample_with_log_prob = recorded(found.sample_with_log_prob, kept, "drawn")
        return found

    module.build_squashed_gaussian_distribution = build
    temperature = float(impl._modules.log_temp._parameter.exp().detach())
    with torch.no_grad():
        target = impl.compute_target(batch)
        drawn, log_prob = kept["drawn"]
        following = impl._targ_q_func_forwarder.compute_expected_q(
            batch.next_observations, drawn, "none"
        )
        values = impl._q_func_forwarder.compute_expected_q(
            batch.observations, batch.actions, "none"
        )
        critic = impl.compute_critic_loss(batch, target).critic_loss
    loss = impl.compute_actor_loss(batch, impl._modules.policy(batch.observations))
    drawn_here, log_prob_here = (one.detach() for one in kept["drawn"])
    with torch.no_grad():
        here = impl._q_func_forwarder.compute_expected_q(batch.observations, drawn_here, "none")
    after = float(impl._modules.log_temp._parameter.exp().detach())
    return {
        "temperature": temperature, "discount": impl._gamma,
        "rewards": batch.rewards[:, 0].tolist(), "terminals": batch.terminals[:, 0].tolist(),
        "next_values": following[..., 0].tolist(), "next_log_prob": log_prob[:, 0].tolist(),
        "values": values[..., 0].tolist(), "critic_loss": float(critic),
        "actor_values": here[..., 0].tolist(), "actor_log_prob": log_prob_here[:, 0].tolist(),
        "actor_temperature": after, "actor_loss": float(loss.actor_loss.detach()),
        "target_entropy": -ACTIONS, "temperature_loss": float(loss.temp_loss.detach()),
    }  # fmt: skip


def cql(batch: SimpleNamespace) -> dict:
    impl = impl_of(d3rlpy.algos.CQLConfig(n_action_samples=DRAWS, conservative_weight=5.0))
    parts: list = []
    for name in ("_compute_policy_is_values", "_compute_random_is_values"):
        setattr(impl, name, _appending(getattr(impl, name), parts))
    with torch.no_grad():
        logged = impl._q_func_forwarder.compute_expected_q(
            batch.observations, batch.actions, "none"
        )
        loss = impl._compute_conservative_loss(
            batch.observations, batch.actions, batch.next_observations, batch.returns_to_go
        )
    sampled = torch.cat([values for values, _ in parts], dim=2)
    even = torch.full((N, DRAWS), math.log(0.5**ACTIONS))
    densities = [d[0] if isinstance(d, torch.Tensor) else even for _, d in parts]
    return {
        "sampled": sampled.tolist(), "log_densities": torch.cat(densities, dim=-1).tolist(),
        "logged": logged[..., 0].tolist(), "weight": impl._conservative_weight,
        "threshold": impl._alpha_threshold, "loss_of_each_critic": loss.tolist(),
    }  # fmt: skip


def _appending(compute: object, parts: list) -> object:
    """Return a computation whose results are kept, too."""

    def computing(*asked: object, **named: object) -> object:
        parts.append(compute(*asked, **named))
        return parts[-1]

    return computing


if __name__ == "__main__":
    main()
