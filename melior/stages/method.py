"""What a way of learning from comparisons is: a loss, a reward, and what they may read."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from melior.data.examples import Data
from melior.records import Metrics
from melior.stages.memory import Memory
from melior.types import Pairwise


@dataclass(frozen=True)
class Answers:
    """What a loss may read of `n` groups of up to `k` answers; a pair is two, chosen first.

    Numbers of tokens stand answer after answer, `m` in all; `places` says whose they are. Answers
    that are not there hold 0 everywhere.
    """

    tokens: Float[Tensor, " m"]
    """Log-probability of each scored token under the model."""
    reference_tokens: Float[Tensor, " m"]
    """The same under the start model; zeros for a reference-free method."""
    places: Int[Tensor, " m"]
    """Row of the group times k, plus column of the answer."""
    steps: Int[Tensor, " m"]
    """Which step of its answer a token belongs to."""
    scores: Float[Tensor, "n k"]
    """The data's; nan where an answer has none of its own."""
    margins: Float[Tensor, " n"]
    """The data's own, of pairs."""
    is_there: Bool[Tensor, "n k"]
    extras: Mapping[str, Tensor] = field(default_factory=dict)
    """By token `m`, where a method asks for it: `collision`, `log sum_v p(v)^2`; `states`, `[m d]`,
    the model's last hidden state."""

    @property
    def known_scores(self) -> Float[Tensor, "n k"]:
        """The scores, nan also where no answer is."""
        return self.scores.masked_fill(~self.is_there, math.nan)

    @cached_property
    def policy(self) -> Float[Tensor, "n k"]:
        """Log-probabilities of the answers under the model, summed over their tokens."""
        return self.sums(self.tokens)

    @cached_property
    def reference(self) -> Float[Tensor, "n k"]:
        """The same under the start model."""
        return self.sums(self.reference_tokens)

    @cached_property
    def lengths(self) -> Float[Tensor, "n k"]:
        """Scored tokens of each answer."""
        return self.sums(torch.ones_like(self.tokens))

    @property
    def per_token(self) -> Float[Tensor, "n k"]:
        """Log-probabilities averaged over the answer's tokens."""
        return self.policy / self.lengths.clamp(min=1)

    @property
    def reference_per_token(self) -> Float[Tensor, "n k"]:
        """The same under the start model."""
        return self.reference / self.lengths.clamp(min=1)

    @property
    def log_ratio(self) -> Float[Tensor, "n k"]:
        """Log-probabilities relative to the reference."""
        return self.policy - self.reference

    @cached_property
    def ranks(self) -> Int[Tensor, " m"]:
        """How many scored tokens stand before each in its answer."""
        counts = self.lengths.flatten().long()
        first = counts.cumsum(0) - counts
        return torch.arange(len(self.places), device=self.places.device) - first[self.places]

    def sums(self, values: Float[Tensor, " m"]) -> Float[Tensor, "n k"]:
        """Sum numbers of tokens over each answer, in float64 where the device has it."""
        wide = values if values.device.type == "mps" else values.double()
        zeros = wide.new_zeros(self.is_there.numel())
        return zeros.index_add(0, self.places, wide).view_as(self.is_there)

    def to(self, device: torch.device | str) -> Answers:
        """Return the same on a device, without history."""
        moved = {f.name: getattr(self, f.name).detach().to(device) for f in fields(self)[:-1]}
        extras = {name: values.to(device) for name, values in self.extras.items()}
        return Answers(**moved, extras=extras)

    def step_sums(self, values: Float[Tensor, " m"]) -> Float[Tensor, "n k s"]:
        """Sum numbers of tokens over each step of each answer; 0 for steps that it lacks."""
        n_steps = int(self.steps.max()) + 1 if len(self.steps) else 1
        wide = values if values.device.type == "mps" else values.double()
        zeros = wide.new_zeros(self.is_there.numel() * n_steps)
        summed = zeros.index_add(0, self.places * n_steps + self.steps, wide)
        return summed.view(*self.is_there.shape, n_steps)


def pairwise(values: Float[Tensor, "n k"]) -> Pairwise:
    """Return the two columns of pairs."""
    return Pairwise(values[:, 0], values[:, 1])


