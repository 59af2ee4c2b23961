"""A predictor of the sum over outcomes that writes outcomes letter by letter, where none is listed.

Pan, Jain, Madan, Bengio 2024, arXiv 2310.03419, for large spaces: of strings from the left, what an
edge leads to is a beginning, and `Q` draws the rest of it, so that an outcome never has to be
listed, nor its reward known before it is drawn.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior.envs.flow import Strings
from melior.losses.flow import squared
from melior.losses.flow_outcomes import amortised
from melior.losses.marginal import log_conditionals
from melior.models.flow import FlowModel, towards
from melior.models.flow_outcomes import Speller
from melior.records import Metrics
from melior.rewards.flow import LogReward
from melior.sampling.flow import drawn, sample
from melior.stages.flows.finetune import predicted

LEAST = -15.0
"""The log of what all strings together count at least, over the best one."""


@dataclass(frozen=True)
class SpelledEdges:
    """Steps of trajectories, where each leads, and an outcome that it may serve."""

    states: Int[Tensor, "n d"]
    actions: Int[Tensor, " n"]
    """The stop among them."""
    after: Int[Tensor, "n d"]
    outcomes: Int[Tensor, "n d"]
    objects: Int[Tensor, "m d"]
    """What the trajectories built."""


def spelled_edges(
    env: Strings,
    predictor: Speller,
    *,
    batch_size: int,
    exploration: float,
    generator: torch.Generator,
) -> Iterator[list[SpelledEdges]]:
    """Yield batches without end: trajectories of the predictor, outcomes that it spells.

    Args:
        env: the strings, all of one length.
        predictor: as it is when a batch is asked for.
        batch_size: trajectories.
        exploration: share of actions, and of letters, that are drawn evenly.
        generator: of the draws.
    """
    while True:
        found = sample(
            env,
            predicted(env, predictor),
            batch_size,
            generator=generator,
            exploration=exploration,
        )
        states, actions = found.states[found.is_step], found.actions[found.is_step]
        goes_on = actions != env.n_actions
        after = states.clone()
        after[goes_on] = env.step(states[goes_on], actions[goes_on])
        outcomes = spelled(predictor, after, exploration=exploration, generator=generator)
        yield [SpelledEdges(states, actions, after, outcomes, found.objects)]


@torch.no_grad()
def spelled(
    predictor: Speller,
    begun: Int[Tensor, "n d"],
    *,
    exploration: float,
    generator: torch.Generator,
) -> Int[Tensor, "n d"]:
    """Go on with strings to their end, a share of the letters drawn evenly."""
    whole = begun.clone()
    for place in range(begun.shape[1]):
        rows = (begun[:, place] == 0).nonzero()[:, 0]
        if len(rows):
            own = predictor.following(begun[rows], whole[rows])[:, place].softmax(-1)
            mixed = (1 - exploration) * own + exploration / own.shape[-1]
            whole[rows, place] = drawn(mixed.log(), generator=generator) + 1
    return whole


def log_spelled(
    predictor: Speller, begun: Int[Tensor, "n d"], whole: Int[Tensor, "n d"]
) -> Float[Tensor, " n"]:
    """Return `log Q(y|s',s)`: of the letters that are not yet written, one after another."""
    n, d = whole.shape
    row, place = (begun == 0).nonzero(as_tuple=True)
    before = torch.arange(d, device=whole.device) < place[:, None]
    logits = predictor.following(begun[row], whole[row].where(before, 0))
    found = log_conditionals(logits, whole[row])
    own = found.gather(-1, place[:, None])[:, 0]
    return own.new_zeros(n).index_add(0, row, own)


def amortise_spelled(
    env: Strings,
    model: FlowModel,
    predictor: Speller,
    log_reward: LogReward,
    batch: SpelledEdges,
    *,
    best: float,
) -> tuple[Float[Tensor, ""], Metrics]:
    """Return the loss of a batch of edges, as `finetune.amortise`.

    Args:
        env: the strings.
        model: conditioned on outcomes; stays as it is.
        predictor: learns.
        log_reward: of whole strings.
        batch: the edges.
        best: about the highest log-reward, from which all are counted.
    """
    taken = batch.actions[:, None]
    with torch.no_grad():
        read = towards(model, env, batch.outcomes)
        flows = read(batch.states, torch.arange(len(batch.states), device=taken.device))
        worth = log_reward(batch.outcomes) - best
    residual = amortised(
        predictor.log_sum(env.features(batch.states)).gather(-1, taken)[:, 0],
        log_spelled(predictor, batch.after, batch.outcomes),
        worth,
        log_flow=flows.log_flow,
        log_forward=flows.log_forward.gather(-1, taken)[:, 0],
        least=LEAST - env.length * math.log(env.n_letters),
    )
    loss = squared(residual).mean()
    return loss, {"loss": loss.item()}
