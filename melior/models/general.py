"""GeneralModel: embeddings of answers, their gate, and scores that may go in circles.

Zhang, Zhang, Wu, Xu, Gu 2024, arXiv 2410.02197 (GPM). A saved one is a sequence classifier whose
labels are the coordinates, so that other programs read the embeddings (before they get the length
1) from its folder. Beside it lie the gate and `melior.json`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from melior import ops
from melior.checks import in_range
from melior.data.chat import ChatFormat, Encoded
from melior.data.forest import Forest, filled, plant
from melior.data.portions import divided, portions
from melior.losses.general import skew_scores
from melior.models.embedding import GateOptions, PlaneGate, check_dimensions, draw_layer, unit
from melior.models.heads import RewardModel, load_reward_model, save_reward_model
from melior.models.loading import folder_of
from melior.models.names import KIND_FILE, kind_of
from melior.options import ModelOptions

KIND, GATE = "general", "gate"


@dataclass(frozen=True)
class Geometry:
    """How embeddings become scores."""

    dimensions: int = 6
    """Of an embedding, two to a plane."""
    is_normalised: bool = True
    """Whether embeddings have the length 1."""
    beta: float = 0.1
    """`sigmoid(s / beta)` is the chance to win."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_dimensions(self.dimensions)
        in_range("beta", self.beta, 0, above=True)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the coordinates, plane by plane."""
        return tuple(f"{side}{plane}" for plane in range(self.dimensions // 2) for side in "ab")


class GeneralModel:
    """A reward model whose head gives embeddings, and the gate of their planes.

    Args:
        reward: the model; its head gives the coordinates.
        gate: of the planes.
        geometry: how embeddings become scores.
    """

    def __init__(self, reward: RewardModel, gate: PlaneGate, geometry: Geometry) -> None:
        self.reward = reward
        self.gate = gate
        self.geometry = geometry
        self.masters = reward.masters
        self.padded_because = reward.padded_because
        """Why sequences are computed one by one under padding; empty where the forest is exact."""

    @property
    def chat(self) -> ChatFormat:
        """How conversations become tokens."""
        return self.reward.chat

    @property
    def core(self) -> PreTrainedModel:
        """The transformers model, inside its adapter if it has one."""
        return self.reward.core

    @cached_property
    def start_hash(self) -> str:
        """A fingerprint of what is computed, adapters left out; taken before training."""
        return self._with_gate(self.reward.start_hash)

    @property
    def identity(self) -> dict[str, str]:
        """What the scores come from: hashes of weights, as they are held, and chat format."""
        found = self.reward.identity
        return found | {"weights": self._with_gate(found["weights"])[:16]}

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return the parameters that training may change, by name."""
        own = self.gate.named_parameters()
        gate = {f"{GATE}.{name}": weight for name, weight in own if weight.requires_grad}
        return self.reward.trainable() | gate

    def checkpoint_activations(self) -> None:
        """Recompute activations in the backward pass: less memory, more time."""
        self.reward.checkpoint_activations()

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Inside, nothing is random and no gradient is kept: an adapter's dropout is off."""
        with self.reward.evaluating():
            yield

    def embed(
        self, forest: Forest, prompts: Int[Tensor, " g"]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, "g p"]]:
        """Return the embedding of each sequence, and what the planes count for prompts.

        Args:
            forest: of the answers.
            prompts: rows in which prompts end.
        """
        hidden = self.reward.hidden(forest, torch.cat([forest.last, prompts]))
        vectors = self.reward.read(hidden[: forest.n])
        gate = self.gate(hidden[forest.n :])
        return (unit(vectors) if self.geometry.is_normalised else vectors), gate

    def save(self, folder: Path) -> None:
        """Write a folder that `AutoModelForSequenceClassification` loads, the gate beside it."""
        save_reward_model(self.reward, folder)
        self.gate.save(folder / GATE)
        said = {"kind": KIND, **asdict(self.geometry)}
        (folder / KIND_FILE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")

    def _with_gate(self, found: str) -> str:
        weights = self.gate.logits.weight.detach().cpu().numpy().tobytes()
        said = f"{found} {self.geometry} {self.gate.options}".encode()
        return hashlib.sha256(said + weights).hexdigest()


@dataclass(frozen=True)
class Embedded:
    """Answers to one prompt, on the CPU in float64."""

    vectors: Float[Tensor, "k d"]
    gate: Float[Tensor, " p"]

    @property
    def scores(self) -> Float[Tensor, "k k"]:
        """By how much each answer (row) beats each other one."""
        return skew_scores(self.vectors[None], self.gate[None])[0]


@torch.no_grad()
def embedded(
    model: GeneralModel,
    groups: Sequence[Sequence[Encoded]],
    *,
    max_tokens: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Embedded]:
    """Embed each group's answers to one prompt, at least one: every answer is read once.

    The gate is that of the prompt, the same for all pairs of a group. Where prompts were cut for
    the sake of long answers, it is read at the end of the one of which most is left.

    Args:
        model: what embeds.
        groups: in any order; those of like length are computed together, a prompt once a group,
            or as often as it takes to stay within the tokens.
        max_tokens: computed at once; one answer alone may exceed them.
        on_progress: told how many groups have been begun.
    """
    owners, parts = divided(groups, max_tokens)
    found: dict[int, Embedded] = {}
    for part in portions(parts, max_tokens):
        forest = filled(plant([answer for i in part for answer in parts[i]]), max_tokens)
        ends, first = [], 0
        for i in part:
            longest = max(range(len(parts[i])), key=lambda k: parts[i][k].n_prompt)
            ends.append(forest.row(first + longest, max(0, parts[i][longest].n_prompt - 1)))
            first += len(parts[i])
        with model.evaluating():
            both = model.embed(forest, torch.tensor(ends))
        vectors, gates = (own.double().cpu() for own in both)
        sides = vectors.split([len(parts[i]) for i in part])
        found |= {i: Embedded(*own) for i, *own in zip(part, sides, gates, strict=True)}
        on_progress(len({owners[i] for i in found}))
    whole: list[list[int]] = [[] for _ in groups]
    for place, i in enumerate(owners):
        whole[i].append(place)
    return [_joined([(parts[place], found[place]) for place in own]) for own in whole]


def _joined(parts: Sequence[tuple[Sequence[Encoded], Embedded]]) -> Embedded:
    """Put the parts of a group together, under the gate of the longest prompt."""
    _, most = max(parts, key=lambda part: max(one.n_prompt for one in part[0]))
    return Embedded(torch.cat([own.vectors for _, own in parts]), most.gate)


def load_general_model(options: ModelOptions) -> GeneralModel:
    """Load what `GeneralModel.save` wrote, to score with.

    Raises:
        FileNotFoundError: there is no such folder, or it has no gate.
        ValueError: its parts are not of one model.
    """
    return _load(options, trainable=False, seed=0)


def start_general_model(
    options: ModelOptions, geometry: Geometry, form: str, *, seed: int
) -> GeneralModel:
    """Load a model that is to be trained: a saved one, or a causal LM under a fresh head and gate.

    Args:
        options: which model, and how it is held.
        geometry: how embeddings become scores.
        form: of the gate.
        seed: of what is fresh, and of a new adapter.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: what is there cannot be trained, or has another geometry.
    """
    if kind_of(options.model) == KIND:
        model = _load(options, trainable=True, seed=seed)
        was, asked = (model.geometry, model.gate.options.form), (geometry, form)
        if was != asked:
            raise ValueError(
                f"{options.model}: going on needs the geometry and the gate that it has, {was};"
                f" found {asked}"
            )
        return model
    reward = load_reward_model(options, trainable=True, seed=seed, labels=geometry.labels)
    if not reward.is_fresh:
        raise ValueError(
            f"{options.model}: needs a causal LM, or what melior gpm saved; found a sequence"
            " classifier of another making"
        )
    draw = ops.generator(seed)
    draw_layer(reward.core.score, generator=draw)
    planes = GateOptions(reward.core.score.in_features, geometry.dimensions // 2, form)
    gate = PlaneGate(planes, generator=draw).to(reward.core.device)
    return GeneralModel(reward, gate, geometry)


def _load(options: ModelOptions, *, trainable: bool, seed: int) -> GeneralModel:
    folder = Path(folder_of(options.model))
    geometry = _read(folder / KIND_FILE)
    reward = load_reward_model(options, trainable=trainable, seed=seed, labels=geometry.labels)
    gate = PlaneGate.load(folder / GATE)
    wanted = reward.core.score.in_features, geometry.dimensions // 2
    if reward.is_fresh or (gate.options.features, gate.options.planes) != wanted:
        raise ValueError(
            f"{folder}: a head and a gate of {geometry.dimensions} dimensions are needed, as"
            f" {KIND_FILE} says; found others; the folder's parts are not of one model"
        )
    return GeneralModel(reward, gate.to(reward.core.device), geometry)


def _read(path: Path) -> Geometry:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"dimensions": (int,), "is_normalised": (bool,), "beta": (int, float)}
        if wrong := [name for name, kind in kinds.items() if type(said[name]) not in kind]:
            raise TypeError(f"{wrong[0]} {said[wrong[0]]!r}")  # also where a bool is no int
        return Geometry(**{name: said[name] for name in kinds})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: needs 'dimensions', 'is_normalised' and 'beta'; found {error!r}"
        ) from error
