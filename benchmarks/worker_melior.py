"""Melior's side of `preference_step.py`: the recipe's own objective, batches and optimizer."""

from __future__ import annotations

import dataclasses
from functools import partial

import torch
from turns import Line, Message
from workloads import Pair

from melior.data.batches import GroupBatch, GroupBatches, TokenGroup, Tokens, TokenValues
from melior.data.chat import Encoded
from melior.losses.preference import dpo
from melior.losses.reference_free import simpo
from melior.models.loading import load
from melior.options import LoopOptions, ModelOptions, OptimConfig
from melior.records import Metrics
from melior.stages.method import Method, log_ratio_method, per_token_method
from melior.stages.preference import group_objective, read_answers
from melior.stages.reference import token_log_probs
from melior.training.loop import descend


def main() -> None:
    line = Line()
    request = line.wait()
    worker = Worker(request)
    line.answer({"torch": torch.__version__})
    while True:
        request = line.wait()
        line.answer(getattr(worker, request["do"])(**request.get("options", {})))


class Worker:
    """A model under training.

    Args:
        request: `model`, `dtype`, `algorithm`, its `options`, `learning_rate`, `batches`.
    """

    def __init__(self, request: Message) -> None:
        options = ModelOptions(model=request["model"], dtype=request["dtype"], device="cpu")
        self.model = load(options, trainable=True)
        self.method = method(request["algorithm"], request["options"])
        self.start = load(options, trainable=False) if self.method.has_reference else None
        self.batches = [prepared(batch) for batch in request["batches"]]
        self.references = [TokenValues.zeros(pairs) for pairs in self.batches]
        self.objective = group_objective(self.model, self.method)
        self.update = descend(
            lambda batch: self.objective(self.with_reference(batch)),
            self.model.trainable(),
            OptimConfig(
                learning_rate=request["learning_rate"], lr_scheduler_type="linear", warmup_ratio=0.0
            ),
            total_steps=len(self.batches),
            masters=self.model.masters,
        )

    def step(self, index: int) -> Message:
        """Take one optimizer step; the reference is computed within it, unless it is known."""
        return self.answer(self.update(self.portions(index)))

    def answer(self, metrics: Metrics) -> Message:
        """Return the loss and the mean log-probabilities as the loss takes them."""
        # SimPO's reward, without its factor, is the average over an answer's tokens.
        name = "logps" if self.method.has_reference else "rewards"
        sides = {f"logps/{side}": metrics[f"{name}/{side}"] for side in ("chosen", "rejected")}
        return {"loss": metrics["loss"], **sides}

    def cache_reference(self) -> Message:
        """Ask the start model once for all that the steps need, and let it go, as recipes do."""
        assert self.start is not None
        limit = LoopOptions(out="").max_tokens
        self.references = [
            token_log_probs(self.start, pairs, max_tokens=limit) for pairs in self.batches
        ]
        self.start = None
        return {}

    @torch.no_grad()
    def measure(self, index: int) -> Message:
        """Return a batch's numbers without learning from it."""
        metrics: Metrics = {}
        for batch in self.portions(index):
            loss, part = self.objective(self.with_reference(batch))
            for name, value in {**part, "loss": float(loss)}.items():
                metrics[name] = metrics.get(name, 0.0) + value
        return self.answer(metrics)

    def portions(self, index: int) -> list[GroupBatch]:
        """Plant the forests of a batch, as TRL's collator pads in every step."""
        pairs = self.batches[index]
        batches = GroupBatches(
            pairs,
            self.references[index],
            batch_size=len(pairs),
            max_tokens=LoopOptions(out="").max_tokens,
            seed=0,
        )
        return batches.portions(range(len(pairs)))

    def with_reference(self, batch: GroupBatch) -> GroupBatch:
        """Fill in what the start model says, unless that is there or not needed."""
        if self.start is None:
            return batch
        with torch.no_grad():
            return dataclasses.replace(batch, reference=read_answers(self.start, batch).tokens)


def method(algorithm: str, options: dict[str, float]) -> Method:
    """Return the method as its recipe has it; its rewards are without their factor."""
    if algorithm == "dpo":
        return log_ratio_method(partial(dpo, **options), beta=1.0)
    return per_token_method(partial(simpo, **options), beta=1.0)


def prepared(batch: list[Pair]) -> list[TokenGroup]:
    """Keep token ids as the recipes do after reading a file."""

    def side(prompt: list[int], answer: list[int]) -> Tokens:
        mask = (False,) * len(prompt) + (True,) * len(answer)
        encoded = Encoded(tuple(prompt + answer), mask, len(prompt))
        return Tokens.of(encoded, slice(0, None))

    return [
        TokenGroup(
            (
                side(pair["prompt_ids"], pair["chosen_ids"]),
                side(pair["prompt_ids"], pair["rejected_ids"]),
            ),
            (1.0, 0.0),
        )
        for pair in batch
    ]


if __name__ == "__main__":
    main()
