"""All networks of marginals as a folder: weights, sizes, and what their values stand for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from melior.models.marginal import ConditionalModel, MarginalModel
from melior.models.parts import OPTIONS, WEIGHTS, read_options

KIND = "marginals"


@dataclass(frozen=True)
class Marginals:
    """What says the log-marginal of any part of a row, and what draws the rest of it."""

    marginals: MarginalModel
    conditionals: ConditionalModel
    about: Mapping[str, Any]
    rivals: Mapping[str, ConditionalModel] = field(default_factory=dict)
    """Conditionals that learn alone, from left to right, by name."""

    @property
    def both(self) -> nn.ModuleDict:
        """Both networks as one."""
        return nn.ModuleDict({"marginals": self.marginals, "conditionals": self.conditionals})

    @property
    def whole(self) -> nn.ModuleDict:
        """What is saved."""
        return nn.ModuleDict({**self.both, "rivals": nn.ModuleDict(self.rivals)})

    @property
    def alone(self) -> Marginals:
        """The same without rivals."""
        return Marginals(self.marginals, self.conditionals, {**self.about, "rivals": []})

    @property
    def length(self) -> int:
        """Positions of a row."""
        return self.conditionals.length

    @property
    def n_values(self) -> int:
        """Values of a position."""
        return self.conditionals.n_values


def start_marginals(about: Mapping[str, Any], *, seed: int) -> Marginals:
    """Return fresh networks; `about` holds `length`, `n_values`, `width` and `blocks`.

    Also the names of `rivals`, if there are any.
    """
    shape = int(about["length"]), int(about["n_values"])
    size = {"width": int(about["width"]), "blocks": int(about["blocks"])}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        both = MarginalModel(*shape, **size), ConditionalModel(*shape, **size)
        rivals = {name: ConditionalModel(*shape, **size) for name in about.get("rivals", ())}
        return Marginals(*both, about, rivals)


def save_marginals(folder: Path, found: Marginals) -> None:
    """Write all networks."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(found.whole.state_dict(), folder / WEIGHTS)
    said = json.dumps({"kind": KIND, **found.about}, indent=1, ensure_ascii=False) + "\n"
    (folder / OPTIONS).write_text(said, encoding="utf-8")


def load_marginals(folder: Path) -> Marginals:
    """Read all networks.

    Raises:
        FileNotFoundError: the folder holds none.
        ValueError: it holds something else, or the weights are damaged.
    """
    about = read_options(folder, KIND, command="melior mam")
    try:
        found = start_marginals(about, seed=0)
        found.whole.load_state_dict(load_file(folder / WEIGHTS))
    except (OSError, SafetensorError, RuntimeError, LookupError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{folder}: its weights and {OPTIONS} are needed whole; found {reason}"
        ) from error
    found.whole.requires_grad_(False)
    return found
