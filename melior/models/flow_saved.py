"""A flow network as a folder: weights, how it was built, and the outcomes that it has seen."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from melior.data.flow import FlowEnvironment
from melior.models.flow import FlowModel, start_flow_model
from melior.models.parts import OPTIONS, WEIGHTS, read_options

KIND, ONE_REWARD = "outcome-conditioned flows", "flows of one reward"
OUTCOMES = "outcomes"
"""Beside the weights: what was built while it learned."""


@dataclass(frozen=True)
class Saved:
    """What a folder holds."""

    model: FlowModel
    outcomes: Int[Tensor, "y d"]
    """Whose flows it has learned."""


def save_flows(
    folder: Path,
    model: FlowModel,
    outcomes: Int[Tensor, "y d"],
    *,
    about: Mapping[str, Any],
    kind: str = KIND,
) -> None:
    """Write a network; `about` says of what environment and size it is."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({**model.state_dict(), OUTCOMES: outcomes.contiguous()}, folder / WEIGHTS)
    said = json.dumps({"kind": kind, **about}, indent=1) + "\n"
    (folder / OPTIONS).write_text(said, encoding="utf-8")


def read_about(folder: Path) -> dict[str, Any]:
    """Return what was written of a network; needs no weights.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: it holds something else.
    """
    about = read_options(folder, KIND, command="melior ocgfn pretrain")
    if missing := {"env", "width", "depth"} - about.keys():
        held = ", ".join(about) or "nothing"
        raise ValueError(f"{folder / OPTIONS}: {min(missing)!r} is needed; found {held}")
    return about


def load_flows(folder: Path, env: FlowEnvironment, *, width: int, depth: int) -> Saved:
    """Read a network of an environment.

    Raises:
        ValueError: the weights are damaged, or of another environment.
    """
    model = start_flow_model(env, seed=0, is_conditioned=True, width=width, depth=depth)
    try:
        state = load_file(folder / WEIGHTS)
        outcomes = state.pop(OUTCOMES)
        model.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{folder}: weights of this environment's flows are needed; found that {reason}"
        ) from error
    return Saved(model.requires_grad_(False), outcomes)
