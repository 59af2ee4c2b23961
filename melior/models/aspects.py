"""AspectModel: ratings by several objectives from one frozen model, and how a prompt mixes them.

Wang, Xiong, Xie, Zhao, Zhang 2024, arXiv 2406.12845 (ArmoRM). The regression is the head of an
ordinary sequence classifier whose labels are the objectives, so that other programs print the
ratings, in the unit interval, from the saved folder. Beside it lie the gate and `melior.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn

from melior.data.chat import ChatFormat
from melior.data.forest import Marked, filled, plant
from melior.data.portions import divided, portions
from melior.losses.aspects import Decorrelation, Scale, coefficients, gated_score
from melior.models.gate import AspectGate
from melior.models.heads import RewardModel, load_reward_model, save_reward_model
from melior.models.loading import folder_of
from melior.models.names import KIND_FILE
from melior.options import ModelOptions
from melior.records import Turn

KIND, GATE = "aspects", "gate"


class Prompted(Marked, Protocol):
    """A sequence of tokens that begins with a prompt."""

    @property
    def n_prompt(self) -> int:
        """The first so many tokens are the prompt's."""


@dataclass(frozen=True)
class Aspect:
    """One objective: its name, its raters' scale, and its share of verbosity that is taken off."""

    name: str
    scale: Scale
    penalty: float = 0.0


@dataclass(frozen=True)
class Aspects:
    """All objectives in the order of the head's rows, and which is verbosity, if one is."""

    each: tuple[Aspect, ...]
    verbosity: int | None

    @property
    def names(self) -> tuple[str, ...]:
        """The objectives' names."""
        return tuple(one.name for one in self.each)

    @property
    def transform(self) -> Float[Tensor, "m m"]:
        """The matrix of what is taken off, in float64; the identity where nothing is."""
        penalties = torch.tensor([one.penalty for one in self.each], dtype=torch.float64)
        if self.verbosity is None:
            return torch.diag(torch.ones_like(penalties))
        return Decorrelation(penalties, penalties >= 0, self.verbosity).transform

    def ratings(self, rewards: Float[Tensor, " m"]) -> dict[str, float]:
        """Return rewards of the unit interval on the scales of the raters."""
        pairs = zip(self.each, rewards, strict=True)
        return {one.name: float(one.scale.ratings(reward)) for one, reward in pairs}

    def explanation(
        self, rewards: Float[Tensor, " m"], counted: Float[Tensor, " m"]
    ) -> list[dict[str, Any]]:
        """Say what each objective adds to a score: weight times reward, the largest first.

        Args:
            rewards: of the answer, in the unit interval.
            counted: what each counts at its prompt, `coefficients`.
        """
        ratings = self.ratings(rewards)
        rows = [
            {
                "objective": name,
                "rating": ratings[name],
                "weight": float(weight),
                "contribution": float(weight * reward),
            }
            for name, weight, reward in zip(self.names, counted, rewards, strict=True)
        ]
        return sorted(rows, key=lambda row: -abs(row["contribution"]))


@dataclass(frozen=True)
class Features:
    """Of answers to one prompt: their last hidden states, and the prompt's."""

    answers: Float[Tensor, "k d"]
    prompt: Float[Tensor, " d"]


@dataclass(frozen=True)
class Mixed:
    """What is said of answers to one prompt, in float64 on the CPU."""

    rewards: Float[Tensor, "k m"]
    """By objective, in the unit interval."""
    weights: Float[Tensor, " m"]
    """Of the decorrelated rewards, by the gate."""
    coefficients: Float[Tensor, " m"]
    """Of the rewards themselves: their sum so weighted is the score."""
    scores: Float[Tensor, " k"]


class AspectModel:
    """A frozen reward model with a row of its head for each objective, and a gate.

    Args:
        reward: the model; its head is the regression.
        gate: from a prompt's hidden state to weights.
        aspects: what the rows are.
    """

    def __init__(self, reward: RewardModel, gate: AspectGate, aspects: Aspects) -> None:
        self.reward = reward
        self.gate = gate.eval()
        self.aspects = aspects
        self.opening = opening_length(reward.chat)

    def mixed(self, groups: Sequence[Sequence[Prompted]], *, max_tokens: int) -> list[Mixed]:
        """Return what is said of each group's answers to one prompt; none may be empty."""
        found = features_of(self.reward, groups, opening=self.opening, max_tokens=max_tokens)
        return [self.mix(features) for features in found]

    def mix(self, features: Features) -> Mixed:
        """Return what is said of answers whose features are known."""
        head = self.reward.core.score.weight.detach().double().cpu()
        return self.mix_rewards(features.answers.double() @ head.T, features.prompt)

    @torch.no_grad()
    def mix_rewards(self, rewards: Float[Tensor, "k m"], prompt: Float[Tensor, " d"]) -> Mixed:
        """Return what is said of answers to a prompt whose rewards by objective are known."""
        weights = self.gate(prompt.to(self.gate.log_scale)[None]).double().cpu()
        transform = self.aspects.transform
        scores = gated_score(rewards, weights.expand(len(rewards), -1), transform)
        return Mixed(rewards, weights[0], coefficients(weights, transform)[0], scores)

    def save(self, folder: Path) -> None:
        """Write a folder that `AutoModelForSequenceClassification` loads, the gate beside it."""
        save_reward_model(self.reward, folder)
        self.gate.save(folder / GATE)
        rows = [
            {"name": own.name, "start": own.scale.start, "width": own.scale.width,
             "penalty": own.penalty}
            for own in self.aspects.each
        ]  # fmt: skip
        said = {"kind": KIND, "verbosity": self.aspects.verbosity, "objectives": rows}
        (folder / KIND_FILE).write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def load_aspect_model(options: ModelOptions) -> AspectModel:
    """Load what `AspectModel.save` wrote.

    Raises:
        FileNotFoundError: there is no such folder, or it has no gate.
        ValueError: its parts are not of one model.
    """
    folder = Path(folder_of(options.model))
    aspects = _read_aspects(folder / KIND_FILE)
    reward = load_reward_model(options, trainable=False, labels=aspects.names)
    gate = AspectGate.load(folder / GATE)
    wanted = (reward.core.score.in_features, len(aspects.each))
    if reward.is_fresh or (gate.options.features, gate.options.aspects) != wanted:
        raise ValueError(
            f"{folder}: a head and a gate of {len(aspects.each)} objectives are needed, as"
            f" {KIND_FILE} names; found others; the folder's parts are not of one model"
        )
    return AspectModel(reward, gate.to(reward.core.device), aspects)


