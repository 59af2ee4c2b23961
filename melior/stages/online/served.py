"""Answers from a server in place of the model here: its weights renewed, and proof that they are.

A server that still has the weights of the round before gives answers of another model, and nothing
in them shows it. So each round asks for some answers with their log-probabilities first, and holds
those against the weights that were just trained, and against the ones before.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from tempfile import TemporaryFile

import torch

from melior.data.batches import TokenGroup, Tokens
from melior.models.endpoint import Server
from melior.models.language import LanguageModel
from melior.models.likelihood import token_log_probs
from melior.models.loading import folder_of, load
from melior.options import ModelOptions, Sampling
from melior.records import Group
from melior.sampling.server import server_candidates
from melior.stages.online.options import ServingOptions
from melior.training.run import write_json

PROOF = "proof.json"
"""In a round's folder: what was found before its answers were drawn."""
ASKED, LENGTH, FEWEST = 16, 32, 4
"""Answers that the proof asks for, their tokens, and how many of them must be comparable."""
ALIKE = 0.8
"""Cosine above which the server's deviations point to the last weights: of 16 that point anywhere
it is beyond three standard deviations."""


@dataclass(frozen=True)
class Proof:
    """How the server's log-probabilities of its own answers compare with those of weights here."""

    answers: int
    """That could be compared: tokens of others are not those that their text is read as."""
    off: float
    """Mean distance from the new weights' log-probabilities, in nats a token."""
    off_last: float
    """The same from the weights before; 0 where there are none."""
    likeness: float
    """Cosine of the server's deviations from the new weights with those of the last weights."""
    tolerance: float

    @property
    def is_fresh(self) -> bool:
        """Say whether the server has the new weights."""
        is_last = self.likeness > ALIKE and self.off_last < self.off
        return self.off <= self.tolerance and not is_last


def server_of(serving: ServingOptions) -> Server:
    """Return the server that the options name."""
    key = os.environ[serving.server_key_env] if serving.server_key_env else ""
    return Server(serving.server, serving.server_model, api_key=key)


def refresh(serving: ServingOptions, policy: ModelOptions) -> None:
    """Let the server load the weights of a folder.

    Raises:
        ValueError: the command fails.
    """
    place = folder_of(policy.model)
    folder = str(place.resolve()) if isinstance(place, Path) else place
    command = serving.refresh_command.replace("{folder}", quote(folder))
    # Into a file: a pipe would stay open as long as a server that the command leaves behind.
    with TemporaryFile() as output:
        done = subprocess.run(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output, check=False
        )
        output.seek(0)
        said = output.read().decode(errors="replace").strip().splitlines()
    if done.returncode:
        raise ValueError(
            f"refresh_command: must end with 0 once the server has the new weights; {command!r}"
            f" ended with {done.returncode}: {said[-1] if said else 'without a word'}"
        )


def prove(
    here: Path,
    server: Server,
    prompts: Sequence[Group],
    policies: Sequence[ModelOptions],
    *,
    tolerance: float,
    seed: int,
) -> Proof:
    """Hold the server's answers against the weights here, and write down what was found.

    Args:
        here: the round's folder.
        server: what is asked, at temperature 1, where its log-probabilities are the model's.
        prompts: of the round.
        policies: the weights that it had the round before, if any, and those that it should have.
        tolerance: nats a token that it may be off, as programs and dtypes round differently.
        seed: of the answers.

    Raises:
        ValueError: the server has other weights, or does not say log-probabilities.
    """
    drawn = _drawn(server, prompts, seed)
    *others, policy = policies
    new = _known(load(policy, trainable=False), drawn)
    old = _known(load(others[0], trainable=False), drawn) if others else new
    comparable = [place for place, value in enumerate(new) if value is not None]
    if len(comparable) < FEWEST:
        raise ValueError(
            f"{server.url}: {FEWEST} answers or more are needed whose tokens are known, to see"
            f" whose weights the server has; found {len(comparable)} of {len(drawn)}"
        )
    facts = [drawn[place].candidates[0].facts for place in comparable]
    tokens = torch.tensor([float(one["n_tokens"]) for one in facts])
    said = torch.tensor([float(one["log_prob"]) for one in facts])
    ours, theirs = (torch.tensor([side[i] for i in comparable]) for side in (new, old))
    proof = _proof((said - ours) / tokens, (theirs - ours) / tokens, tolerance)
    write_json(here / PROOF, {**asdict(proof), "is_fresh": proof.is_fresh})
    if not proof.is_fresh:
        raise ValueError(_stale(server, policy, proof))
    return proof


def _drawn(server: Server, prompts: Sequence[Group], seed: int) -> list[Group]:
    """Return answers of the server, with what it says their log-probabilities are.

    Of one without a token it says none.
    """
    sampling = Sampling(k=1, temperature=1.0, max_new_tokens=LENGTH)
    asked = [prompts[i % len(prompts)] for i in range(ASKED)]
    drawn = list(server_candidates(server, asked, sampling, seed=seed))
    if all("log_prob" not in group.candidates[0].facts for group in drawn):
        raise ValueError(
            f"{server.url}: the server must report log-probabilities, without which nothing shows"
            " whose weights it has; found answers without"
        )
    return drawn


def _proof(server: torch.Tensor, last: torch.Tensor, tolerance: float) -> Proof:
    """Compare deviations from the new weights: the server's, and those of the last weights."""
    scale = float(server.norm() * last.norm())
    return Proof(
        answers=len(server),
        off=float(server.abs().mean()),
        off_last=float((server - last).abs().mean()) if scale else 0.0,
        likeness=float(server @ last) / scale if scale else 0.0,
        tolerance=tolerance,
    )


def _known(model: LanguageModel, drawn: Sequence[Group]) -> list[float | None]:
    """Return the log-probability of each answer, None where its text has other tokens."""
    chat = model.chat
    prompts = [group.prompt for group in drawn]
    encoded = chat.encode_many(
        prompts, [group.candidates[0].response for group in drawn],
        origins=[group.origin for group in drawn],
    )  # fmt: skip
    groups = [TokenGroup((Tokens.of(one, slice(None)),), (0.0,)) for one in encoded]
    values = token_log_probs(model, groups, max_tokens=4096).values.double()
    found: list[float | None] = []
    for group, own in zip(
        drawn, values.split([g.answers[0].n_scored for g in groups]), strict=True
    ):
        n = int(group.candidates[0].facts.get("n_tokens", 0))
        # A server counts the end token, or it does not.
        found.append(float(own[:n].sum()) if n and len(own) - 1 <= n <= len(own) else None)
    return found


def _stale(server: Server, policy: ModelOptions, proof: Proof) -> str:
    which = "those of the round before" if proof.likeness > ALIKE else "none that are known here"
    return (
        f"{server.url}: must serve the weights in {policy.model}; found log-probabilities that are"
        f" {proof.off:.3g} nats a token off (at most {proof.tolerance:g} may be), and closest to"
        f" {which}: it has not loaded them; mend --refresh-command, and go on with --resume"
    )
