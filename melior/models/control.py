"""Networks that model a world: an ensemble of dynamics, and discriminators of its transitions.

Axes: `n` transitions, `m` members, `d` and `a` numbers of an observation and of an action. Members
lie side by side in one tensor, and each layer is one product for all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from melior import ops
from melior.checks import in_range, one_of
from melior.models.parts import load_part, save_part

Activation = Literal["relu", "silu"]
_ACTIVATIONS = {"relu": nn.functional.relu, "silu": nn.functional.silu}
_CONSTANT = 1e-6
"""A range this small beside a number's size, or beside 1, is float32's rounding; divided by it,
what is asked for later would blow up."""
_FEW, _IN_CACHE = 64, 512
"""Rows up to which one product for all members is the fastest on a CPU, where a call costs more
than its numbers; and of more, how many go through a member at once: they stay in a core's cache
from layer to layer. `benchmarks/control_imagination.py` takes both ways' time."""


class Perceptrons(nn.Module):
    """Members of one shape, each a perceptron of its own; none knows of the others.

    Each starts as `nn.Linear` does: weights and biases even in `+-1 / sqrt(width)`.
    """

    def __init__(
        self, members: int, widths: Sequence[int], *, seed: int, activation: Activation = "relu"
    ) -> None:
        super().__init__()
        one_of("activation", activation, _ACTIVATIONS)
        self.activation = activation
        generator = ops.generator(seed)
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for before, after in pairwise(widths):
            bound = 1 / math.sqrt(before)
            for kept, shape in (
                (self.weights, (members, before, after)),
                (self.biases, (members, 1, after)),
            ):
                drawn = torch.empty(shape).uniform_(-bound, bound, generator=generator)
                kept.append(nn.Parameter(drawn))

    def forward(
        self, inputs: Float[Tensor, "n d"] | Float[Tensor, "m n d"]
    ) -> Float[Tensor, "m n o"]:
        """Return what each member makes of inputs that all share, or of its own."""
        members = self.weights[0].shape[0]
        own = inputs.expand(members, *inputs.shape[-2:])
        if torch.is_grad_enabled() or own.device.type != "cpu" or own.shape[1] <= _FEW:
            return self._through(own)
        weights = zip(*(weight.unbind() for weight in self.weights), strict=True)
        biases = zip(*(bias.unbind() for bias in self.biases), strict=True)
        each = zip(own, weights, biases, strict=True)
        return torch.stack([self._alone(*member) for member in each])

    def _alone(
        self, inputs: Float[Tensor, "n d"], weights: Sequence[Tensor], biases: Sequence[Tensor]
    ) -> Float[Tensor, "n o"]:
        """Return what one member makes of its inputs, some rows after others; no gradients."""
        act, parts = _ACTIVATIONS[self.activation], []
        for hidden in inputs.split(_IN_CACHE):
            for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
                hidden = act(torch.addmm(bias, hidden, weight), inplace=True)
            parts.append(torch.addmm(biases[-1], hidden, weights[-1]))
        return torch.cat(parts)

    def _through(self, hidden: Float[Tensor, "m n d"]) -> Float[Tensor, "m n o"]:
        last = len(self.weights) - 1
        for layer, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            hidden = torch.baddbmm(bias, hidden, weight)
            if layer < last:
                hidden = _ACTIVATIONS[self.activation](hidden)
        return hidden