def join(parts: Sequence[Answers]) -> Answers:
    """Put the groups of several portions together, in their order."""
    width = max(part.is_there.shape[1] for part in parts)
    rows = [0]
    for part in parts:
        rows.append(rows[-1] + len(part.margins))

    def widened(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (0, width - values.shape[1]))

    def moved(part: Answers, row: int) -> Tensor:
        own = part.is_there.shape[1]
        return (part.places // own + row) * width + part.places % own

    return Answers(
        tokens=torch.cat([part.tokens for part in parts]),
        reference_tokens=torch.cat([part.reference_tokens for part in parts]),
        places=torch.cat([moved(part, row) for part, row in zip(parts, rows, strict=False)]),
        steps=torch.cat([part.steps for part in parts]),
        scores=torch.cat([widened(part.scores) for part in parts]),
        margins=torch.cat([part.margins for part in parts]),
        is_there=torch.cat([widened(part.is_there) for part in parts]),
        extras={name: torch.cat([part.extras[name] for part in parts]) for name in parts[0].extras},
    )


def arranged(answers: Answers, order: Int[Tensor, " n"]) -> tuple[Answers, Int[Tensor, " m"]]:
    """Return the groups in another order, and which tokens stand where then."""
    width = answers.is_there.shape[1]
    row = torch.empty_like(order)
    row[order] = torch.arange(len(order), device=order.device)
    places = row[answers.places // width] * width + answers.places % width
    tokens = places.argsort(stable=True)
    moved = Answers(
        tokens=answers.tokens[tokens],
        reference_tokens=answers.reference_tokens[tokens],
        places=places[tokens],
        steps=answers.steps[tokens],
        scores=answers.scores[order],
        margins=answers.margins[order],
        is_there=answers.is_there[order],
        extras={name: values[tokens] for name, values in answers.extras.items()},
    )
    return moved, tokens


@dataclass(frozen=True)
class Method:
    """A way to learn from comparisons."""

    loss: Callable[[Answers], Float[Tensor, " n"]]
    reward: Callable[[Answers], Float[Tensor, "n k"]]
    """The implicit reward that the loss compares, as the metrics report it."""
    has_reference: bool
    data: Data = "pairs"
    sft_weight: float = 0.0
    """Of the better answers' negative log-likelihood."""
    nll_reduction: Literal["mean_token", "sum"] = "mean_token"
    """Over all their tokens in the optimizer batch, or summed in each answer and averaged."""
    extras: frozenset[str] = frozenset()
    """Of `Answers.extras`, those that are read."""
    is_coupled: bool = False
    """The loss of one group depends on others in its optimizer batch."""
    memory: Memory | None = None
    """What is carried from one batch to the next, kept in checkpoints."""
    remember: Callable[[Answers], Metrics] = lambda answers: {}
    """Of a coupled method: take note of a whole optimizer batch after its loss, and return what is
    to be measured of it. The numbers have no history."""
    needs_margins: bool = False
    """Rows must have margins of their own."""
    score_range: tuple[float, float] = (-math.inf, math.inf)
    """Within which the rows' scores must lie."""
    has_strangers: bool = False
    """Beside each answer judged alone stands another prompt's, whose score is nan (KTO)."""

    @cached_property
    def direction(self) -> float:
        """1 where the reward rises with an answer's log-probability, -1 where it falls, 0 else.

        Accuracy is of the reward times this. A beta with the wrong sign would rank every pair
        right by what the model unlearns, and look perfect.
        """
        two = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
        nothing = torch.zeros(2, dtype=torch.float64)
        answers = Answers(
            tokens=two[0] - 2, reference_tokens=nothing - 2, places=torch.arange(2),
            steps=torch.zeros(2, dtype=torch.long), scores=two, margins=nothing[:1],
            is_there=torch.ones(1, 2, dtype=torch.bool),
        )  # fmt: skip
        likelier, other = self.reward(answers)[0].tolist()
        return float((likelier > other) - (likelier < other))


def per_token_method(
    loss: Callable[[Pairwise], Float[Tensor, " n"]], *, beta: float, **options: object
) -> Method:
    """Return the method of a reference-free loss on log-probabilities averaged over tokens."""
    return Method(
        lambda answers: loss(pairwise(answers.per_token)),
        lambda answers: beta * answers.per_token,
        has_reference=False,
        **options,  # type: ignore[arg-type]  # checked by Method itself
    )


def log_ratio_method(
    loss: Callable[[Pairwise, Pairwise], Float[Tensor, " n"]], *, beta: float, **options: object
) -> Method:
    """Return the method of a loss on summed log-probabilities of policy and reference."""
    return Method(
        lambda answers: loss(pairwise(answers.policy), pairwise(answers.reference)),
        lambda answers: beta * answers.log_ratio,
        has_reference=True,
        **options,  # type: ignore[arg-type]  # checked by Method itself
    )
