"""Melior's side of `preference_step.py`: the recipe's own objective, batches and optimizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from flops import needed
from safetensors.torch import save_file
from turns import Message, serve
from workloads import Pair

from melior.data.batches import GroupBatch, GroupBatches, TokenGroup, Tokens, TokenValues
from melior.data.chat import Encoded
from melior.losses.preference import dpo
from melior.losses.reference_free import simpo
from melior.models.heads import RewardModel, load_reward_model
from melior.models.language import LanguageModel
from melior.models.loading import load
from melior.options import LoopOptions, ModelOptions, OptimConfig
from melior.records import Metrics
from melior.stages.method import log_ratio_method, per_token_method
from melior.stages.preference import group_objective, read_answers
from melior.stages.reference import token_log_probs
from melior.stages.reward_models.kinds import scalar
from melior.stages.reward_models.train import reward_objective
from melior.training.loop import descend
from melior.types import Objective

MAX_TOKENS = LoopOptions(out="").max_tokens
"""As a run without options computes at once."""


class Worker:
    """A model under training.

    Args:
        request: `model`, `dtype`, `algorithm`, its `options`, `learning_rate`, `batches`.
    """

    def __init__(self, request: Message) -> None:
        self.request = request
        self.learner = self.loaded(request["dtype"])
        self.start = self.learner.start
        self.batches = [prepared(batch) for batch in request["batches"]]
        self.references = [TokenValues.zeros(pairs) for pairs in self.batches]
        self.update = descend(
            lambda batch: self.learner.objective(self.with_reference(batch)),
            self.learner.model.trainable(),
            OptimConfig(
                learning_rate=request["learning_rate"], lr_scheduler_type="linear", warmup_ratio=0.0
            ),
            total_steps=len(self.batches),
            masters=self.learner.model.masters,
        )

    def loaded(self, dtype: str) -> Learner:
        """Return the model that was asked for, and what learns from it."""
        options = ModelOptions(model=self.request["model"], dtype=dtype, device="cpu")
        return LEARNERS[self.request["algorithm"]](options, **self.request["options"])

    def step(self, index: int) -> Message:
        """Take one optimizer step; the reference is computed within it, unless it is known."""
        return self.answer(self.update(self.portions(index)))

    def answer(self, metrics: Metrics) -> Message:
        """Return the loss, and what the rival tells too, under its names."""
        return {name: metrics[own] for name, own in self.learner.told.items()}

    def cache_reference(self) -> Message:
        """Ask the start model once for all that the steps need, and let it go, as recipes do."""
        assert self.start is not None
        self.references = [
            token_log_probs(self.start, pairs, max_tokens=MAX_TOKENS) for pairs in self.batches
        ]
        self.start = None
        return {}

    def measure(self, index: int) -> Message:
        """Return a batch's numbers without learning from it."""
        return self.answer(self.metrics(index))

    def margin(self, index: int) -> Message:
        """Return the mean log-odds, relative to the start, of a batch's chosen answers."""
        return {"margin": self.metrics(index)["rewards/margins"]}

    def read_masters(self) -> Message:
        """Compute in float32 from here on: the masters that were learned, as a run saves them."""
        exact, learned = self.loaded("fp32"), self.update.state()
        for name, parameter in exact.model.trainable().items():
            parameter.data.copy_(learned[f"weight/{name}"])
        self.learner, self.start = exact, exact.start
        return {}

    def gradient(self, index: int, path: str) -> Message:
        """Write the gradient of a batch's loss to a file."""
        parameters = self.learner.model.trainable()
        for batch in self.portions(index):
            self.learner.objective(self.with_reference(batch))[0].backward()
        save_file({name: p.grad.float() for name, p in parameters.items()}, path)
        for parameter in parameters.values():
            parameter.grad = None
        return {}

    def needed(self, index: int) -> Message:
        """Return the FLOPs that a step on a batch needs, each token computed once."""
        learner, found = self.learner, {"policy": 0.0, "reference": 0.0}
        for batch in self.portions(index):
            own = needed(learner.model.core, batch.forest, has_logits=learner.has_logits)
            found["policy"] += own["forward"] + own["backward"]
            found["reference"] += own["forward"] if learner.start else 0.0
        return found

    def multiply(self, n: int = 4096, times: int = 16) -> Message:
        """Multiply large matrices in bfloat16, which is as fast as anything here can be."""
        one = torch.ones(n, n, dtype=torch.bfloat16)
        found = torch.empty_like(one)
        for _ in range(times):
            torch.mm(one, one, out=found)
        return {"flops": 2 * n**3 * times}

    @torch.no_grad()
    def metrics(self, index: int) -> Metrics:
        """Return all that the objective tells of a batch."""
        metrics: Metrics = {}
        for batch in self.portions(index):
            loss, part = self.learner.objective(self.with_reference(batch))
            for name, value in {**part, "loss": float(loss)}.items():
                metrics[name] = metrics.get(name, 0.0) + value
        return metrics

    def portions(self, index: int) -> list[GroupBatch]:
        """Plant the forests of a batch, as TRL's collator pads in every step."""
        pairs = self.batches[index]
        batches = GroupBatches(
            pairs, self.references[index], batch_size=len(pairs), max_tokens=MAX_TOKENS, seed=0
        )
        return batches.portions(range(len(pairs)))

    def with_reference(self, batch: GroupBatch) -> GroupBatch:
        """Fill in what the start model says, unless that is there or not needed."""
        if self.start is None:
            return batch
        with torch.no_grad():
            return dataclasses.replace(batch, reference=read_answers(self.start, batch).tokens)


