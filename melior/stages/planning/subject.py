"""What is planned: a run's options, its data as tokens, and its model's parts, weights apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil

from torch import nn

from melior.data.chat import ChatFormat
from melior.models.flops import Shape, shape_of
from melior.models.loading import config_of, load_chat
from melior.models.rehearsal import takes_forest
from melior.models.skeleton import ModelConfig, skeleton
from melior.stages.data import Prepared
from melior.stages.learn import Plan, prepare_data, refuse_unfit
from melior.stages.planning.machines import DRIVER, Machine, resident, running
from melior.stages.planning.work import Portion, Work, once, work


@dataclass(frozen=True)
class Subject:
    """All that the parts of a plan are told from."""

    plan: Plan
    machine: Machine
    train: Prepared
    held_out: Prepared | None
    chat: ChatFormat
    config: ModelConfig
    model: nn.Module
    """All its layers, without weights."""
    base: int
    """Bytes that the program has before there is a model."""
    began: float
    """Seconds that it took to come here."""
    is_padded: bool

    @classmethod
    def of(cls, plan: Plan, machine: Machine) -> Subject:
        """Read the data, and of the model its config."""
        train, held_out = prepare_data(plan)
        refuse_unfit(plan, train)
        train.refuse_errors(allowed=plan.data.allow_lint_errors)
        chat, config = load_chat(plan.model), config_of(plan.model)
        began = running()
        model = skeleton(plan.model, config)
        return cls(
            plan, machine, train, held_out, chat, config, model,
            base=resident() if machine.is_cpu else DRIVER,
            began=began,
            is_padded=plan.model.padded or not takes_forest(plan.model, config),
        )  # fmt: skip

    @cached_property
    def shape(self) -> Shape:
        """What of the model decides its FLOPs."""
        return shape_of(self.model)

    @cached_property
    def work(self) -> Work:
        """What the run computes."""
        loop, groups = self.plan.loop, self.train.groups
        total = loop.max_steps or ceil(loop.epochs * ceil(len(groups) / loop.batch_size))
        return work(groups, loop, total_steps=total, is_padded=self.is_padded)

    @cached_property
    def judged(self) -> tuple[Portion, ...]:
        """The held-out rows, read once."""
        groups = self.held_out.groups if self.held_out else []
        return once(groups, self.plan.loop.max_tokens, is_padded=self.is_padded)

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Those that are answered before and after."""
        first = (self.held_out or self.train).first_prompts[: self.plan.data.n_samples]
        return [self.chat.prompt_tokens(prompt) for prompt in first]
