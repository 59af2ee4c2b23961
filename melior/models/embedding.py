"""PreferenceHead: preference embeddings of answers, and the gate of their planes (GPM)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from melior import ops
from melior.checks import in_range, one_of
from melior.losses.general import mean_one_gate
from melior.models.parts import load_part, save_part

GATES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "mean-one": mean_one_gate,
    "sum-one": lambda logits, _: logits.softmax(-1),
    "none": lambda logits, _: torch.ones_like(logits),
}
"""From logits of the planes, and the width of what they are linear in, to what each plane counts:
the form of the authors' later training code, that of their released models, and no gate."""


@dataclass(frozen=True)
class EmbeddingOptions:
    """What a PreferenceHead is made from."""

    features: int
    """Width of the hidden states."""
    dimensions: int = 6
    """Of an embedding, two to a plane; 6 and 8 in the paper. With 2, a length of 1 and the paper's
    beta of 0.1, training can wind the wrong way round a circle and stay there."""
    is_normalised: bool = True
    """Whether embeddings have the length 1."""
    gate: str = "mean-one"
    """How planes are scaled by the prompt: `mean-one`, `sum-one` or `none`."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("features", self.features, 1)
        check_dimensions(self.dimensions)
        one_of("gate", self.gate, tuple(GATES))


def check_dimensions(dimensions: int) -> None:
    """Check that an embedding has two numbers to a plane."""
    in_range("dimensions", dimensions, 2)
    if dimensions % 2:
        raise ValueError(f"dimensions must be even, two to a plane; found {dimensions}")


class PreferenceHead(nn.Module):
    """Two linear layers without bias, drawn with the deviation `1 / (d + 1)` of the released code.

    Zhang et al. 2024, arXiv 2410.02197, sec. 4: the embedding of an answer is read at its last
    token, the gate at the last token of the prompt. `melior.losses.general` makes scores of both.
    """

    def __init__(self, options: EmbeddingOptions, *, seed: int) -> None:
        super().__init__()
        self.options = options
        draw = ops.generator(seed)
        self.embedding = nn.utils.skip_init(
            nn.Linear, options.features, options.dimensions, bias=False
        )
        draw_layer(self.embedding, generator=draw)
        planes = GateOptions(options.features, options.dimensions // 2, options.gate)
        self.gate = PlaneGate(planes, generator=draw)

    def forward(self, answers: Float[Tensor, "*n d"]) -> Float[Tensor, "*n e"]:
        """Return the embeddings of answers, in the head's own precision."""
        vectors = self.embedding(answers.to(self.embedding.weight.dtype))
        return unit(vectors) if self.options.is_normalised else vectors


@dataclass(frozen=True)
class GateOptions:
    """What a PlaneGate is made from."""

    features: int
    """Width of the hidden states."""
    planes: int
    form: str = "mean-one"
    """One of `GATES`."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("features", self.features, 1)
        in_range("planes", self.planes, 1)
        one_of("gate", self.form, tuple(GATES))


class PlaneGate(nn.Module):
    """How much each plane of an embedding counts for a prompt: one linear layer without bias."""

    def __init__(self, options: GateOptions, *, generator: torch.Generator) -> None:
        super().__init__()
        self.options = options
        self.logits = nn.utils.skip_init(nn.Linear, options.features, options.planes, bias=False)
        draw_layer(self.logits, generator=generator)
        self.requires_grad_(options.form != "none")

    def forward(self, prompts: Float[Tensor, "n d"]) -> Float[Tensor, "n p"]:
        """Return what the planes count for prompts, in the gate's own precision."""
        logits = self.logits(prompts.to(self.logits.weight.dtype))
        return GATES[self.options.form](logits, self.options.features)

    def save(self, folder: Path) -> None:
        """Write weights and options into a folder."""
        save_part(self, asdict(self.options), folder)

    @classmethod
    def load(cls, folder: Path) -> PlaneGate:
        """Read what `save` wrote."""
        return load_part(cls, lambda o: cls(GateOptions(**o), generator=ops.generator(0)), folder)


def unit(vectors: Float[Tensor, "*n e"]) -> Float[Tensor, "*n e"]:
    """Return vectors of the length 1, and 0 for 0."""
    return F.normalize(vectors, dim=-1, eps=1e-6)  # the paper's bound


def draw_layer(layer: nn.Linear, *, generator: torch.Generator) -> None:
    """Draw the weights of a head with the deviation `1 / (d + 1)` of the released code."""
    fresh = torch.empty(layer.weight.shape).normal_(
        0, 1 / (layer.in_features + 1), generator=generator
    )
    with torch.no_grad():
        layer.weight.copy_(fresh)