class Scale(nn.Module):
    """An affine map of each dimension that is known from data, and the way back.

    A dimension that never changes, but for rounding, is mapped to 0 wherever it is, and back to
    what it was.
    """

    centre: Tensor
    width: Tensor

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(dimensions))
        self.register_buffer("width", torch.ones(dimensions))

    def standardise(
        self, data: Float[Tensor, "n d"], *, of: Float[Tensor, "m d"] | None = None
    ) -> None:
        """Let the data have mean 0 and deviation 1; differences are those `of` other numbers."""
        self._set(data.mean(0), data.std(0, correction=0), data, data if of is None else of)

    def fit_into(self, data: Float[Tensor, "n d"], bound: float) -> None:
        """Let the data lie within `-bound` and `bound`, and touch both."""
        low, high = data.amin(0), data.amax(0)
        self._set((low + high) / 2, (high - low) / (2 * bound), data, data)

    def forward(self, values: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Return values in the data's own measure."""
        inverse = torch.where(self.width > 0, 1 / self.width, 0.0)
        return (values - self.centre) * inverse

    def back(self, scaled: Float[Tensor, "... d"]) -> Float[Tensor, "... d"]:
        """Return values of which `forward` made the scaled ones."""
        return scaled * self.width + self.centre

    def _set(self, centre: Tensor, width: Tensor, data: Tensor, of: Tensor) -> None:
        size = of.abs().amax(0).clamp(min=1.0)
        is_constant = data.amax(0) - data.amin(0) <= _CONSTANT * size
        self.centre.copy_(torch.where(is_constant, data[0], centre))
        self.width.copy_(width.masked_fill(is_constant, 0.0))


@dataclass(frozen=True)
class DynamicsOptions:
    """What a `Dynamics` is made from; the defaults are those of MOPO, MOBILE and MOREC."""

    observations: int
    """How many numbers an observation has."""
    actions: int
    """How many numbers an action has."""
    members: int = 7
    elites: int = 5
    """How many of them are used once trained."""
    hidden: int = 200
    layers: int = 4

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value in asdict(self).items():
            in_range(name, value, 1)
        in_range("elites", self.elites, 1, self.members)


@dataclass(frozen=True)
class Prediction:
    """What each member expects to follow, as Gaussians of next observation and reward."""

    next_observations: Float[Tensor, "m n d"]
    rewards: Float[Tensor, "m n"]
    deviations: Float[Tensor, "m n d+1"]
    """Standard deviations of the next observation's numbers, and of the reward as the last."""


class Dynamics(nn.Module):
    """An ensemble of Gaussians of change and reward, given observation and action.

    Chua et al. 2018, arXiv 1805.12114 (PETS); Yu et al. 2020, arXiv 2005.13239 (MOPO). A member is
    trained on inputs and outputs scaled to deviation 1: theirs scale inputs only, so that the
    bounds of the variance mean something else in each task.
    """

    elites: Tensor

    def __init__(self, options: DynamicsOptions, *, seed: int) -> None:
        super().__init__()
        self.options = options
        inputs, outputs = options.observations + options.actions, options.observations + 1
        widths = [inputs, *([options.hidden] * options.layers), 2 * outputs]
        self.members = Perceptrons(
            options.members, widths, seed=ops.stream(seed, "dynamics"), activation="silu"
        )
        self.inputs, self.outputs = Scale(inputs), Scale(outputs)
        self.log_variance_low = nn.Parameter(torch.full((outputs,), -10.0))
        self.log_variance_high = nn.Parameter(torch.full((outputs,), 0.5))
        self.register_buffer("elites", torch.arange(options.elites))

    @torch.no_grad()
    def fit_scales(
        self,
        observations: Float[Tensor, "n d"],
        actions: Float[Tensor, "n a"],
        targets: Float[Tensor, "n d+1"],
    ) -> None:
        """Learn from data how inputs and targets are scaled."""
        self.inputs.standardise(torch.cat([observations, actions], dim=-1))
        of = torch.cat([observations, targets[:, -1:]], dim=-1)
        self.outputs.standardise(targets, of=of)

    def forward(
        self,
        observations: Float[Tensor, "*m n d"],
        actions: Float[Tensor, "*m n a"],
    ) -> tuple[Float[Tensor, "e n d+1"], Float[Tensor, "e n d+1"]]:
        """Return each member's mean and log-variance of the scaled change and reward."""
        inputs = self.inputs(torch.cat([observations, actions], dim=-1))
        mean, raw = self.members(inputs).chunk(2, dim=-1)
        below = self.log_variance_high - softplus(self.log_variance_high - raw)
        return mean, self.log_variance_low + softplus(below - self.log_variance_low)

    def bound_loss(self) -> Float[Tensor, ""]:
        """Return what draws the bounds of the variance together, to be weighed by 0.01.

        Chua et al. 2018, arXiv 1805.12114, appendix A.1, and their code.
        """
        return (self.log_variance_high - self.log_variance_low).sum()

    def predict(
        self, observations: Float[Tensor, "n d"], actions: Float[Tensor, "n a"]
    ) -> Prediction:
        """Return what every member expects, in the units of the data; elites are not yet chosen."""
        mean, log_variance = self(observations, actions)
        whole = self.outputs.back(mean)
        deviations = (0.5 * log_variance).exp() * self.outputs.width
        return Prediction(observations + whole[..., :-1], whole[..., -1], deviations)

    def elect(self, errors: Float[Tensor, " m"]) -> None:
        """Make the members with the least held-out error the elites."""
        self.elites.copy_(errors.argsort(stable=True)[: len(self.elites)])

    def save(self, folder: Path) -> None:
        """Write weights and options into a folder."""
        save_part(self, asdict(self.options), folder)

    @classmethod
    def load(cls, folder: Path) -> Dynamics:
        """Read what `save` wrote."""
        return load_part(cls, lambda said: cls(DynamicsOptions(**said), seed=0), folder)


@dataclass(frozen=True)
class DiscriminatorOptions:
    """What discriminators are made from."""

    observations: int
    actions: int
    members: int = 1
    hidden: int = 128
    layers: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value in asdict(self).items():
            in_range(name, value, 1)


class Discriminators(nn.Module):
    """Perceptrons that each tell real transitions from generated ones.

    Luo et al. 2023, arXiv 2310.05422, and their code: observations scaled into [-0.8, 0.8], actions
    as they are. The successor is given as its change in deviations of the logged changes: beside
    the observation that is the same knowledge, and a step far shorter than the world is wide is
    seen as well as a long one.
    """

    def __init__(self, options: DiscriminatorOptions, *, seed: int) -> None:
        super().__init__()
        self.options = options
        inputs = 2 * options.observations + options.actions
        widths = [inputs, *([options.hidden] * options.layers), 1]
        self.members = Perceptrons(options.members, widths, seed=ops.stream(seed, "discriminators"))
        self.observations = Scale(options.observations)
        self.changes = Scale(options.observations)

    @torch.no_grad()
    def fit_scales(
        self,
        observations: Float[Tensor, "n d"],
        next_observations: Float[Tensor, "n d"],
    ) -> None:
        """Learn from data how observations and their changes are scaled."""
        self.observations.fit_into(torch.cat([observations, next_observations]), 0.8)
        self.changes.standardise(next_observations - observations, of=observations)

    def inputs(
        self,
        observations: Float[Tensor, "n d"],
        actions: Float[Tensor, "n a"],
        next_observations: Float[Tensor, "n d"],
    ) -> Float[Tensor, "n i"]:
        """Return transitions as the perceptrons read them."""
        changes = self.changes(next_observations - observations)
        return torch.cat([self.observations(observations), actions, changes], dim=-1)

    def logits(self, inputs: Float[Tensor, "n i"]) -> Float[Tensor, "m n"]:
        """Return how real each member finds transitions, made into inputs: higher is more so."""
        return self.members(inputs)[..., 0]

    def forward(
        self,
        observations: Float[Tensor, "n d"],
        actions: Float[Tensor, "n a"],
        next_observations: Float[Tensor, "n d"],
    ) -> Float[Tensor, "m n"]:
        """Return how real each member finds transitions: higher is more so."""
        return self.logits(self.inputs(observations, actions, next_observations))

    def chosen(self, members: Int[Tensor, " k"]) -> Discriminators:
        """Return some members, as discriminators of their own."""
        return gathered([self], [members])


@torch.no_grad()
def gathered(
    parts: Sequence[Discriminators], members: Sequence[Int[Tensor, " k"]] | None = None
) -> Discriminators:
    """Return members of several discriminators side by side in one; all if none are named.

    They must have the same scales.
    """
    weights: dict[str, Tensor] = {}
    for name, first in parts[0].state_dict().items():
        own = [part.state_dict()[name] for part in parts]
        if name.startswith("members."):
            picked = [one if members is None else one[members[i]] for i, one in enumerate(own)]
            weights[name] = torch.cat(picked)
        else:
            if not all(torch.equal(one, first) for one in own):
                raise ValueError(f"discriminators must share their scales; found others in {name}")
            weights[name] = first
    options = asdict(parts[0].options) | {"members": len(weights["members.weights.0"])}
    whole = Discriminators(DiscriminatorOptions(**options), seed=0)
    whole.to(weights["members.weights.0"]).load_state_dict(weights)
    return whole
