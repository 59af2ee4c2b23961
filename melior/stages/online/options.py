"""Options that all recipes of several rounds share, checked when built; no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from melior.checks import in_range
from melior.options import LoopOptions, Sampling

Select = Literal["best-and-worst", "best-and-random", "best-and-second", "random", "all"]
"""Which answers of a prompt are learned from; `all` is for objectives of whole lists."""


@dataclass(frozen=True)
class PromptOptions:
    """What is asked: new prompts in each round, and the same held-out ones after each."""

    prompts: Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--data"])]
    """Files with a `prompt` in each row; each `name[:split[:rows]][*weight]`."""
    eval_prompts: tuple[str, ...] = ()
    """Held-out prompts, answered after each round; without, some of the prompts are set apart."""
    rounds: int = 3
    n_prompts: int = 0
    """New prompts in each round: no prompt is drawn twice. 0 divides all there are."""
    n_eval_prompts: int = 100
    """Held-out prompts, at most."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("rounds", self.rounds, 1)
        in_range("n_prompts", self.n_prompts, 0)
        in_range("n_eval_prompts", self.n_eval_prompts, 2)
        if "-" in (*self.prompts, *self.eval_prompts):
            raise ValueError("prompts must lie in files, as they are read again; found - (stdin)")


@dataclass(frozen=True)
class ProposalOptions:
    """How answers are drawn from the model that is being trained."""

    k: Annotated[int, tyro.conf.arg(aliases=["--num-generations"])] = 8
    """Answers to each prompt, the same number at each temperature."""
    temperatures: tuple[float, ...] = (1.0, 0.7)
    top_p: float = 1.0
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=["--max-completion-length"])] = 256

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("k", self.k, 2)
        in_range("top_p", self.top_p, 0, 1, above=True)
        in_range("max_new_tokens", self.max_new_tokens, 1)
        for temperature in self.temperatures:
            in_range("temperatures", temperature, 0, above=True)
        if not self.temperatures:
            raise ValueError("temperatures: at least one is needed; found none")
        if self.k % len(self.temperatures):
            raise ValueError(
                f"k must be a multiple of the {len(self.temperatures)} temperatures, which share"
                f" the answers evenly; found {self.k}"
            )

    def samplings(self) -> list[Sampling]:
        """Return how each temperature's share is drawn."""
        return [
            Sampling(
                k=self.k // len(self.temperatures), temperature=temperature, top_p=self.top_p,
                max_new_tokens=self.max_new_tokens,
            )
            for temperature in self.temperatures
        ]  # fmt: skip


@dataclass(frozen=True)
class ChoiceOptions:
    """Which answers are learned from."""

    select: Select = "best-and-worst"
    """`random` takes two drawn at hazard, the better one first; `all` every scored answer, for
    objectives of lists."""
    length_penalty: float = 0.0
    """Taken off an answer's score for each of its characters, before answers are ranked."""
    min_margin: float = 1e-3
    """Scores closer than this are a tie, and teach nothing."""
    drop_unfinished: bool = False
    """Leave out answers that were cut at max_new_tokens."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("length_penalty", self.length_penalty, 0)
        in_range("min_margin", self.min_margin, 0)


@dataclass(frozen=True)
class RoundOptions:
    """Where each round begins, what it is held to, and who judges it."""

    scorer: Annotated[str, tyro.conf.arg(aliases=["--with"])] = "rules"
    """What ranks the answers, as in `melior score --with`; it is loaded once for all rounds."""
    judge_with: str = ""
    """Another scorer, which nothing is learned from: it tells whether what rises is real."""
    reference: Literal["start", "previous"] = "start"
    """What losses are relative to: the start model in all rounds, or the round's own start."""
    history: Literal["new", "all"] = "new"
    """Learn from the round's own pairs, or from those of all rounds so far."""
    warm_start: bool = True
    """Begin a round at the last one's model; else all begin at the start model."""
    keep: Literal["best", "last"] = "best"
    """Which round's model the run ends with: that with the best held-out score, the start model
    among them, or the last."""
    stop_on_overoptimisation: bool = False
    """Stop where the scorer's rewards rise while the held-out scorer's fall for certain, in place
    of a warning."""
    max_length: int = 1024
    """Tokens of prompt and answer together; prompts without room for an answer are left out."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("max_length", self.max_length, 2)
        if self.stop_on_overoptimisation and not self.judge_with:
            raise ValueError("stop_on_overoptimisation needs a held-out scorer; give --judge-with")


@dataclass(frozen=True)
class RoundLoop(LoopOptions):
    """How long each round learns, and what it leaves behind."""

    epochs: Annotated[float, tyro.conf.arg(aliases=["--num-train-epochs"])] = 2.0
    """Over each round's own choice, or over all so far."""
    batch_size: int = 128
    """Examples per optimizer step, however many portions they are computed in."""


@dataclass(frozen=True)
class ServingOptions:
    """A server that answers in place of the model here, told of each round's new weights."""

    server: str = ""
    """An OpenAI-compatible server, such as http://localhost:8000."""
    server_model: str = ""
    """The model's name there; empty where it serves one only."""
    refresh_command: str = ""
    """Run before each round so that the server serves the new weights; `{folder}` in it is their
    folder. It must end when they are served."""
    stale_tolerance: float = 0.1
    """Nats a token that the server's log-probabilities may be off those of the weights here."""
    server_key_env: str = ""
    """Environment variable that holds the server's key."""

    def __post_init__(self) -> None:
        """Check the ranges, and that there is a key and something to refresh."""
        in_range("stale_tolerance", self.stale_tolerance, 0, above=True)
        if self.server and "{folder}" not in self.refresh_command:
            raise ValueError(
                "refresh_command must hold {folder}, so that the server gets the new weights;"
                f" found {self.refresh_command!r}"
            )
        if self.server_key_env and not os.environ.get(self.server_key_env):
            raise ValueError(
                f"--server-key-env: {self.server_key_env} must hold the server's key; found nothing"
            )
