"""How well a reward model agrees with held-out pairs, before and after, and where it does not."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from melior.data.batches import GroupBatches, TokenGroup, TokenValues
from melior.data.duels import Duels, duels
from melior.data.files import as_group, read_any, turn_rows
from melior.data.portions import portions
from melior.evaluation.compare import compare, compare_by_subset
from melior.evaluation.preferences import correct, length_bias
from melior.ops import generator
from melior.records import Group, Metrics, text
from melior.stages.reward_models.kinds import Judged, Kind, M


@dataclass(frozen=True)
class Judgement:
    """What a reward model says of all `p` pairs within `n` groups, in the order of the groups."""

    pairs: Duels
    judged: Judged
    lengths: Int[Tensor, "p 2"]
    """Tokens of the better answer and of the worse one."""

    @property
    def right(self) -> Float[Tensor, " n"]:
        """Share of each group's decided pairs that are ranked right, ties half."""
        ranked = torch.as_tensor(correct(self.judged.margins))
        return self._sums(self.pairs.decided * ranked)

    @property
    def is_decided(self) -> Bool[Tensor, " n"]:
        """Whether of any of a group's pairs one answer is preferred."""
        return self._sums(self.pairs.decided) > 0

    @property
    def losses(self) -> Float[Tensor, " n"]:
        """Mean of what the model learns by over each group's pairs."""
        return self._sums(self.pairs.each * self.judged.losses)

    @property
    def log_losses(self) -> Float[Tensor, " n"]:
        """Mean of minus the log-likelihood of the labels alone over each group's pairs."""
        margins, share = self.judged.margins, self.pairs.shares
        likely = share * F.logsigmoid(margins) + (1 - share) * F.logsigmoid(-margins)
        return self._sums(-self.pairs.each * likely)

    @property
    def margins(self) -> Float[Tensor, " n"]:
        """Mean of the log-odds of the better answer over each group's pairs."""
        return self._sums(self.pairs.each * self.judged.margins)

    def share(self, name: str) -> Float[Tensor, " n"]:
        """Return in how many of each group's pairs something is the case."""
        return self._sums(self.pairs.each * self.judged.shares[name])

    def _sums(self, values: Float[Tensor, " p"]) -> Float[Tensor, " n"]:
        n = int(self.pairs.groups.max()) + 1
        return torch.zeros(n, dtype=values.dtype).index_add(0, self.pairs.groups, values)


def judgement(
    kind: Kind[M],
    model: M,
    groups: Sequence[TokenGroup],
    *,
    max_tokens: int,
    on_progress: Callable[[int], None] = lambda done: None,
) -> Judgement:
    """Judge held-out groups, at least one, with the model as it is."""
    batches = GroupBatches(
        groups, TokenValues.zeros(groups), batch_size=len(groups), max_tokens=max_tokens, seed=0
    )
    found: list[tuple[Duels, Judged, Int[Tensor, "_ 2"]]] = []
    done = 0
    for part in portions([group.answers for group in groups], max_tokens):
        for batch in batches.portions(part):
            pairs = duels(batch)
            with model.evaluating():
                judged = kind.judged(model, batch, pairs)
            answers = [answer.n_scored for i in part for answer in groups[i].answers]
            sides = torch.stack([pairs.better, pairs.worse], -1)
            found.append((_placed(pairs, part), _kept(judged), torch.tensor(answers)[sides]))
        done += len(part)
        on_progress(done)
    return _in_order(found)


def ranges(seen: Sequence[Mapping[str, Tensor]]) -> Metrics:
    """Return the least, mean and greatest of what was seen in the parts of a whole."""
    found: Metrics = {}
    for name in seen[0] if seen else ():
        values = torch.cat([one[name].detach().flatten().double().cpu() for one in seen])
        ends = {"min": values.min(), "mean": values.mean(), "max": values.max()}
        found |= {f"{end}_{name}": float(value) for end, value in ends.items()}
    return found


def metrics_of(found: Judgement) -> Metrics:
    """Score held-out groups, a reward model of one number under the names of TRL's trainer."""
    right = found.right[found.is_decided]
    return {
        "loss": float(found.losses.mean()),
        **({"accuracy": float(right.mean())} if len(right) else {}),
        "margin": float(found.margins.mean()),
        **ranges([found.judged.seen]),
    }


