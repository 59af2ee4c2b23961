"""AspectGate: a network that says from the prompt alone how objectives are mixed (ArmoRM)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from melior.checks import in_range
from melior.models.parts import load_part, save_part


@dataclass(frozen=True)
class GateOptions:
    """What an AspectGate is made from; the defaults are of the authors' released code."""

    features: int
    """Width of the prompt's hidden state."""
    aspects: int
    """How many objectives there are."""
    hidden: int = 1024
    layers: int = 3
    dropout: float = 0.2
    """In training only."""
    temperature: float = 10.0
    """Logits are divided by it: they must reach tens before the gate looks at one objective."""
    scale: float = 1.0
    """What the weights add up to before training, which learns it."""
    null: int | None = None
    """An objective that gets no weight: verbosity, whose decorrelated reward is always 0, draws
    weight that says nothing."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("features", self.features, 1)
        in_range("aspects", self.aspects, 1)
        in_range("hidden", self.hidden, 1)
        in_range("layers", self.layers, 1)
        in_range("dropout", self.dropout, 0, 0.99)
        in_range("temperature", self.temperature, 1e-6)
        in_range("scale", self.scale, 1e-6)
        if self.null is not None:
            in_range("null", self.null, 0, self.aspects - 1)


class AspectGate(nn.Module):
    """A perceptron under a softmax over the objectives, times a learned scale.

    Wang et al. 2024, arXiv 2406.12845, sec. 3.2: `g(x) = s softmax(MLP(p(x)) / T)`. The scale is
    kept as its logarithm and so stays positive.
    """

    def __init__(self, options: GateOptions, *, seed: int) -> None:
        super().__init__()
        self.options = options
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            widths = [options.features, *([options.hidden] * options.layers)]
            layers: list[nn.Module] = []
            for before, after in pairwise(widths):
                layers += [nn.Linear(before, after), nn.ReLU(), nn.Dropout(options.dropout)]
            self.logits = nn.Sequential(*layers, nn.Linear(options.hidden, options.aspects))
        self.log_scale = nn.Parameter(torch.tensor(math.log(options.scale)))

    def forward(self, prompts: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Return the weights of the objectives for each prompt: above 0, adding up to the scale."""
        logits = self.logits(prompts) / self.options.temperature
        if self.options.null is not None:
            is_null = torch.arange(logits.shape[-1], device=logits.device) == self.options.null
            logits = logits.masked_fill(is_null, -torch.inf)
        return logits.softmax(-1) * self.log_scale.exp()

    def save(self, folder: Path) -> None:
        """Write weights and options into a folder."""
        save_part(self, asdict(self.options), folder)

    @classmethod
    def load(cls, folder: Path) -> AspectGate:
        """Read what `save` wrote."""
        return load_part(cls, lambda said: cls(GateOptions(**said), seed=0), folder)