def set_head(model: RewardModel, weights: Float[Tensor, "m d"], names: Sequence[str]) -> None:
    """Give a reward model the head of a regression, a row for each name."""
    head = nn.Linear(weights.shape[1], weights.shape[0], bias=False, device=model.core.device)
    head.requires_grad_(False)
    head.weight.copy_(weights)
    model.core.score = head
    model.core.num_labels = len(names)
    model.core.config.id2label = dict(enumerate(names))
    model.core.config.label2id = {name: i for i, name in enumerate(names)}


def opening_length(chat: ChatFormat) -> int:
    """Return how many tokens stand between what the user says last and the answer.

    The first of them, that which ends the user's turn, is where a prompt's features are read (the
    paper's released code looks for these tokens in the conversation, where an answer could spell
    them, too). They are the end that all prompts share. Where a template writes none, as in plain
    text, it is the prompt's last token.
    """
    rows = [chat.prompt_tokens((Turn("user", text),))[::-1] for text in ("a", "1", "?")]
    shared = 0
    while all(len(row) > shared + 1 and row[shared] == rows[0][shared] for row in rows):
        shared += 1
    return max(shared, 1)


def features_of(
    model: RewardModel,
    groups: Sequence[Sequence[Prompted]],
    *,
    opening: int,
    max_tokens: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> list[Features]:
    """Return the features of each group's answers to one prompt, on the CPU in float32.

    Where the prompt was cut for the sake of a long answer, the longest that is left is read.

    Args:
        model: the frozen model; its head is not asked.
        groups: none empty; those of like length are computed together, a prompt once a group, or
            as often as it takes to stay within the tokens.
        opening: tokens between what the user says last and the answer.
        max_tokens: computed at once; one answer alone may exceed them.
        on_progress: told how many groups have been begun.
    """
    owners, parts = divided(groups, max_tokens)
    found: dict[int, Features] = {}
    for part in portions(parts, max_tokens):
        forest = filled(plant([answer for i in part for answer in parts[i]]), max_tokens)
        first, places = 0, []
        for i in part:
            longest = max(range(len(parts[i])), key=lambda k: parts[i][k].n_prompt)
            place = parts[i][longest].n_prompt - opening
            if place < 0:
                raise ValueError(f"a prompt's end, {opening} tokens, was cut off; raise max_length")
            places.append(forest.rows(first + longest)[place])
            first += len(parts[i])
        rows = torch.cat([forest.last, torch.stack(places)])
        with model.evaluating():
            hidden = model.hidden(forest, rows).float().cpu()
        answers = hidden[:first].split([len(parts[i]) for i in part])
        for i, own, prompt in zip(part, answers, hidden[first:], strict=True):
            found[i] = Features(own, prompt)
        on_progress(len({owners[i] for i in found}))
    whole: list[list[int]] = [[] for _ in groups]
    for place, i in enumerate(owners):
        whole[i].append(place)
    return [_joined([(parts[place], found[place]) for place in own]) for own in whole]


def _joined(parts: Sequence[tuple[Sequence[Prompted], Features]]) -> Features:
    """Put the parts of a group together, with the features of the longest prompt."""
    _, most = max(parts, key=lambda part: max(one.n_prompt for one in part[0]))
    return Features(torch.cat([own.answers for _, own in parts]), most.prompt)


def _read_aspects(path: Path) -> Aspects:
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        each = tuple(
            Aspect(str(row["name"]), Scale(_finite(row, "start"), _finite(row, "width")),
                   _finite(row, "penalty"))
            for row in said["objectives"]
        )  # fmt: skip
        verbosity = said["verbosity"]
        if not each or (verbosity is not None and (
            type(verbosity) is not int or not 0 <= verbosity < len(each)  # bool is an int, too
        )):  # fmt: skip
            raise ValueError(f"verbosity {verbosity} of {len(each)} objectives")
        if flat := [one.name for one in each if one.scale.width <= 0]:
            raise ValueError(f"a width that is not above 0 of {', '.join(flat)}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path}: needs 'objectives', each with 'name', 'start', 'width' and 'penalty', and"
            f" 'verbosity'; found {error!r}"
        ) from error
    return Aspects(each, verbosity)


def _finite(row: Mapping[str, Any], name: str) -> float:
    value = float(row[name])
    if not math.isfinite(value):
        raise ValueError(f"{name} {value} of {row['name']}")
    return value
