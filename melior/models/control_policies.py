"""Networks that act and judge actions: policies and critics; actions lie in [-1, 1].

Axes: `n` rows, `m` critics, `d` and `a` numbers of an observation and of an action.
"""

from __future__ import annotations

import copy
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from melior import ops
from melior.checks import in_range
from melior.models.control import Perceptrons, Scale
from melior.models.parts import OPTIONS, load_part, save_part

Network = TypeVar("Network", bound=nn.Module)

_LOG_STD = (-5.0, 2.0)
"""Bounds of a policy's log-deviation: below, tanh of it is one action; above, one of two."""


@dataclass(frozen=True)
class PolicyOptions:
    """What policies and critics are made from."""

    observations: int
    actions: int
    hidden: int = 256
    layers: int = 2

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name, value in asdict(self).items():
            in_range(name, value, 1)


@runtime_checkable
class Policy(Protocol):
    """Whatever acts."""

    def act(self, observations: Float[Tensor, "n d"], /) -> Float[Tensor, "n a"]:
        """Return the action that is thought best for each observation."""


class GaussianPolicy(nn.Module):
    """A Gaussian whose draws are squashed by tanh, as wide as each observation asks.

    Haarnoja et al. 2018, arXiv 1812.05905, appendix C.
    """

    def __init__(self, options: PolicyOptions, *, seed: int) -> None:
        super().__init__()
        self.options = options
        self.scale = Scale(options.observations)
        widths = _widths(options, options.observations, 2 * options.actions)
        self.network = Perceptrons(1, widths, seed=ops.stream(seed, "policy"))

    def forward(
        self, observations: Float[Tensor, "n d"]
    ) -> tuple[Float[Tensor, "n a"], Float[Tensor, "n a"]]:
        """Return mean and log-deviation before tanh."""
        mean, log_std = self.network(self.scale(observations))[0].chunk(2, dim=-1)
        low, high = _LOG_STD
        return mean, low + 0.5 * (high - low) * (log_std.tanh() + 1)

    def draw(
        self, observations: Float[Tensor, "n d"], *, generator: torch.Generator
    ) -> tuple[Float[Tensor, "n a"], Float[Tensor, " n"]]:
        """Draw an action for each observation, with its log-density; gradients reach both.

        Appendix C, with `log(1 - tanh(u)^2) = 2 (log 2 - u - softplus(-2u))`, which does
        not round to the log of 0.
        """
        mean, log_std = self(observations)
        noise = torch.empty_like(mean).normal_(generator=generator)
        before = mean + log_std.exp() * noise
        gaussian = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)
        squashing = 2 * (math.log(2) - before - softplus(-2 * before))
        return before.tanh(), (gaussian - squashing).sum(-1)

    def act(self, observations: Float[Tensor, "n d"], /) -> Float[Tensor, "n a"]:
        """Return the middle of what would be drawn."""
        return self(observations)[0].tanh()

    def save(self, folder: Path) -> None:
        """Write weights and options into a folder."""
        save_part(self, asdict(self.options), folder)

    @classmethod
    def load(cls, folder: Path) -> GaussianPolicy:
        """Read what `save` wrote."""
        return load_part(cls, lambda said: cls(PolicyOptions(**said), seed=0), folder)


class PlainPolicy(nn.Module):
    """One action for each observation: of behaviour cloning and TD3."""

    def __init__(self, options: PolicyOptions, *, seed: int) -> None:
        super().__init__()
        self.options = options
        self.scale = Scale(options.observations)
        widths = _widths(options, options.observations, options.actions)
        self.network = Perceptrons(1, widths, seed=ops.stream(seed, "policy"))

    def forward(self, observations: Float[Tensor, "n d"]) -> Float[Tensor, "n a"]:
        """Return the action."""
        return self.network(self.scale(observations))[0].tanh()

    def act(self, observations: Float[Tensor, "n d"], /) -> Float[Tensor, "n a"]:
        """Return the action."""
        return self(observations)

    def save(self, folder: Path) -> None:
        """Write weights and options into a folder."""
        save_part(self, asdict(self.options), folder)

    @classmethod
    def load(cls, folder: Path) -> PlainPolicy:
        """Read what `save` wrote."""
        return load_part(cls, lambda said: cls(PolicyOptions(**said), seed=0), folder)


def load_policy(folder: Path) -> GaussianPolicy | PlainPolicy:
    """Read a policy of either kind.

    Raises:
        ValueError: the folder holds none.
    """
    try:
        kind = json.loads((folder / OPTIONS).read_text(encoding="utf-8")).get("kind")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{folder}: a policy that a run has saved is needed; {error}") from error
    for known in (GaussianPolicy, PlainPolicy):
        if kind == known.__name__:
            return known.load(folder)
    raise ValueError(f"{folder}: a policy is needed; found {kind!r}")


class Critics(nn.Module):
    """Two judges of what an action is worth, which start apart and learn side by side."""

    def __init__(self, options: PolicyOptions, *, seed: int) -> None:
        super().__init__()
        self.scale = Scale(options.observations)
        widths = _widths(options, options.observations + options.actions, 1)
        self.networks = Perceptrons(2, widths, seed=ops.stream(seed, "critics"))

    def forward(
        self, observations: Float[Tensor, "n d"], actions: Float[Tensor, "n a"]
    ) -> Float[Tensor, "m n"]:
        """Return each critic's value of each action."""
        inputs = torch.cat([self.scale(observations), actions], dim=-1)
        return self.networks(inputs)[..., 0]


def frozen_copy(network: Network) -> Network:
    """Return a copy that needs no gradient: a target."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()
def follow(target: nn.Module, source: nn.Module, rate: float) -> None:
    """Move a target's weights towards the source's by a share of the way (Polyak averaging)."""
    torch._foreach_lerp_(list(target.parameters()), list(source.parameters()), rate)


def _widths(options: PolicyOptions, inputs: int, outputs: int) -> list[int]:
    return [inputs, *([options.hidden] * options.layers), outputs]
