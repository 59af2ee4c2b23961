"""A language model's internal reward models: what it says as a judge, and what its training says.

Zhou et al. 2025, arXiv 2502.08922 (SCIR), names the generative judge and the implicit reward of
DPO. Both are read off one pass over one forest, with gradient: a pair's two answers, and the
question which of them is better in both orders, whose replies are not sampled but their
probabilities taken. The judge's words and labels are ours.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior.data.batches import GroupBatch, TokenGroup, Tokens
from melior.data.chat import ChatFormat
from melior.losses.consistency import family_shares
from melior.losses.pairwise import both_orders, letter_cross_entropy
from melior.models.language import LanguageModel
from melior.records import Turn, Turns
from melior.rewards.judge_prompts import RULES, Wording
from melior.types import Pairwise

WORDING = Wording(
    "self-judge",
    labels=("1", "2"),
    parts=("REQUEST", "REPLY 1", "REPLY 2"),
    before="You compare two replies to the same request. " + RULES,
    after="""\
Which reply is better: relevant, correct, complete, clear? Neither its length nor its place is a \
merit. Answer with 1 or 2 only.""",
)
NAMES = ("judge", "implicit")
SHARES = family_shares(NAMES)
ANSWERS = 2
"""Of the sequences of a group, those before its questions."""
UNDECIDED = 1e-3
"""Nats between the log-ratios of two answers below which the implicit reward has no vote."""


class SelfJudge:
    """How a pair becomes two questions to the model that wrote it.

    Args:
        chat: of the model.

    Raises:
        ValueError: it has no chat template, or a label is not one token behind it.
    """

    def __init__(self, chat: ChatFormat) -> None:
        if chat.name == "plain":
            raise ValueError(
                "a model that judges itself needs a chat template, so that an answer cannot end its"
                " turn; found none; give --chat-template chatml or a file, or take an instruct"
                " model"
            )
        self.chat = chat
        self.lead, self.labels = _label_tokens(chat)
        """What stands before the label, and the tokens of both labels."""

    def questions(self, prompts: Sequence[Turns], answers: Sequence[Sequence[Turns]]) -> list[
        tuple[Tokens, Tokens]
    ]:  # fmt: skip
        """Return each pair's question with the first answer in front, and the other way round."""
        texts = [
            WORDING.ask(prompt, *order)
            for prompt, both in zip(prompts, answers, strict=True)
            for order in (both, both[::-1])
        ]
        asked = [(Turn("user", text),) for text in texts]
        said = [(Turn("assistant", WORDING.labels[0]),)] * len(asked)
        rows = iter([
            _unscored(row.tokens[: row.n_prompt + len(self.lead)])
            for row in self.chat.encode_many(asked, said)
        ])  # fmt: skip
        return list(zip(rows, rows, strict=True))


def with_questions(
    group: TokenGroup, questions: tuple[Tokens, Tokens], *, is_exchanged: bool = False
) -> TokenGroup:
    """Return a pair with the questions about it as two more sequences, none of them scored.

    Args:
        group: the pair.
        questions: about it, in both orders.
        is_exchanged: put the second answer, and its question, first, and forget which is better.
    """
    answers, asked = group.answers, questions
    if is_exchanged:
        answers, asked = answers[::-1], asked[::-1]
    return replace(group, answers=(*answers, *asked), scores=(*group.scores, *(0.0,) * len(asked)))


