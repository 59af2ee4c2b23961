"""What a method carries from one optimizer batch to the next."""

from __future__ import annotations

import torch
from torch import Tensor

from melior.training.checkpoint import State


class Memory:
    """Named numbers and a generator, which a checkpoint keeps; the run seeds it."""

    def __init__(self, **values: float) -> None:
        self.values = {name: torch.tensor(v, dtype=torch.float64) for name, v in values.items()}
        self.generator = torch.Generator()

    def state(self) -> State:
        """Return the numbers and the generator's place."""
        return {**self.values, "generator": self.generator.get_state()}

    def load_state(self, state: State) -> None:
        """Go back to a state."""
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        self.generator.set_state(tensors.pop("generator"))
        self.values = tensors
