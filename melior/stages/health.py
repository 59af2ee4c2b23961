"""What a run on comparisons is held against while it goes on, and what its end says of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from melior.data.batches import TokenGroup, TokenValues, ends
from melior.data.lint import Finding as Lint
from melior.models.generation import Completion
from melior.records import Facts
from melior.stages.judge import held_out_answers
from melior.stages.method import Method
from melior.training.final_symptoms import answer_lengths, over_budget, repeated_rows
from melior.training.health import Finding, Health
from melior.training.run import Run, read_rows
from melior.training.symptoms import Setting, detectors

FEW = 64
"""Rows that show whether a loss begins at one number."""


def watch(run: Run, setting: Setting, *, is_resumed: bool) -> Health:
    """Watch a run from here on, with what it has left so far."""
    past = read_rows(run.folder) if is_resumed else []
    return Health(
        run.folder, detectors(setting), total_steps=setting.total_steps, note=run.note, past=past
    )


@torch.no_grad()
def start_loss(method: Method, groups: Sequence[TokenGroup]) -> float | None:
    """Return the loss of a model that is its own reference, where that is one number: log 2.

    None without a reference, where rows differ in it or weigh differently, and where the loss has
    a further term, reads more than log-probabilities, or is of a whole batch.
    """
    few = groups[:FEW]
    is_more = method.sft_weight or method.is_coupled or method.extras or method.memory
    if not method.has_reference or is_more or any(group.weight != 1 for group in groups):
        return None
    nothing = TokenValues.zeros(few)
    losses = method.loss(held_out_answers(few, nothing, nothing))
    return float(losses.mean()) if float(losses.max() - losses.min()) < 1e-6 else None


def of_data(findings: Sequence[Lint], epochs: float) -> Finding | None:
    """Return what the data check says that the loss will show."""
    share = next((one.share for one in findings if one.code == "duplicates"), 0.0)
    return repeated_rows(share, epochs)


def of_answers(
    before: Sequence[Completion],
    after: Sequence[Completion],
    groups: Sequence[TokenGroup],
    facts: Facts,
    *,
    kl_budget: float,
    options: frozenset[str],
) -> list[Finding | None]:
    """Return what the answers sampled at the end say: their length, and how far they went."""
    if not after:
        return []
    best = [(group.answers, ends(group.scores)[0]) for group in groups]
    chosen = [answers[place].n_scored for answers, place in best if place >= 0]
    old, new = ([len(answer.tokens) for answer in side] for side in (before, after))
    moved, error = facts["KL to the start, nats per answer"], facts["its standard error"]
    return [answer_lengths(old, new, chosen), over_budget(moved, error, kl_budget, options)]