def verdict(
    before: Judgement, after: Judgement, groups: Sequence[TokenGroup], *, seed: int
) -> dict[str, Any]:
    """Compare held-out groups before and after, as in a run's `evaluation.json`.

    Where all of them are ties nothing can be ranked right, and only losses are compared.
    """
    draw, kept = generator(seed), after.is_decided
    right = before.right[kept], after.right[kept]
    losses = before.log_losses, after.log_losses
    comparisons = []
    if kept.any():
        ranked = compare(*right, name="held-out pairs ranked right", unit="share", generator=draw)
        comparisons.append(ranked)
    comparisons += [
        compare(
            *losses, name="log-loss of held-out pairs", unit="nats",
            higher_is_better=False, generator=draw,
        ),
    ]  # fmt: skip
    comparisons += [
        compare(
            before.share(name), after.share(name), name=name, unit="share",
            higher_is_better=False, generator=draw,
        )
        for name in after.judged.shares
    ]  # fmt: skip
    subsets = [groups[i].subset for i in kept.nonzero().flatten().tolist()]
    apart = []
    if len(set(subsets)) > 1:
        apart = compare_by_subset(*right, subsets, generator=draw, unit="share")
    shown = ("name", "n", "before", "after", "low", "high")
    return {
        "title": "Held-out pairs",
        "comparisons": [one.to_json() for one in comparisons],
        "subsets": [{key: one.to_json()[key] for key in shown} for one in apart],
        "facts": _facts(after),
    }


def shown_groups(
    sources: Sequence[str],
    groups: Sequence[TokenGroup],
    before: Judgement,
    after: Judgement,
    *,
    most: int,
) -> list[dict[str, Any]]:
    """Return the first groups, best answer first, as rows of a run's `samples.jsonl`.

    A row's score is its margin, of more than two answers the mean over their pairs: where it is
    below 0 the reward model contradicts the label.
    """
    places = {group.origin: i for i, group in enumerate(groups[:most])}
    rows = []
    for record in read_any(sources) if places else ():
        place = places.pop(record.origin, None)
        if place is None:
            continue
        rows.append(
            {
                "prompt": turn_rows(record.prompt),
                "after": _said(as_group(record)),
                "score_before": float(before.margins[place]),
                "score_after": float(after.margins[place]),
            }
        )
        if not places:
            break
    return rows


def _said(group: Group) -> str:
    ranked = sorted(group.candidates, key=lambda one: -(one.score or 0.0))
    names = ["chosen", "rejected"]
    if len(ranked) > 2:
        names = [f"scored {candidate.score:g}" for candidate in ranked]
    both = zip(names, ranked, strict=True)
    return "\n\n".join(f"{name}:\n{text(candidate.response)}" for name, candidate in both)


def _facts(found: Judgement) -> dict[str, Any]:
    """Say how margins are spread, and whether only length was learned; nothing of ties alone."""
    kept = found.pairs.decided > 0
    if not kept.any():
        return {}
    margins, lengths = found.judged.margins[kept], found.lengths[kept]
    bias = length_bias(margins, *lengths.T.tolist())
    facts: dict[str, Any] = {
        "mean margin": float(margins.mean()),
        "share of margins below 0": float((margins < 0).double().mean()),
        "90th percentile of the margin's size": float(margins.abs().quantile(0.9)),
    }
    for name, scores in (("shorter", bias.chosen_shorter), ("longer", bias.chosen_longer)):
        if scores:
            facts[f"ranked right where the better answer is {name}"] = scores.accuracy
            facts[f"pairs whose better answer is {name}"] = scores.n
    return facts


def _placed(pairs: Duels, part: Sequence[int]) -> Duels:
    """Return pairs whose groups are those of the whole."""
    return replace(pairs, groups=torch.tensor(part)[pairs.groups])


def _kept(judged: Judged) -> Judged:
    """Return numbers on the CPU in float64."""
    seen, shares = (
        {name: values.double().cpu() for name, values in named.items()}
        for named in (judged.seen, judged.shares)
    )
    return Judged(judged.losses.double().cpu(), judged.margins.double().cpu(), seen, shares)


def _in_order(found: Sequence[tuple[Duels, Judged, Int[Tensor, "_ 2"]]]) -> Judgement:
    """Join parts, the pairs of the first group first."""
    pairs, judged, lengths = zip(*found, strict=True)
    order = torch.cat([own.groups for own in pairs]).argsort(stable=True)

    def joined(parts: Sequence[Any], name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])[order]

    seen = {name: torch.cat([own.seen[name] for own in judged]) for name in judged[0].seen}
    shares = {
        name: torch.cat([own.shares[name] for own in judged])[order] for name in judged[0].shares
    }
    names = [one.name for one in fields(Duels)]
    return Judgement(
        Duels(**{name: joined(pairs, name) for name in names}),
        Judged(joined(judged, "losses"), joined(judged, "margins"), seen, shares),
        torch.cat(list(lengths))[order],
    )