@dataclass(frozen=True)
class Learner:
    """A model, and what its recipe lets it learn by."""

    model: LanguageModel | RewardModel
    objective: Objective[GroupBatch]
    told: Mapping[str, str]
    """The rival's names of metrics, and ours."""
    start: LanguageModel | None = None
    """The reference, where there is one."""
    has_logits: bool = True
    """Words are predicted, by an output layer as wide as the vocabulary."""


def with_dpo(options: ModelOptions, *, beta: float) -> Learner:
    model, start = load(options, trainable=True), load(options, trainable=False)
    method = log_ratio_method(partial(dpo, beta=beta), beta=1.0)  # rewards without their factor
    return Learner(model, group_objective(model, method), sides("logps"), start)


def with_simpo(options: ModelOptions, *, beta: float, gamma: float) -> Learner:
    model = load(options, trainable=True)
    # Its reward, without its factor, is the average over an answer's tokens.
    method = per_token_method(partial(simpo, beta=beta, gamma=gamma), beta=1.0)
    return Learner(model, group_objective(model, method), sides("rewards"))


def with_rewards(options: ModelOptions) -> Learner:
    model = load_reward_model(options, trainable=True)
    kind = scalar(margin_weight=0.0, label_smoothing=0.0, center_rewards_coefficient=0.0)
    told = {"loss": "loss", "margin": "margin"}
    return Learner(model, reward_objective(kind, model, []), told, has_logits=False)


def sides(own: str) -> dict[str, str]:
    return {"loss": "loss"} | {f"logps/{s}": f"{own}/{s}" for s in ("chosen", "rejected")}


LEARNERS = {"dpo": with_dpo, "simpo": with_simpo, "reward": with_rewards}


def prepared(batch: list[Pair]) -> list[TokenGroup]:
    """Keep token ids as the recipes do after reading a file."""
    return [
        group(pair["prompt_ids"], [pair["chosen_ids"], pair["rejected_ids"]], (1.0, 0.0))
        for pair in batch
    ]


def group(prompt: list[int], answers: list[list[int]], scores: tuple[float, ...]) -> TokenGroup:
    """Return a prompt's answers, all of whose tokens are scored."""

    def side(answer: list[int]) -> Tokens:
        mask = (False,) * len(prompt) + (True,) * len(answer)
        return Tokens.of(Encoded(tuple(prompt + answer), mask, len(prompt)), slice(0, None))

    return TokenGroup(tuple(map(side, answers)), scores)


if __name__ == "__main__":
    serve(Worker, {"torch": torch.__version__})
