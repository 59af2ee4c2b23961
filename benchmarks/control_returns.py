"""Returns of cloning, TD3+BC, CQL and SAC: by melior, and by d3rlpy.

    python benchmarks/control_returns.py pendulum/medium-expert.npz --seeds 0 1 2

Both learn from the same log for as many steps, SAC in the log's task itself. What is the same on
both sides: networks, rates, rows of a batch, discount, pace of targets, TD3's noise and delay,
observations in the log's deviations, terminals that end and time-outs that do not, CQL's caution
with a fixed weight, and the episodes by which all are judged, at the middle of what is drawn. The
mean over seeds stands with Student's interval.

What is not: d3rlpy's policy of SAC and CQL starts wider (a log-deviation of 0, here -1.5), its CQL
reads the target at the policy's middle, where its authors' code and ours draw, and the last row of
an episode that timed out, whose successor it does not keep, is left out.

d3rlpy is put into a folder of its own, as `requirements-d3rlpy.txt` says.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from melior.data.control_files import Logged, read_logged
from melior.envs.control import Act, lives, returns, sizes
from melior.evaluation.compare import t_interval
from melior.models.control_policies import PolicyOptions, load_policy
from melior.recipes import cloning, cql, td3_bc
from melior.stages.control.online import Online, OnlineOptions
from melior.stages.control.options import LogOptions, NetworkOptions, TrainOptions
from melior.training.cache import cache_folder

PEER = cache_folder() / "benchmarks" / "d3rlpy"
CAUTION = 2.5
"""CQL's weight beside half a squared distance (eq. 4): 5 beside the whole one, as in its authors'
code and in d3rlpy's."""
RANDOM_STEPS = 1000
"""Of SAC, before it learns; observations are scaled by them."""
Learn = Callable[[Logged, int], Act]


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(1)
    data = read_logged(asked.dataset)
    print("| method | melior | d3rlpy |\n|---|---|---|")
    for method in asked.methods:
        cells = []
        for learn in (_by_melior(method, asked), _by_peer(method, asked)):
            began = time.process_time()
            with contextlib.redirect_stdout(io.StringIO()):  # both tell of their progress
                learned = [learn(data, seed) for seed in asked.seeds]
            found = [_return(data, act, asked) for act in learned]
            interval = t_interval(np.array(found))
            ends = "" if interval.low is None else f" ({interval.low:.1f} to {interval.high:.1f})"
            cells.append(f"{interval.estimate:.1f}{ends}")
            spent = (time.process_time() - began) / len(found)
            print(f"{method}: {found}, {spent:.0f} CPU s a seed", file=sys.stderr, flush=True)
        print(f"| {method} | {' | '.join(cells)} |", flush=True)
    whole = data.transitions.whole_returns()
    print(
        f"\n{data.about.task}, {Path(asked.dataset).stem}: the log's mean return is "
        f"{whole.mean():.1f}. {len(asked.seeds)} seeds, {asked.steps} steps of {asked.batch_size} "
        f"rows, two layers of {asked.hidden}, a rate of {asked.rate:g}, {asked.episodes} episodes "
        f"each. `python {' '.join(sys.argv)}`."
    )


def _return(data: Logged, act: Act, asked: argparse.Namespace) -> float:
    task = data.about.task
    return float(returns(task, act, episodes=asked.episodes, seed=7_000_000).mean())


def _by_melior(method: str, asked: argparse.Namespace) -> Learn:
    if method == "sac":
        return lambda data, seed: _sac_by_melior(data, seed, asked)
    recipe: Any = {"cloning": cloning, "td3-bc": td3_bc, "cql": cql}[method]
    options: dict[str, float] = {"learning_rate": asked.rate}
    if method == "cql":
        options = {"conservatism": CAUTION, "actor_rate": asked.rate, "critic_rate": asked.rate}

    def learn(data: Logged, seed: int) -> Act:
        with tempfile.TemporaryDirectory() as place:
            train = TrainOptions(
                place, asked.steps, asked.batch_size, eval_episodes=0, save_steps=0, seed=seed
            )
            log = LogOptions(asked.dataset, termination=asked.termination)
            network = NetworkOptions(asked.hidden)
            recipe.run(recipe.Config(log, train, network, **options))
            return load_policy(Path(place) / "model" / "policy").act

    return learn


