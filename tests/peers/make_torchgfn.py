"""Freeze what torchgfn says of given trajectories of a grid, for `tests/losses/test_flow.py`.

Run inside an environment made from `benchmarks/requirements-torchgfn.txt`, not in melior's:
`python tests/peers/make_torchgfn.py`. It writes `torchgfn.json` beside itself. Policy and flow are
linear in a one-hot cell, with weights that are frozen too, so that nothing but the losses is held
against each other; all ways back are equally likely.
"""

import json
from importlib.metadata import version
from pathlib import Path

import torch
from gfn.estimators import DiscretePolicyEstimator, ScalarEstimator
from gfn.gflownet import DBGFlowNet, SubTBGFlowNet, TBGFlowNet
from gfn.gym import HyperGrid
from gfn.preprocessors import KHotPreprocessor

HERE = Path(__file__).parent
AXES, HEIGHT, COUNT, LOG_Z = 2, 4, 8, 0.7


class Linear(torch.nn.Linear):
    """Of the integers that its preprocessor gives."""

    def forward(self, cells: torch.Tensor) -> torch.Tensor:
        return super().forward(cells.to(self.weight))


def main() -> None:
    assert version("torchgfn") == "2.4.1", version("torchgfn")
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    env = HyperGrid(ndim=AXES, height=HEIGHT, reward_fn_str="original", validate_modes=False)
    read = KHotPreprocessor(height=HEIGHT, ndim=AXES)
    forward, flow = (Linear(AXES * HEIGHT, n, bias=False) for n in (AXES + 1, 1))
    with torch.no_grad():
        forward.weight[-1] -= 0.7  # of the stop, so that trajectories grow long
    pf = DiscretePolicyEstimator(forward, AXES + 1, preprocessor=read)
    pb = DiscretePolicyEstimator.uniform(AXES + 1, preprocessor=read)
    log_flow = ScalarEstimator(flow, preprocessor=read)
    networks = {
        "trajectory balance": TBGFlowNet(pf=pf, pb=pb, init_logZ=LOG_Z),
        "detailed balance": DBGFlowNet(pf=pf, pb=pb, logF=log_flow),
        "sub-trajectory balance": SubTBGFlowNet(
            pf=pf, pb=pb, logF=log_flow, weighting="geometric_within", lamda=0.9
        ),
    }
    found = networks["trajectory balance"].sample_trajectories(env, n=COUNT)
    losses = {
        name: own.loss_from_trajectories(env, found, recalculate_all_logprobs=True).item()
        for name, own in networks.items()
    }
    content = {
        "package": "torchgfn",
        "version": version("torchgfn"),
        "script": "tests/peers/make_torchgfn.py",
        "height": HEIGHT,
        "log_z": LOG_Z,
        "lamda": 0.9,
        "forward": forward.weight.tolist(),
        "flow": flow.weight.tolist(),
        "actions": found.actions.tensor[..., 0].T.tolist(),
        "lengths": found.terminating_idx.tolist(),
        "log_reward": found.log_rewards.tolist(),
        "losses": losses,
    }
    (HERE / "torchgfn.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
