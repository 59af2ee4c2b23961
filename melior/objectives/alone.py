"""Answers judged alone, good or bad: KTO and its kin. Pairs are read as two of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from melior.checks import in_range
from melior.objectives.objective import Objective

if TYPE_CHECKING:
    from melior.stages.method import Answers, Method


@dataclass(frozen=True)
class Alone(Objective):
    """What losses on single answers share."""

    data = "answers"
    sweep: ClassVar[Mapping[str, tuple[float, ...]]] = {"beta": (0.01, 0.1)}

    beta: float = 0.1
    """How strongly the model is held to its start."""
    desirable_weight: float = 1.0
    """Of good answers."""
    undesirable_weight: float = 1.0
    """Of bad ones; weights times counts should be alike, or up to 4:3 for the good."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("beta", self.beta, 0, above=True)
        in_range("desirable_weight", self.desirable_weight, 0)
        in_range("undesirable_weight", self.undesirable_weight, 0)

    def on_log_ratios(
        self, loss: Callable[..., Any], *more: Callable[[Answers], Any], **options: Any
    ) -> Method:
        """Return the method of a loss on log-ratios, labels, and whatever more it reads."""
        from functools import partial

        from melior.stages.method import Method

        weighted = partial(
            loss, beta=self.beta, desirable_weight=self.desirable_weight,
            undesirable_weight=self.undesirable_weight,
        )  # fmt: skip
        return Method(
            lambda a: weighted(a.log_ratio[:, 0], a.scores[:, 0] > 0, *(one(a) for one in more)),
            lambda a: self.beta * a.log_ratio,
            has_reference=True,
            data="answers",
            **options,
        )


@dataclass(frozen=True)
class Kto(Alone):
    """Gains and losses against what the model does on average: Kahneman-Tversky optimisation."""

    paper = "Ethayarajh et al. 2024, arXiv 2402.01306"

    def method(self) -> Method:
        """Return the loss, whose reference point couples a batch, and DPO's reward."""
        from melior.losses.unpaired import kto, kto_reference_point

        def point(answers: Answers) -> Any:
            return kto_reference_point(answers.log_ratio[:, 1])

        return self.on_log_ratios(
            kto, point,
            is_coupled=True, has_strangers=True, remember=lambda a: {"kl": float(point(a))},
        )  # fmt: skip


@dataclass(frozen=True)
class Bco(Alone):
    """Logistic regression of good from bad on the reward, shifted between the two kinds."""

    paper = "Jung et al. 2024, arXiv 2404.04656"

    decay: float = 0.9
    """What remains of the old shift after a batch."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        super().__post_init__()
        in_range("decay", self.decay, 0, 1, below=True)

    def method(self) -> Method:
        """Return the loss, which remembers the shift, and DPO's reward."""
        from melior.losses.unpaired import bco, bco_shift
        from melior.stages.memory import Memory

        memory = Memory(shift=0.0)

        def shift(answers: Answers) -> Any:
            return memory.values["shift"].to(answers.log_ratio)

        def remember(answers: Answers) -> dict[str, float]:
            memory.values["shift"] = bco_shift(
                shift(answers), answers.log_ratio[:, 0], answers.scores[:, 0] > 0,
                beta=self.beta, decay=self.decay,
            )  # fmt: skip
            return {"shift": float(memory.values["shift"])}

        return self.on_log_ratios(
            bco, shift, is_coupled=True, memory=memory, remember=remember,
        )  # fmt: skip


@dataclass(frozen=True)
class ApoZeroUnpaired(Alone):
    """Anchored at the start model: good answers rise, bad ones fall."""

    paper = "D'Oosterlinck et al. 2024, arXiv 2408.06266"

    def method(self) -> Method:
        """Return APO-zero's loss of single answers and DPO's reward."""
        from melior.losses.unpaired import apo_zero_unpaired

        return self.on_log_ratios(apo_zero_unpaired)
