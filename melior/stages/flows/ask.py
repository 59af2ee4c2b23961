"""Asking a pre-trained network for outcomes by name: whether they can be built, and how often."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from melior import ops
from melior.data.flow import FlowEnvironment
from melior.models.flow_saved import load_flows, read_about
from melior.sampling.flow import evenly, sample_back
from melior.stages.flows.named import load_environment
from melior.stages.flows.options import FlowOptions
from melior.stages.flows.pretrain import attempt


@dataclass(frozen=True)
class Asked:
    """One outcome, and what was built when it was asked for."""

    outcome: list[int]
    built: list[list[int]]
    was_seen: bool
    """Whether it was built while the network learned."""

    @property
    def success(self) -> float:
        """Return the share of tries that built it."""
        return sum(one == self.outcome for one in self.built) / len(self.built)

    def to_json(self) -> dict[str, Any]:
        """Return it as a line of a file."""
        return {"outcome": self.outcome, "success": self.success, "built": self.built}


def ask(model: str, outcomes: Sequence[str], *, n: int, seed: int) -> Iterator[Asked]:
    """Try to build each of some outcomes `n` times.

    Raises:
        ValueError: one is no list of numbers, or cannot be built.
    """
    folder = Path(model)
    about = read_about(folder)
    env = load_environment(FlowOptions(**about["env"]))
    wanted = [_numbers(outcome, len(env.start)) for outcome in outcomes]
    refuse_unbuildable(env, torch.tensor(wanted))
    saved = load_flows(folder, env, width=int(about["width"]), depth=int(about["depth"]))
    seen, generator = {tuple(row) for row in saved.outcomes.tolist()}, ops.generator(seed)
    for own in wanted:
        tried = attempt(env, saved.model, torch.tensor([own] * n), generator=generator)
        yield Asked(own, tried.objects.tolist(), tuple(own) in seen)


def refuse_unbuildable(env: FlowEnvironment, outcomes: Int[Tensor, "n d"]) -> None:
    """Check that a way leads from the start to each outcome, by taking them apart.

    Raises:
        ValueError: naming the first to which none does.
    """
    for outcome in outcomes:
        if not _is_buildable(env, outcome[None]):
            raise ValueError(
                f"outcome {','.join(map(str, outcome.tolist()))}: one that can be built is needed;"
                " found that no way leads there from the start, or that nothing stops there"
            )


def _is_buildable(env: FlowEnvironment, outcome: Int[Tensor, "1 d"]) -> bool:
    try:
        path = sample_back(env, outcome, evenly(env.undoable), generator=ops.generator(0))
    except ValueError:  # it is further from the start than anything that is built
        return False
    is_on_the_way = _allowed(env, path.states, path.actions) | ~path.is_step
    return bool((path.states[:, 0] == env.start).all() and is_on_the_way.all())


def _allowed(env: FlowEnvironment, states: Tensor, actions: Tensor) -> Tensor:
    mask = env.allowed(states.flatten(0, 1)).view(*actions.shape, -1)
    return mask.gather(-1, actions.clamp(min=0)[..., None])[..., 0]


def _numbers(outcome: str, width: int) -> list[int]:
    words = outcome.replace(",", " ").split()
    if len(words) != width or not all(word.lstrip("-").isdecimal() for word in words):
        raise ValueError(
            f"outcome {outcome!r}: {width} whole numbers are needed, such as"
            f" {','.join(['1'] * width)}; found {len(words)} words"
        )
    return [int(word) for word in words]
