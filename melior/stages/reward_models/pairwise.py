"""The kind of reward model that compares: both answers are read at once, and a letter is said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from melior.data.batches import GroupBatch, TokenGroup
from melior.data.chat import ChatFormat, Encoded
from melior.data.duels import Duels
from melior.data.examples import Example
from melior.data.pairwise import Comparisons
from melior.losses.pairwise import both_orders, letter_cross_entropy
from melior.models.loading import load_chat
from melior.models.pairwise import PairwiseModel, load_pairwise_model, save_pairwise_model
from melior.ops import generator
from melior.records import Turns
from melior.stages.reward_models.kinds import Judged, Kind

LETTERS = 2
"""Sequences of each order: with the letter of the one answer, and with that of the other."""


def pairwise(*, max_length: int, keeps_end: bool) -> Kind[PairwiseModel]:
    """Return the kind that names the better answer by a letter, as in RLHF Workflow.

    Args:
        max_length: tokens of prompt, both answers and the letter.
        keeps_end: what is longer loses the start of its prompt, where that is enough.
    """
    questions = Questions(max_length - 1 if keeps_end else 2**31)
    return Kind(
        lambda options, seed: load_pairwise_model(options, trainable=True, seed=seed),
        lambda model: model.is_fresh,
        judged,
        save_pairwise_model,
        chat=load_chat,
        data="comparisons",
        encode=questions.encode,
        learned=one_order,
        notes=questions.notes,
    )


@dataclass
class Questions:
    """Pairs as questions, each in both orders with both letters, and what was met on the way."""

    max_length: int
    """What is longer loses the start of its prompt, where that is enough."""
    formats: dict[str, Comparisons] = field(default_factory=dict)
    """By the hash of the chat format; they count."""

    def encode(self, chat: ChatFormat, examples: Sequence[Example]) -> list[list[Encoded]]:
        """Return four sequences of each pair, as `Comparisons.with_letters` orders them."""
        comparisons = self.formats.setdefault(chat.hash, Comparisons(chat))
        answers = [_two(one) for one in examples]
        asked = [(one.prompt, *both) for one, both in zip(examples, answers, strict=True)]
        origins = [one.origin for one in examples]
        orders = comparisons.both_orders(asked, max_length=self.max_length, origins=origins)
        return comparisons.with_letters(orders, answers)

    def notes(self) -> Iterator[str]:
        """Say what was done to pairs."""
        cut = sum(len(one.cut) for one in self.formats.values())
        if cut:
            yield f"{cut} pairs, too long, lost the start of their prompt"
        n_tags = sum(one.n_tags for one in self.formats.values())
        if n_tags:
            yield f"{n_tags} pairs hold the text of one of the template's tags, which is broken up"


def _two(example: Example) -> tuple[Turns, Turns]:
    if len(example.answers) != 2:
        raise ValueError(
            f"{example.origin}: a pairwise model learns from two answers at a time; found"
            f" {len(example.answers)}; make pairs of them with melior select best-and-worst"
        )
    return example.answers


def one_order(groups: Sequence[TokenGroup], seed: int) -> list[TokenGroup]:
    """Return each pair with its chosen answer in a slot drawn at random.

    Dong et al. 2024, arXiv 2405.07863: so no slot is the better one.
    """
    slots = torch.randint(2, (len(groups),), generator=generator(seed)).tolist()
    return [
        replace(
            group,
            answers=group.answers[slot * LETTERS : (slot + 1) * LETTERS],
            scores=group.scores[:LETTERS],
        )
        for group, slot in zip(groups, slots, strict=True)
    ]


def judged(model: PairwiseModel, batch: GroupBatch, pairs: Duels) -> Judged:
    """Return the losses and margins of pairs, of the mean of both orders where both are there."""
    log_probs = model.said(batch.forest)
    members = batch.members[pairs.groups]  # of each order, the better answer's letter and the other
    is_swapped = pairs.better != members[:, 0]
    orders = [
        log_probs[torch.where(is_swapped[:, None], part.flip(-1), part)]
        for part in members.split(LETTERS, dim=-1)
    ]
    share = pairs.shares.to(log_probs)
    losses = torch.stack([letter_cross_entropy(order, share) for order in orders]).mean(0)
    first, last = (order[:, 0] - order[:, 1] for order in (orders[0], orders[-1]))
    mass = torch.cat([order.exp().sum(-1) for order in orders])
    return Judged(
        losses,
        both_orders(first, last),
        {"letters": mass},
        {"verdicts that change with the order": (first * last < 0).to(losses)},
    )
