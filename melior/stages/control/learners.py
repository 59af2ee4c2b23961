"""What learns to act from batches of transitions: each is a step, and all of it can be resumed.

Behaviour cloning, TD3+BC, and soft actor-critic (SAC), which is also CQL with a conservative term,
and MOBILE with doubt in its targets. None knows where its rows are from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from melior import ops
from melior.checks import in_range
from melior.losses import control as losses
from melior.models.control import Dynamics
from melior.models.control_policies import (
    Critics,
    GaussianPolicy,
    PlainPolicy,
    follow,
    frozen_copy,
)
from melior.options import OptimConfig
from melior.records import Metrics
from melior.sampling.control import candidates
from melior.training.checkpoint import State, under
from melior.training.loop import Step, descend

Schedule = Literal["cosine", "linear", "constant"]

_NO_CUT = 1e6
"""A norm that no gradient reaches: actor-critic methods are published without cutting them."""


@dataclass(frozen=True)
class Rows:
    """Transitions of a batch."""

    observations: Float[Tensor, "n d"]
    actions: Float[Tensor, "n a"]
    rewards: Float[Tensor, " n"]
    next_observations: Float[Tensor, "n d"]
    terminals: Bool[Tensor, " n"]
    imagined: Bool[Tensor, " n"]
    """From a modelled world, and not from the log."""


@dataclass(frozen=True)
class ActorCriticOptions:
    """What actor-critic methods share; the defaults are those of MOPO, MOBILE and MOREC."""

    discount: float = 0.99
    target_rate: float = 0.005
    """Share of the way that targets go to the critics in a step."""
    actor_rate: float = 1e-4
    critic_rate: float = 3e-4
    temperature_rate: float = 1e-4
    actor_schedule: Schedule = "cosine"
    max_temperature: float = math.inf
    """Of the entropy, however low it is; 1 in the releases of MOPO and MOBILE."""
    entropy_in_target: bool = True
    """Without it what follows is worth its value alone (`deterministic_backup`)."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("discount", self.discount, 0, 1)
        in_range("target_rate", self.target_rate, 0, 1, above=True)
        for name in ("actor_rate", "critic_rate", "temperature_rate"):
            in_range(name, getattr(self, name), 0, above=True)


def no_doubt(learner: SoftActorCritic, rows: Rows) -> Float[Tensor, " n"]:
    """Lower no target."""
    return torch.zeros_like(rows.rewards)


def no_caution(
    learner: SoftActorCritic, rows: Rows, values: Float[Tensor, "m n"]
) -> Float[Tensor, " n"]:
    """Add nothing to the critics' loss."""
    return torch.zeros_like(rows.rewards)


class SoftActorCritic:
    """SAC: Haarnoja et al. 2018, arXiv 1812.05905, algorithm 1.

    The policy is drawn by the critics themselves: MOBILE's release reads their targets there.
    """

    def __init__(
        self,
        policy: GaussianPolicy,
        critics: Critics,
        options: ActorCriticOptions,
        *,
        total_steps: int,
        seed: int,
        doubt: Callable[[SoftActorCritic, Rows], Tensor] = no_doubt,
        caution: Callable[[SoftActorCritic, Rows, Tensor], Tensor] = no_caution,
    ) -> None:
        """Hold what learns.

        Args:
            policy: what acts.
            critics: what judges.
            options: of the method.
            total_steps: the length of the schedule.
            seed: of the actions that are drawn.
            doubt: by how much each row's target is lowered.
            caution: what is added to the critics' loss, of their values of what was done.
        """
        self.policy, self.critics, self.targets = policy, critics, frozen_copy(critics)
        self._doubt, self._caution = doubt, caution
        self.generator = ops.generator(ops.stream(seed, "learner"))
        self._options = options
        self._log_temperature = nn.Parameter(torch.zeros(()))
        self._target_entropy = -float(policy.options.actions)
        self._steps = {
            "critic": descend(
                self._critic, _named(critics), _adam(options.critic_rate), total_steps=total_steps
            ),
            "actor": descend(
                self._actor,
                _named(policy),
                _adam(options.actor_rate, options.actor_schedule),
                total_steps=total_steps,
            ),
            "temperature": descend(
                self._temperature,
                {"log_temperature": self._log_temperature},
                _adam(options.temperature_rate),
                total_steps=total_steps,
            ),
        }

    @property
    def temperature(self) -> float:
        """Return the price of an action's surprise."""
        return min(float(self._log_temperature.detach().exp()), self._options.max_temperature)

    def __call__(self, batch: Sequence[Rows]) -> Metrics:
        """Move critics, policy and temperature, then the targets."""
        metrics: Metrics = {}
        for name, step in self._steps.items():
            metrics |= _prefixed(name, step(batch))
        follow(self.targets, self.critics, self._options.target_rate)
        return metrics | {"temperature": self.temperature}

    def state(self) -> State:
        """Return all that what comes next depends on."""
        return _state(self._steps, {"target": self.targets}, self.generator)

    def load_state(self, state: State) -> None:
        """Go back to a state."""
        _load_state(state, self._steps, {"target": self.targets}, self.generator)

    def _critic(self, rows: Rows) -> tuple[Float[Tensor, ""], Metrics]:
        with torch.no_grad():
            actions, log_prob = self.policy.draw(rows.next_observations, generator=self.generator)
            following = losses.soft_value(
                self.targets(rows.next_observations, actions),
                log_prob,
                temperature=self.temperature if self._options.entropy_in_target else 0.0,
            )
            targets = losses.td_target(
                rows.rewards - self._doubt(self, rows),
                rows.terminals,
                following,
                discount=self._options.discount,
            )
        values = self.critics(rows.observations, rows.actions)
        loss = losses.critic(values, targets) + self._caution(self, rows, values)
        return loss.mean(), {"value": float(values.detach().mean())}

    def _actor(self, rows: Rows) -> tuple[Float[Tensor, ""], Metrics]:
        actions, log_prob = self.policy.draw(rows.observations, generator=self.generator)
        values = self.critics(rows.observations, actions)
        loss = losses.soft_actor(values, log_prob, temperature=self.temperature)
        return loss.mean(), {"entropy": -float(log_prob.detach().mean())}

    def _temperature(self, rows: Rows) -> tuple[Float[Tensor, ""], Metrics]:
        with torch.no_grad():
            _, log_prob = self.policy.draw(rows.observations, generator=self.generator)
        loss = losses.soft_temperature(
            self._log_temperature, log_prob, target_entropy=self._target_entropy
        )
        return loss.mean(), {}