def _sac_by_melior(data: Logged, seed: int, asked: argparse.Namespace) -> Act:
    options = OnlineOptions(
        asked.steps, RANDOM_STEPS, 1, asked.batch_size, asked.hidden, learning_rate=asked.rate
    )
    shape = PolicyOptions(*sizes(data.about.task), asked.hidden)
    with lives(data.about.task, copies=1, seed=seed) as world:
        learner = Online(world, shape, options, seed=seed)
        for batch in learner.batches():
            learner(batch)
    return learner.policy.act


def _by_peer(method: str, asked: argparse.Namespace) -> Learn:
    if not (asked.peer / "d3rlpy").is_dir():
        raise SystemExit(f"{asked.peer}: d3rlpy is needed there; see requirements-d3rlpy.txt")
    sys.path.append(str(asked.peer))
    with contextlib.redirect_stderr(io.StringIO()):  # its gym says that it is old
        import d3rlpy
    warnings.filterwarnings("ignore", module="gymnasium|d3rlpy")
    algos = d3rlpy.algos
    kinds = {
        "cloning": algos.BCConfig, "td3-bc": algos.TD3PlusBCConfig, "cql": algos.CQLConfig,
        "sac": algos.SACConfig,
    }  # fmt: skip
    wide = d3rlpy.models.VectorEncoderFactory([asked.hidden] * 2)
    options: dict[str, Any] = {"batch_size": asked.batch_size}
    if method == "cloning":
        options |= {"learning_rate": asked.rate, "encoder_factory": wide}
    else:
        options |= {"actor_learning_rate": asked.rate, "critic_learning_rate": asked.rate}
        options |= {"actor_encoder_factory": wide, "critic_encoder_factory": wide}
    if method == "cql":  # a learning rate of 0 keeps its weight where it is
        options |= {"conservative_weight": 2 * CAUTION, "alpha_learning_rate": 0.0}
    if method == "sac":
        options |= {"temp_learning_rate": asked.rate}

    def learn(data: Logged, seed: int) -> Act:
        d3rlpy.seed(seed)
        seen = data.transitions.observations
        if method == "sac":
            seen = _randomly_seen(data.about.task, seed)
        scaler = d3rlpy.preprocessing.StandardObservationScaler(seen.mean(0), seen.std(0), eps=0.0)
        learner = kinds[method](observation_scaler=scaler, **options).create(device="cpu")
        silent = {
            "n_steps": asked.steps, "n_steps_per_epoch": asked.steps, "show_progress": False,
            "logger_adapter": d3rlpy.logging.NoopAdapterFactory(), "save_interval": 10**6,
        }  # fmt: skip
        if method == "sac":
            task = _within_one(data.about.task, seed)
            learner.fit_online(
                task, d3rlpy.dataset.create_fifo_replay_buffer(asked.steps, env=task),
                random_steps=RANDOM_STEPS + 1, update_start_step=RANDOM_STEPS, **silent,
            )  # fmt: skip
        else:
            learner.fit(_episodes(d3rlpy, data), **silent)
        return lambda seen: torch.from_numpy(
            np.asarray(learner.predict(seen.numpy()), dtype=np.float32)
        )

    return learn


def _episodes(d3rlpy: Any, data: Logged) -> Any:
    rows = data.transitions
    return d3rlpy.dataset.MDPDataset(
        rows.observations, rows.actions, rows.rewards[:, None],
        rows.terminals.astype(np.float32), rows.timeouts.astype(np.float32),
    )  # fmt: skip


def _within_one(task: str, seed: int) -> Any:
    """Return a task whose actions lie in [-1, 1], as all of melior's policies act."""
    import gymnasium

    made = gymnasium.wrappers.RescaleAction(gymnasium.make(task), np.float32(-1), np.float32(1))
    made.reset(seed=seed)
    made.action_space.seed(seed)
    return made


def _randomly_seen(task: str, seed: int) -> np.ndarray:
    """Return what is seen in the random steps before SAC learns."""
    drawn = torch.Generator().manual_seed(seed)
    width = sizes(task)[1]
    with lives(task, copies=1, seed=seed) as world:
        parts = [
            world.step(lambda seen: 2 * torch.rand(len(seen), width, generator=drawn) - 1)
            for _ in range(RANDOM_STEPS)
        ]
    return np.concatenate([part.observations for part in parts])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset")
    methods = ["cloning", "td3-bc", "cql", "sac"]
    parser.add_argument("--methods", nargs="+", default=methods, choices=methods)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--termination", default="")
    parser.add_argument("--peer", type=Path, default=PEER, help="the folder that d3rlpy is in")
    return parser.parse_args()


if __name__ == "__main__":
    main()
