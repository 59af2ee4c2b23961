"""Networks of flows: one reading of a state gives its flow and the ways on and back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from melior.data.flow import FlowEnvironment, Trajectories
from melior.losses.flow import Paths

LOG_Z_RATE = 100.0
"""How much faster `log Z` learns than the network: 0.1 beside 1e-3, as GAFN's code takes it."""


@dataclass(frozen=True)
class Flows:
    """What a network says of states."""

    log_flow: Float[Tensor, "*n"]
    log_forward: Float[Tensor, "*n actions"]
    """Of all actions, the stop being the last; hardly any where they are not allowed."""
    log_backward: Float[Tensor, "*n a"]
    """Of undoing each action."""


Forward = Callable[[Int[Tensor, "n d"], Int[Tensor, " n"]], Float[Tensor, "n actions"]]
"""From states, and the numbers of the trajectories that they belong to, to the ways on alone."""
Reading = Callable[[Int[Tensor, "n d"], Int[Tensor, " n"]], Flows]
"""From states, and the numbers of the trajectories that they belong to, to their flows."""


class FlowModel(nn.Module):
    """Two perceptrons on a state and a condition, such as the outcome to reach: flow, and ways.

    Apart, as a flow spans many orders of magnitude and a policy does not: one trunk for both is
    slower to reach what it is asked for.
    """

    def __init__(
        self,
        n_features: int,
        n_actions: int,
        *,
        n_condition: int = 0,
        width: int = 256,
        depth: int = 2,
        learns_backward: bool = False,
    ) -> None:
        """Set up the layers.

        Args:
            n_features: numbers that describe a state.
            n_actions: without the stop.
            n_condition: numbers that describe the condition; 0 where there is none.
            width: of the hidden layers.
            depth: how many hidden layers there are.
            learns_backward: else all ways back are equally likely.
        """
        super().__init__()
        self.n_actions = n_actions
        shape = {"n_condition": n_condition, "width": width, "depth": depth}
        self.flow = _Perceptron(n_features, 1, **shape)
        n_backward = n_actions if learns_backward else 0
        self.ways = _Perceptron(n_features, n_actions + 1 + n_backward, **shape)
        self.slow_log_z = nn.Parameter(torch.zeros(()))

    @property
    def log_z(self) -> Float[Tensor, ""]:
        """The log of the total flow, for trajectory balance alone."""
        return LOG_Z_RATE * self.slow_log_z

    def forward(
        self,
        features: Float[Tensor, "*n f"],
        condition: Float[Tensor, "*m c"],
        *,
        allowed: Bool[Tensor, "*n actions"],
        undoable: Bool[Tensor, "*n a"],
    ) -> Flows:
        """Read states; their leading axes and the condition's are broadcast against each other.

        So `s` states under `y` conditions take `s + y` products at the first layer, not `s y`.
        """
        flow = self.flow(features, condition)[..., 0]
        ways = self.ways(features, condition)
        forward, backward = ways.tensor_split([self.n_actions + 1], -1)
        if not backward.shape[-1]:
            backward = ways.new_zeros(*ways.shape[:-1], self.n_actions)
        return Flows(flow, log_shares(forward, allowed), log_shares(backward, undoable))

    def on(
        self,
        features: Float[Tensor, "*n f"],
        condition: Float[Tensor, "*m c"],
        *,
        allowed: Bool[Tensor, "*n actions"],
    ) -> Float[Tensor, "*n actions"]:
        """Return the ways on alone, for whoever draws: half of the reading."""
        ways = self.ways(features, condition)
        return log_shares(ways.narrow(-1, 0, self.n_actions + 1), allowed)