Doubt = Callable[[SoftActorCritic, Rows], Float[Tensor, " n"]]
Caution = Callable[[SoftActorCritic, Rows, Float[Tensor, "m n"]], Float[Tensor, " n"]]


def conservative(*, weight: float, draws: int = 10) -> Caution:
    """Return the caution of CQL: values of drawn actions down, of those that were done up.

    Kumar et al. 2020, arXiv 2006.04779, eq. 4 and appendix F: a third of the actions is drawn
    evenly, a third from the policy here, a third from it at the next observation.
    """

    def caution(
        learner: SoftActorCritic, rows: Rows, values: Float[Tensor, "m n"]
    ) -> Float[Tensor, " n"]:
        n, width = rows.actions.shape
        generator = learner.generator
        with torch.no_grad():
            even = torch.empty(n * draws, width).uniform_(-1, 1, generator=generator)
            drawn = [(even, torch.full((n * draws,), -width * math.log(2)))]
            for seen in (rows.observations, rows.next_observations):
                many = seen.repeat_interleave(draws, 0)
                drawn.append(learner.policy.draw(many, generator=generator))
        many = rows.observations.repeat_interleave(draws, 0)
        sampled = [learner.critics(many, actions).view(-1, n, draws) for actions, _ in drawn]
        densities = torch.cat([log_prob.view(n, draws) for _, log_prob in drawn], dim=-1)
        return weight * losses.conservatism(torch.cat(sampled, dim=-1), densities, values)

    return caution


def inconsistent(dynamics: Dynamics, *, weight: float, draws: int = 10) -> Doubt:
    """Return the doubt of MOBILE: how far elites disagree on what follows is worth.

    Sun et al. 2023 (ICML); as in their release the policy's actions are drawn there. Only of
    imagined rows; the log is what it is.
    """

    def doubt(learner: SoftActorCritic, rows: Rows) -> Float[Tensor, " n"]:
        doubts = torch.zeros_like(rows.rewards)
        if not rows.imagined.any():
            return doubts
        seen, acted = rows.observations[rows.imagined], rows.actions[rows.imagined]
        drawn = candidates(
            dynamics, seen, acted, draws=draws, bound=torch.inf, generator=learner.generator
        )
        following = drawn.next_observations.flatten(0, 1)
        acted, _ = learner.policy.draw(following, generator=learner.generator)
        values = learner.targets(following, acted).amin(0)
        elites = values.view(len(seen), len(dynamics.elites), draws).transpose(0, 1)
        doubts[rows.imagined] = weight * losses.bellman_inconsistency(elites)
        return doubts

    return doubt