@dataclass(frozen=True)
class Seen:
    """What a model and its start say of `n` pairs."""

    policy: Pairwise
    """Log-probabilities of both answers, ..."""
    reference: Pairwise
    """... those under the start model, ..."""
    lengths: Pairwise
    """... and their scored tokens."""
    labels: Float[Tensor, "n 2 2"]
    """Log-probabilities of both labels, in both orders."""

    @property
    def orders(self) -> Float[Tensor, "n 2"]:
        """Logits that the first answer wins, where it stands in front and where it does not."""
        odds = self.labels[..., 0] - self.labels[..., 1]
        return torch.stack([odds[:, 0], -odds[:, 1]], -1)

    @property
    def judge(self) -> Float[Tensor, " n"]:
        """The judge's probability that the first answer wins: the mean of both orders."""
        return both_orders(*self.orders.unbind(-1)).sigmoid()

    def log_ratio(self, kind: str) -> Pairwise:
        """Return log-ratios to the start model, summed over tokens or averaged."""
        ratio = [
            getattr(self.policy, side) - getattr(self.reference, side).detach()
            for side in ("chosen", "rejected")
        ]
        if kind == "sum":
            return Pairwise(*ratio)
        lengths = (self.lengths.chosen, self.lengths.rejected)
        return Pairwise(*(r / n.clamp(min=1) for r, n in zip(ratio, lengths, strict=True)))

    def wins(self, *, beta: float, implicit: str) -> Float[Tensor, "m n"]:
        """Return both probabilities that the first answer wins, in the order of `NAMES`."""
        margin = self.log_ratio(implicit).margin
        return torch.stack([self.judge.to(margin), (beta * margin).sigmoid()])

    def votes(self, *, beta: float, implicit: str) -> Float[Tensor, "m n"]:
        """Return the same without gradient; nan where the implicit reward has not moved yet."""
        found = self.wins(beta=beta, implicit=implicit).detach().clone()
        found[1, self.log_ratio(implicit).margin.detach().abs() < UNDECIDED] = torch.nan
        return found

    def judged_right(self) -> Float[Tensor, " n"]:
        """Cross-entropy of the judge whose first answer is better, the mean of both orders."""
        ones = torch.ones_like(self.labels[:, 0, 0])
        front = letter_cross_entropy(self.labels[:, 0], ones)
        return (front + letter_cross_entropy(self.labels[:, 1], 0 * ones)) / 2


def read(model: LanguageModel, batch: GroupBatch, labels: tuple[int, int]) -> Seen:
    """Run the model once over pairs with their questions.

    Args:
        model: whom to read.
        batch: of groups as `with_questions` makes them.
        labels: the tokens of both labels.
    """
    forest, device = batch.forest, model.device
    answers, asked = batch.members[:, :ANSWERS], batch.members[:, ANSWERS:]
    rows = torch.cat([forest.before, forest.last[asked.flatten()]])
    hidden = model.hidden(forest, rows)
    tokens = model.output.log_probs(hidden[: len(forest.before)], forest.targets.to(device))
    ends = hidden[len(forest.before) :].repeat_interleave(len(labels), 0)
    wanted = torch.tensor(labels, device=device).repeat(asked.numel())
    said = model.output.log_probs(ends, wanted).view(*asked.shape, len(labels))
    reference = _sums(batch.reference.to(device), forest.owners.to(device), forest.n)
    counts = _sums(torch.ones_like(batch.reference).to(device), forest.owners.to(device), forest.n)
    sums = forest.totals(tokens)
    policy, start, lengths = (_sides(own, answers.to(device)) for own in (sums, reference, counts))
    return Seen(policy, start, lengths, said.to(sums))


def join(parts: Sequence[Seen]) -> Seen:
    """Put what was seen of several portions together, in their order."""

    def joined(name: str) -> Pairwise:
        own = [getattr(part, name) for part in parts]
        sides = ([getattr(one, side) for one in own] for side in ("chosen", "rejected"))
        return Pairwise(*map(torch.cat, sides))

    labels = torch.cat([part.labels for part in parts])
    return Seen(joined("policy"), joined("reference"), joined("lengths"), labels)


def _sides(values: Float[Tensor, " s"], answers: Int[Tensor, "n 2"]) -> Pairwise:
    return Pairwise(values[answers[:, 0]], values[answers[:, 1]])


def _sums(values: Float[Tensor, " m"], owners: Int[Tensor, " m"], n: int) -> Float[Tensor, " n"]:
    wide = values if values.device.type == "mps" else values.double()
    return wide.new_zeros(n).index_add(0, owners, wide)


def _unscored(tokens: Sequence[int]) -> Tokens:
    return Tokens(array("i", tokens), bytes(len(tokens)), len(tokens))


def _label_tokens(chat: ChatFormat) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Return what the chat template writes before the label, and the token that each label is."""
    probe = (Turn("user", WORDING.after),)
    first, second = (
        row.tokens[row.n_prompt :]
        for row in chat.encode_many(
            [probe] * 2, [(Turn("assistant", label),) for label in WORDING.labels]
        )
    )
    pairs = zip(first, second, strict=False)
    lead = tuple(one for one, _ in takewhile(lambda own: own[0] == own[1], pairs))
    at = len(lead)
    if len(first) != len(second) or at == len(first) or first[at + 1 :] != second[at + 1 :]:
        names = [chat.tokenizer.convert_ids_to_tokens(list(own)) for own in (first, second)]
        raise ValueError(
            f"a judge needs {' and '.join(map(repr, WORDING.labels))} as one token each behind its"
            f" chat template; found {names[0]} and {names[1]}"
        )
    return lead, (first[at], second[at])