class _Perceptron(nn.Module):
    def __init__(
        self, n_features: int, n_out: int, *, n_condition: int, width: int, depth: int
    ) -> None:
        super().__init__()
        self.of_state = nn.Linear(n_features, width)
        self.of_condition = nn.Linear(n_condition, width, bias=False) if n_condition else None
        inner = [nn.Linear(width, width) for _ in range(depth - 1)]
        self.rest = nn.ModuleList([*inner, nn.Linear(width, n_out)])

    def forward(self, features: Tensor, condition: Tensor) -> Tensor:
        # By `forward`, as of few rows what modules do around it costs as much as the product.
        found = self.of_state.forward(features)
        if self.of_condition is not None:
            found = found + self.of_condition.forward(condition)
        for layer in self.rest:
            found = layer.forward(found.relu())
        return found


def start_flow_model(
    env: FlowEnvironment,
    *,
    seed: int,
    is_conditioned: bool = False,
    width: int = 256,
    depth: int = 2,
    learns_backward: bool = False,
) -> FlowModel:
    """Return a fresh network for an environment; its condition is an outcome, read as a state."""
    n_features = env.features(env.start[None]).shape[-1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return FlowModel(
            n_features,
            env.n_actions,
            n_condition=n_features if is_conditioned else 0,
            width=width,
            depth=depth,
            learns_backward=learns_backward,
        )


def unconditioned(model: FlowModel, env: FlowEnvironment) -> Reading:
    """Return the reading of a network that has no condition."""

    def read(states: Tensor, _: Tensor) -> Flows:
        features = env.features(states)
        return model(
            features,
            features[:, :0],
            allowed=env.allowed(states),
            undoable=env.undoable(states),
        )

    return read


def towards(model: FlowModel, env: FlowEnvironment, outcomes: Int[Tensor, "n d"]) -> Reading:
    """Return the reading of a conditioned network: trajectory `i` is to reach outcome `i`."""
    wanted = env.features(outcomes)

    def read(states: Tensor, rows: Tensor) -> Flows:
        return model(
            env.features(states),
            wanted[rows],
            allowed=env.allowed(states),
            undoable=env.undoable(states),
        )

    return read


def policy_of(
    model: FlowModel, env: FlowEnvironment, outcomes: Int[Tensor, "n d"] | None = None
) -> Forward:
    """Return the policy of a network: towards an outcome for each trajectory, where it has any."""
    if outcomes is None:
        nothing = env.features(env.start[None])[:, :0]
        return lambda states, _: model.on(
            env.features(states), nothing, allowed=env.allowed(states)
        )
    wanted = env.features(outcomes)
    return lambda states, rows: model.on(
        env.features(states), wanted[rows], allowed=env.allowed(states)
    )


def along(
    read: Reading, trajectories: Trajectories, log_reward: Float[Tensor, " n"]
) -> tuple[Paths, Float[Tensor, "n t"]]:
    """Return what a network says of trajectories, and the log-flow where each step begins.

    Every state is read once; those after the end are not read at all.
    """
    is_step = trajectories.is_step
    rows, _ = is_step.nonzero(as_tuple=True)
    flows = read(trajectories.states[is_step], rows)
    actions = trajectories.actions[is_step][:, None]
    forward = flows.log_forward.gather(-1, actions)[:, 0]
    # An action is undone where it led, which is the next row; what the stop gets here is not read.
    can_be_undone = actions.clamp(max=flows.log_backward.shape[-1] - 1)
    backward = flows.log_backward.roll(-1, 0).gather(-1, can_be_undone)[:, 0]
    paths = Paths(_unpacked(forward, is_step), _unpacked(backward, is_step), is_step, log_reward)
    return paths, _unpacked(flows.log_flow, is_step)


def log_shares(logits: Float[Tensor, "*n a"], mask: Bool[Tensor, "*m a"]) -> Float[Tensor, "*n a"]:
    """Return log-probabilities of what the mask allows; about -1e9 elsewhere.

    Masked by a number and not by -inf, as nothing can be undone at the start. The gradient keeps a
    mask of its own: one that an environment made while a trajectory was drawn cannot be kept.
    """
    return logits.masked_fill(~mask, -1e9).log_softmax(-1)


def _unpacked(values: Tensor, is_step: Tensor) -> Tensor:
    return values.new_zeros(is_step.shape).masked_scatter(is_step, values)
