"""Returns of cloning, TD3+BC and CQL on one data set: by melior, and by d3rlpy.

    python benchmarks/control_returns.py pendulum/medium-expert.npz --seeds 0 1 2

Both learn from the same log for as many steps, with their own defaults but for what is said here:
networks of two layers of 256, the rows of a batch, observations in the log's deviations, CQL's
weight. All policies are judged by the same episodes of the task, and the mean over seeds stands
with Student's interval. d3rlpy is put into a folder of its own by `requirements-d3rlpy.txt`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from melior.data.control_files import Logged, read_logged
from melior.envs.control import Act, returns
from melior.evaluation.compare import t_interval
from melior.models.control_policies import load_policy
from melior.recipes import cloning, cql, td3_bc
from melior.stages.control.options import LogOptions, TrainOptions

PEER = Path.home() / ".cache/melior/benchmarks/d3rlpy"
WEIGHT = 5.0
"""Of CQL's caution."""
Learn = Callable[[Logged, int], Act]


def main() -> None:
    asked = _arguments()
    torch.set_num_threads(1)
    data = read_logged(asked.dataset)
    ours = {"cloning": cloning, "td3-bc": td3_bc, "cql": cql}
    print("| method | melior | d3rlpy |\n|---|---|---|")
    for method in asked.methods:
        cells = []
        for learn in (_by_melior(ours[method], asked), _by_peer(method, asked)):
            began = time.process_time()
            found = [_return(data, learn(data, seed), asked) for seed in asked.seeds]
            interval = t_interval(np.array(found))
            ends = "" if interval.low is None else f" ({interval.low:.1f} to {interval.high:.1f})"
            cells.append(f"{interval.estimate:.1f}{ends}")
            spent = time.process_time() - began
            print(f"{method}: {found}, {spent:.0f} CPU s", file=sys.stderr, flush=True)
        print(f"| {method} | {' | '.join(cells)} |", flush=True)
    whole = data.transitions.whole_returns()
    print(
        f"\n{data.about.task}, {Path(asked.dataset).stem}: the log's mean return is "
        f"{whole.mean():.1f}. {len(asked.seeds)} seeds, {asked.steps} steps of "
        f"{asked.batch_size} rows, {asked.episodes} episodes each. `python {' '.join(sys.argv)}`."
    )


def _return(data: Logged, act: Act, asked: argparse.Namespace) -> float:
    task = data.about.task
    return float(returns(task, act, episodes=asked.episodes, seed=7_000_000).mean())


def _by_melior(recipe: object, asked: argparse.Namespace) -> Learn:
    def learn(data: Logged, seed: int) -> Act:
        with tempfile.TemporaryDirectory() as place:
            train = TrainOptions(
                place,
                steps=asked.steps,
                batch_size=asked.batch_size,
                eval_episodes=0,
                save_steps=0,
                seed=seed,
            )
            config = recipe.Config(LogOptions(asked.dataset, termination=asked.termination), train)
            if hasattr(config, "conservatism"):
                config = replace(config, conservatism=WEIGHT)
            with contextlib.redirect_stdout(io.StringIO()):
                recipe.run(config)
            return load_policy(Path(place) / "model" / "policy").act

    return learn


def _by_peer(method: str, asked: argparse.Namespace) -> Learn:
    sys.path.append(str(asked.peer))
    import d3rlpy

    scaler = d3rlpy.preprocessing.StandardObservationScaler()
    scaled = {"batch_size": asked.batch_size, "observation_scaler": scaler}
    kinds = {
        "cloning": lambda: d3rlpy.algos.BCConfig(**scaled),
        "td3-bc": lambda: d3rlpy.algos.TD3PlusBCConfig(**scaled),
        "cql": lambda: d3rlpy.algos.CQLConfig(conservative_weight=WEIGHT, **scaled),
    }

    def learn(data: Logged, seed: int) -> Act:
        rows = data.transitions
        episodes = d3rlpy.dataset.MDPDataset(
            rows.observations, rows.actions, rows.rewards[:, None],
            rows.terminals.astype(np.float32), rows.timeouts.astype(np.float32),
        )  # fmt: skip
        d3rlpy.seed(seed)
        learner = kinds[method]().create(device="cpu")
        learner.fit(
            episodes, n_steps=asked.steps, n_steps_per_epoch=asked.steps, show_progress=False,
            logger_adapter=d3rlpy.logging.NoopAdapterFactory(), save_interval=10**6,
        )  # fmt: skip
        return lambda seen: torch.from_numpy(
            np.asarray(learner.predict(seen.numpy()), dtype=np.float32)
        )

    return learn


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset")
    parser.add_argument("--methods", nargs="+", default=["cloning", "td3-bc", "cql"])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--termination", default="")
    parser.add_argument("--peer", type=Path, default=PEER, help="the folder that d3rlpy is in")
    return parser.parse_args()


if __name__ == "__main__":
    main()
