"""Melior's side of `policy_pass.py`: a group as a batch holds it, read as every loss reads it."""

from __future__ import annotations

import torch
from turns import Message, serve
from worker_melior import MAX_TOKENS, group

from melior.data.batches import GroupBatches, TokenValues
from melior.models.loading import load
from melior.options import ModelOptions
from melior.stages.preference import read_answers


class Worker:
    """A model whose gradient is asked for.

    Args:
        request: `model`, `dtype`, `groups`.
    """

    def __init__(self, request: Message) -> None:
        options = ModelOptions(model=request["model"], dtype=request["dtype"], device="cpu")
        self.model = load(options, trainable=True)
        self.parameters = self.model.trainable()
        # Where there is an optimizer, it holds them; the rival's weights are float32 themselves.
        self.masters = [p.detach().float() for p in self.parameters.values()]
        self.groups = [
            group(one["prompt_ids"], one["answers"], tuple(one["weights"]))
            for one in request["groups"]
        ]

    def step(self, index: int) -> Message:
        """Return the answers' log-probabilities, weighed and summed, and their gradient's norm."""
        one = [self.groups[index]]
        batches = GroupBatches(
            one, TokenValues.zeros(one), batch_size=1, max_tokens=MAX_TOKENS, seed=0
        )
        value, tokens = 0.0, 0
        for batch in batches.portions([0]):
            weighed = (batch.scores * read_answers(self.model, batch).policy).sum()
            weighed.backward()
            value += float(weighed)
            tokens += len(batch.forest.tokens)
        norm = torch.nn.utils.get_total_norm([p.grad.float() for p in self.parameters.values()])
        for parameter in self.parameters.values():
            parameter.grad = None
        return {"value": value, "gradient_norm": float(norm), "tokens": tokens}


if __name__ == "__main__":
    serve(Worker, {"torch": torch.__version__})