@dataclass(frozen=True)
class Td3BcOptions:
    """The authors' settings: Fujimoto, Gu 2021, arXiv 2106.06860."""

    alpha: float = 2.5
    """Weight of value beside closeness."""
    discount: float = 0.99
    target_rate: float = 0.005
    learning_rate: float = 3e-4
    noise: float = 0.2
    """Deviation of what blurs a target's action, ..."""
    noise_clip: float = 0.5
    """... and the most of it."""
    delay: int = 2
    """Steps of the critics for one of the policy."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("alpha", self.alpha, 0)
        in_range("discount", self.discount, 0, 1)
        in_range("target_rate", self.target_rate, 0, 1, above=True)
        in_range("learning_rate", self.learning_rate, 0, above=True)
        in_range("noise", self.noise, 0)
        in_range("noise_clip", self.noise_clip, 0)
        in_range("delay", self.delay, 1)


class Td3Bc:
    """TD3 that stays close to what was done: Fujimoto, Gu 2021, arXiv 2106.06860."""

    def __init__(
        self,
        policy: PlainPolicy,
        critics: Critics,
        options: Td3BcOptions,
        *,
        total_steps: int,
        seed: int,
    ) -> None:
        self.policy, self.critics = policy, critics
        self._followers = {"policy": frozen_copy(policy), "target": frozen_copy(critics)}
        self._options, self._generator = options, ops.generator(ops.stream(seed, "learner"))
        optim = _adam(options.learning_rate)
        self._steps = {
            "critic": descend(self._critic, _named(critics), optim, total_steps=total_steps),
            "actor": descend(self._actor, _named(policy), optim, total_steps=total_steps),
        }

    def __call__(self, batch: Sequence[Rows]) -> Metrics:
        """Move the critics, and at each `delay`-th step the policy and all targets."""
        metrics = _prefixed("critic", self._steps["critic"](batch))
        if self._steps["critic"].steps % self._options.delay == 0:
            metrics |= _prefixed("actor", self._steps["actor"](batch))
            for name, source in (("policy", self.policy), ("target", self.critics)):
                follow(self._followers[name], source, self._options.target_rate)
        return metrics

    def state(self) -> State:
        """Return all that what comes next depends on."""
        return _state(self._steps, self._followers, self._generator)

    def load_state(self, state: State) -> None:
        """Go back to a state."""
        _load_state(state, self._steps, self._followers, self._generator)

    def _critic(self, rows: Rows) -> tuple[Float[Tensor, ""], Metrics]:
        options = self._options
        with torch.no_grad():
            noise = torch.empty_like(rows.actions).normal_(generator=self._generator)
            blur = (options.noise * noise).clamp(-options.noise_clip, options.noise_clip)
            actions = (self._followers["policy"](rows.next_observations) + blur).clamp(-1, 1)
            following = self._followers["target"](rows.next_observations, actions).amin(0)
            targets = losses.td_target(
                rows.rewards, rows.terminals, following, discount=options.discount
            )
        values = self.critics(rows.observations, rows.actions)
        return losses.critic(values, targets).mean(), {"value": float(values.detach().mean())}

    def _actor(self, rows: Rows) -> tuple[Float[Tensor, ""], Metrics]:
        actions = self.policy(rows.observations)
        values = self.critics(rows.observations, actions)[0]
        loss = losses.td3_bc(values, actions, rows.actions, alpha=self._options.alpha)
        return loss.mean(), {"value": float(values.detach().mean())}


class Cloning:
    """A policy that does what was done."""

    def __init__(self, policy: PlainPolicy, *, learning_rate: float, total_steps: int) -> None:
        self.policy = policy
        optim = _adam(learning_rate)
        self._step = descend(self._objective, _named(policy), optim, total_steps=total_steps)

    def __call__(self, batch: Sequence[Rows]) -> Metrics:
        """Move the policy."""
        return _prefixed("actor", self._step(batch))

    def state(self) -> State:
        """Return all that what comes next depends on."""
        return self._step.state()

    def load_state(self, state: State) -> None:
        """Go back to a state."""
        self._step.load_state(state)

    def _objective(self, rows: Rows) -> tuple[Float[Tensor, ""], Metrics]:
        return losses.cloning(self.policy(rows.observations), rows.actions).mean(), {}


def _adam(rate: float, schedule: Schedule = "constant") -> OptimConfig:
    return OptimConfig(
        learning_rate=rate, lr_scheduler_type=schedule, warmup_ratio=0.0, max_grad_norm=_NO_CUT
    )


def _named(network: nn.Module) -> dict[str, nn.Parameter]:
    return dict(network.named_parameters())


def _prefixed(name: str, metrics: Metrics) -> Metrics:
    return {f"{name}/{key}": value for key, value in metrics.items()}


def _state(
    steps: Mapping[str, Step[Rows]],
    followers: Mapping[str, nn.Module],
    generator: torch.Generator,
) -> State:
    state: State = {"generator": generator.get_state()}
    for name, step in steps.items():
        state |= {f"step/{name}/{key}": value for key, value in step.state().items()}
    for name, network in followers.items():
        state |= {f"follower/{name}/{key}": own for key, own in network.state_dict().items()}
    return state


def _load_state(
    state: State,
    steps: Mapping[str, Step[Rows]],
    followers: Mapping[str, nn.Module],
    generator: torch.Generator,
) -> None:
    for name, step in steps.items():
        step.load_state(under(f"step/{name}/", state))
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for name, network in followers.items():
        network.load_state_dict(under(f"follower/{name}/", tensors))
    generator.set_state(tensors["generator"])
