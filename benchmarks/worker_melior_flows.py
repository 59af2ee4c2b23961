"""Melior's side of `flow_steps.py`: trajectories of a grid, and steps on them."""

from __future__ import annotations

from functools import partial

import torch
from turns import Message, serve

from melior import ops
from melior.envs.flow import HyperGrid
from melior.models.flow import policy_of, start_flow_model
from melior.options import OptimConfig
from melior.rewards.flow import corners
from melior.sampling.flow import sample
from melior.stages.flows import scratch
from melior.training.loop import descend

LOSSES = {
    "tb": scratch.by_trajectories,
    "db": scratch.by_steps,
    "subtb": scratch.by_parts(lamda=0.9),
}


class Worker:
    """A grid, a network and a step.

    Args:
        request: `axes`, `height`, `objective`, `width`, `batch_size` and `seed`.
    """

    def __init__(self, request: Message) -> None:
        self.env = HyperGrid(request["axes"], request["height"])
        self.log_reward = corners(request["height"], least=0.1)
        self.size = request["batch_size"]
        self.generator = ops.generator(request["seed"])
        self.model = start_flow_model(self.env, seed=request["seed"], width=request["width"])
        optim = OptimConfig(
            learning_rate=1e-12, lr_scheduler_type="constant", warmup_ratio=0, max_grad_norm=1e6
        )
        loss = LOSSES[request["objective"]]
        self.step = descend(
            partial(scratch.balanced, self.env, self.model, self.log_reward, loss=loss),
            dict(self.model.named_parameters()),
            optim,
            total_steps=10**6,
        )
        self.rollouts = scratch.rollouts(
            self.env, self.model, batch_size=self.size, exploration=0.0, generator=self.generator
        )

    def draw(self, count: int) -> Message:
        """Draw so many batches."""
        policy, lengths = policy_of(self.model, self.env), 0
        for _ in range(count):
            found = sample(self.env, policy, self.size, generator=self.generator)
            lengths += int(found.lengths.sum())
        return {"actions": lengths}

    def learn(self, count: int) -> Message:
        """Take so many steps, each on a batch of its own."""
        lengths = 0
        for _ in range(count):
            batch = next(self.rollouts)
            self.step(batch)
            lengths += int(batch[0].lengths.sum())
        return {"actions": lengths}


if __name__ == "__main__":
    serve(Worker, {"torch": torch.__version__})
