"""The best step of a run on held-out data: kept while it trains, gone back to when it is over."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from melior.training.checkpoint import Checkpoint, State, save
from melior.training.loop import Step


class Weights:
    """The weights of a step without what its optimizer remembers."""

    def __init__(self, step: Step[Any]) -> None:
        self._step = step

    def state(self) -> State:
        """Return the weights, and how many steps they have seen."""
        kept = self._step.state().items()
        return {key: value for key, value in kept if key == "steps" or key.startswith("weight/")}

    def load_state(self, state: State) -> None:
        """Put weights into the model."""
        self._step.load_state(state)


class Best:
    """Which step has been judged best, and for how long none has been better.

    Args:
        folder: where the weights of the best step are kept.
        patience: judgements in a row without a better one, after which going on is in vain; 0 is
            without end.
    """

    def __init__(self, folder: Path, patience: int) -> None:
        self.folder = folder
        self.patience = patience
        self.step = 0
        self.loss = math.inf
        self.since = 0
        """Judgements since the best one."""

    @property
    def is_over(self) -> bool:
        """Whether going on has been in vain for long enough."""
        return 0 < self.patience <= self.since

    def note(self, step: int, loss: float, weights: Weights) -> None:
        """Take a judgement in; the best one's weights are kept."""
        if loss >= self.loss:
            self.since += 1
            return
        self.step, self.loss, self.since = step, loss, 0
        # The one before stays, too: it is the best of a run that goes on from before this step.
        save(self.folder, step, {"weights": weights}, about={}, keep=2)

    def restore(self, weights: Weights) -> None:
        """Go back to the best weights."""
        place = self.folder / f"step-{self.step:06d}"
        Checkpoint(place, self.step, {}).load({"weights": weights})

    def state(self) -> State:
        """Return what the next judgement is held against."""
        return {"step": self.step, "loss": self.loss, "since": self.since}

    def load_state(self, state: State) -> None:
        """Go back to a state."""
        self.step, self.since = int(state["step"]), int(state["since"])
        self.loss = float(state["loss"])
