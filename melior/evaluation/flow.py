"""A flow network held against the truth: exactly, where all states are known, and by samples.

On a graph of all states a policy's objects are computed by pushing probability from the start to
the stops, not by sampling: total variation measured by 10,000 samples of 256 objects does not fall
below 0.06 even for a perfect model. Work in float64. Axes: `s` states, `a` actions without the
stop, `k` rewards, `n` objects, `m` modes.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from melior.data.flow import NO_ACTION, Graph, rows_of


def visits(graph: Graph, log_policy: Float[Tensor, "s actions"]) -> Float[Tensor, " s"]:
    """Return how likely a trajectory passes each state.

    Args:
        graph: all states.
        log_policy: log-probabilities of all actions at each state, the stop being the last; what
            stands at actions that are not allowed is not read.
    """
    passed = log_policy.new_zeros(len(graph.states))
    passed[0] = 1.0
    for level in graph.rows_by_level:
        row, action = (graph.children[level] != NO_ACTION).nonzero(as_tuple=True)
        row = row + level.start
        moved = passed[row] * log_policy[row, action].exp()
        passed = passed.index_add(0, graph.children[row, action], moved)
    return passed


def built(graph: Graph, log_policy: Float[Tensor, "s actions"]) -> Float[Tensor, " s"]:
    """Return how likely a trajectory ends at each state: the policy's exact distribution."""
    stops = log_policy[:, -1].exp().where(graph.can_stop, 0.0)
    return visits(graph, log_policy) * stops


def target(graph: Graph, log_reward: Float[Tensor, " s"]) -> Float[Tensor, " s"]:
    """Return the distribution in proportion to a reward.

    Raises:
        ValueError: the reward of a state is nan or inf, or no state has any.
    """
    own = log_reward.masked_fill(~graph.can_stop, -torch.inf)
    wrong = own.isnan() | (own == torch.inf)
    if wrong.any():
        row = int(wrong.nonzero()[0])
        raise ValueError(
            f"reward: a finite log-reward, or -inf for none, is needed; found {float(own[row])} at"
            f" {graph.states[row].tolist()}"
        )
    if (own == -torch.inf).all():
        raise ValueError("reward: something must be worth building; found a reward of 0 everywhere")
    return own.softmax(0)


def undoable(graph: Graph) -> Bool[Tensor, "s a"]:
    """Say which actions may have led to each state."""
    row, action = (graph.children != NO_ACTION).nonzero(as_tuple=True)
    found = torch.zeros_like(graph.children, dtype=torch.bool)
    found[graph.children[row, action], action] = True
    return found


def uniform_backward(graph: Graph) -> Float[Tensor, "s a"]:
    """Return the way back on which all parents are equally likely; -inf where there is none."""
    parents = undoable(graph)
    share = 1 / parents.sum(-1, keepdim=True).clamp(min=1).double()
    return share.where(parents, 0.0).log()


def exact_flows(
    graph: Graph, log_backward: Float[Tensor, "s a"], log_reward: Float[Tensor, "s k"]
) -> Float[Tensor, "s k"]:
    """Return the log-flows that balance, for each reward: `F(s) = R(s) + sum F(s') P_B(s|s')`.

    Bengio, Lahlou, Deleu, Hu, Tiwari, Bengio 2023, arXiv 2111.09266: rewards and the way back fix
    all flows. With one reward of 1 at `y` it is the chance that the way back from `y` passes `s`.

    Args:
        graph: all states.
        log_backward: of undoing each action, at the state where it led.
        log_reward: -inf for none; not read where one cannot stop.
    """
    flows = log_reward.masked_fill(~graph.can_stop[:, None], -torch.inf)
    for level in reversed(graph.rows_by_level):
        children = graph.children[level]
        arriving = flows[children] + _at_children(children, log_backward)[..., None]
        leads = (children != NO_ACTION)[..., None]
        onward = arriving.masked_fill(~leads, -torch.inf)
        both = torch.cat([flows[level, None], onward], 1)
        flows = flows.index_copy(0, _rows(level), both.logsumexp(1))
    return flows


def exact_policy(
    graph: Graph,
    log_backward: Float[Tensor, "s a"],
    log_flow: Float[Tensor, " s"],
    log_reward: Float[Tensor, " s"],
) -> Float[Tensor, "s actions"]:
    """Return the policy of flows that balance: each edge by its share of the state's flow.

    A state without flow gets -inf throughout; it is never visited.
    """
    onward = log_flow[graph.children] + _at_children(graph.children, log_backward)
    onward = onward.masked_fill(graph.children == NO_ACTION, -torch.inf)
    stop = log_reward.masked_fill(~graph.can_stop, -torch.inf)
    shares = torch.cat([onward, stop[:, None]], -1) - log_flow[:, None]
    return shares.masked_fill((log_flow == -torch.inf)[:, None], -torch.inf)


def total_variation(p: Float[Tensor, "*k s"], q: Float[Tensor, "*k s"]) -> Float[Tensor, "*k"]:
    """Return half the sum of absolute differences: from 0 to 1, whatever the number of states."""
    return (p - q).abs().sum(-1) / 2


def mean_absolute_error(p: Float[Tensor, "*k s"], q: Float[Tensor, "*k s"]) -> Float[Tensor, "*k"]:
    """Return the field's "L1 error", a mean over the objects: it shrinks with their number."""
    return (p - q).abs().mean(-1)


def jensen_shannon(p: Float[Tensor, "*k s"], q: Float[Tensor, "*k s"]) -> Float[Tensor, "*k"]:
    """Return the Jensen-Shannon divergence in nats: from 0 to log 2."""
    middle = (p + q) / 2
    return (_divergence(p, middle) + _divergence(q, middle)) / 2


def observed(rows: Int[Tensor, " n"], n_states: int) -> Float[Tensor, " s"]:
    """Return the shares of states among samples, given by their rows."""
    return torch.bincount(rows, minlength=n_states).double() / len(rows)


def modes_found(objects: Int[Tensor, "n d"], modes: Int[Tensor, "m d"]) -> Bool[Tensor, " m"]:
    """Say which of distinct modes are among the objects."""
    rows = rows_of(modes, objects)
    found = torch.zeros(len(modes), dtype=torch.bool, device=modes.device)
    return found.index_fill(0, rows[rows >= 0], True)


def top(
    objects: Int[Tensor, "n d"], log_reward: Float[Tensor, " n"], count: int
) -> tuple[Int[Tensor, "top d"], Float[Tensor, " top"]]:
    """Return the best distinct objects, the best first; fewer where there are fewer."""
    distinct, place = objects.unique(dim=0, return_inverse=True)
    own = log_reward.new_empty(len(distinct)).scatter(0, place, log_reward)
    best = own.topk(min(count, len(distinct)))
    return distinct[best.indices], best.values


def diversity(objects: Int[Tensor, "n d"]) -> float:
    """Return in how many places two of the objects differ, on average over all pairs."""
    n = len(objects)
    if n < 2:
        return 0.0
    differ = (objects[:, None] != objects[None]).sum(-1)
    return float(differ.double().sum() / (n * (n - 1)))


def _at_children(children: Tensor, log_backward: Tensor) -> Tensor:
    """Return, for each edge, the log-probability of undoing it where it led."""
    return log_backward[children, torch.arange(children.shape[1])]


def _rows(level: slice) -> Tensor:
    return torch.arange(level.start, level.stop)


def _divergence(p: Tensor, q: Tensor) -> Tensor:
    return torch.special.xlogy(p, p / q.where(q > 0, 1.0)).sum(-1)
