"""torchgfn's side of `flow_steps.py`, as its own examples of the grid are written."""

from __future__ import annotations

from importlib.metadata import version

import torch
from gfn.estimators import DiscretePolicyEstimator, ScalarEstimator
from gfn.gflownet import DBGFlowNet, SubTBGFlowNet, TBGFlowNet
from gfn.gym import HyperGrid
from gfn.preprocessors import KHotPreprocessor
from gfn.utils.modules import MLP
from turns import Message, serve


class Worker:
    """A grid, a network and a step: uniform way back, log-probabilities computed when it learns.

    Args:
        request: as melior's, and whether torch's distributions are `checked`.
    """

    def __init__(self, request: Message) -> None:
        torch.manual_seed(request["seed"])
        torch.distributions.Distribution.set_default_validate_args(request["checked"])
        axes, height, width = request["axes"], request["height"], request["width"]
        self.env = HyperGrid(ndim=axes, height=height, reward_fn_str="original",
                             validate_modes=False)  # fmt: skip
        read = KHotPreprocessor(height=height, ndim=axes)
        self.size = request["batch_size"]

        def network(n_out: int) -> MLP:
            return MLP(read.output_dim, n_out, hidden_dim=width, n_hidden_layers=2)

        n_actions = self.env.n_actions
        pf = DiscretePolicyEstimator(network(n_actions), n_actions, preprocessor=read)
        pb = DiscretePolicyEstimator.uniform(n_actions, preprocessor=read)
        flow = ScalarEstimator(network(1), preprocessor=read)
        objective = request["objective"]
        if objective == "tb":
            self.flows = TBGFlowNet(pf=pf, pb=pb, init_logZ=0.0)
        elif objective == "db":
            self.flows = DBGFlowNet(pf=pf, pb=pb, logF=flow)
        else:
            self.flows = SubTBGFlowNet(
                pf=pf, pb=pb, logF=flow, weighting="geometric_within", lamda=0.9
            )
        groups = [{"params": self.flows.pf_pb_parameters(), "lr": 1e-12}]
        if objective == "tb":
            groups.append({"params": self.flows.logz_parameters(), "lr": 1e-10})
        else:
            groups.append({"params": self.flows.logF_parameters(), "lr": 1e-12})
        self.optimizer = torch.optim.Adam(groups)

    def draw(self, count: int) -> Message:
        """Draw so many batches."""
        lengths = 0
        with torch.no_grad():
            for _ in range(count):
                found = self.flows.sample_trajectories(self.env, n=self.size)
                lengths += int(found.terminating_idx.sum())
        return {"actions": lengths}

    def learn(self, count: int) -> Message:
        """Take so many steps, each on a batch of its own."""
        lengths = 0
        for _ in range(count):
            with torch.no_grad():
                found = self.flows.sample_trajectories(self.env, n=self.size)
            lengths += int(found.terminating_idx.sum())
            self.optimizer.zero_grad()
            loss = self.flows.loss_from_trajectories(self.env, found, recalculate_all_logprobs=True)
            loss.backward()
            self.optimizer.step()
        return {"actions": lengths}


if __name__ == "__main__":
    serve(Worker, {"torch": torch.__version__, "torchgfn": version("torchgfn")})
