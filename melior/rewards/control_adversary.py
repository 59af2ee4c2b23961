"""Learning the dynamics reward: discriminators of all iterations against a model that evades them.

Luo, Xu, Cao, Yu 2023, arXiv 2310.05422, read as they do: the world is an agent whose action
is the next observation. The authors never released this part. Ours is the one-step form: the model
is drawn by the slope of its reward through its own Gaussian draws, where they use PPO over
roll-outs.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from melior import ops
from melior.checks import in_range
from melior.data.control import Transitions
from melior.losses.control import discriminator, gradient_penalty, looks_real
from melior.models.control import DiscriminatorOptions, Discriminators, Dynamics
from melior.options import OptimConfig
from melior.records import Metrics
from melior.rewards.control import DynamicsReward, Snapshot, spread
from melior.training.checkpoint import State
from melior.training.loop import Hook, descend, fit

Kept = TypeVar("Kept")

_PROBE: Final = 1024
"""Logged transitions by which the ends of a snapshot's scale are told."""


@dataclass(frozen=True)
class AdversaryOptions:
    """How the dynamics reward is learned."""

    steps: int = 2000
    batch_size: int = 256
    learning_rate: float = 3e-4
    """Of the discriminator and of the model that evades it."""
    penalty: float = 0.05
    """Weight of the discriminator's squared slope; keeps it from being certain, where its snapshots
    would all say the same."""
    hidden: int = 128
    layers: int = 2
    warmup: float = 0.2
    """Share of the steps before the first snapshot."""
    every: int = 20
    """Steps from one snapshot to the next."""
    last: int = 400
    """Of how many newest snapshots the average is made, ..."""
    spread: int = 1
    """... taking every so many of them. The authors: 10 with MOPO, 40 with MOBILE."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("steps", "batch_size", "hidden", "layers", "every", "last", "spread"):
            in_range(name, getattr(self, name), 1)
        in_range("learning_rate", self.learning_rate, 0, above=True)
        in_range("penalty", self.penalty, 0)
        in_range("warmup", self.warmup, 0, 1, below=True)


@dataclass(frozen=True)
class Logs:
    """Logged transitions as tensors."""

    observations: Float[Tensor, "n d"]
    actions: Float[Tensor, "n a"]
    next_observations: Float[Tensor, "n d"]

    def rows(self, chosen: Tensor) -> Logs:
        """Return some of the rows."""
        return Logs(*(column[chosen] for column in vars(self).values()))


class Adversary:
    """A discriminator, the model that evades it, and the snapshots of the way.

    A step moves the discriminator, then the model. The model starts as the one that it is given,
    which stays as it is.
    """

    def __init__(
        self, dynamics: Dynamics, logged: Transitions, options: AdversaryOptions, *, seed: int
    ) -> None:
        self.options = options
        self.snapshots: list[Snapshot] = []
        self._steps = 0
        self._generator = ops.generator(ops.stream(seed, "adversary"))
        self._logs = Logs(
            *map(
                torch.from_numpy,
                (logged.observations, logged.actions, logged.next_observations),
            )
        )
        shape = dynamics.options
        self._judge = Discriminators(
            DiscriminatorOptions(
                shape.observations, shape.actions, hidden=options.hidden, layers=options.layers
            ),
            seed=seed,
        )
        self._judge.fit_scales(self._logs.observations, self._logs.next_observations)
        self._model = copy.deepcopy(dynamics)
        probe = torch.randperm(len(logged), generator=self._generator)[:_PROBE]
        self._probe = self._logs.rows(probe)
        optim = OptimConfig(
            learning_rate=options.learning_rate, lr_scheduler_type="constant", warmup_ratio=0.0
        )
        self._accuse = descend(
            self._accusation, dict(self._judge.named_parameters()), optim, total_steps=options.steps
        )
        evading = {
            name: weight
            for name, weight in self._model.named_parameters()
            if name.startswith("members.")
        }
        self._evade = descend(self._evasion, evading, optim, total_steps=options.steps)

    def batches(self) -> Iterator[Sequence[Logs]]:
        """Yield the batches that are still to come."""
        while self._steps < self.options.steps:
            drawn = torch.randint(
                len(self._logs.actions), (self.options.batch_size,), generator=self._generator
            )
            yield [self._logs.rows(drawn)]

    def __call__(self, batch: Sequence[Logs]) -> Metrics:
        """Move both, and leave a snapshot where one is due."""
        accused = self._accuse(batch)
        evaded = self._evade(batch)
        self._steps += 1
        begun = self._steps - int(self.options.warmup * self.options.steps)
        if begun > 0 and begun % self.options.every == 0:
            self.snapshots.append(self._snapshot())
        named = {f"discriminator/{name}": value for name, value in accused.items()}
        return named | {f"generator/{name}": value for name, value in evaded.items()}

    def reward(self) -> DynamicsReward:
        """Return the average of the snapshots."""
        chosen = spread(len(self.snapshots), last=self.options.last, every=self.options.spread)
        return DynamicsReward.of([self.snapshots[place] for place in chosen])

    def state(self) -> State:
        """Return all that what comes next depends on."""
        state: State = {"steps": self._steps, "snapshots": len(self.snapshots)}
        state |= {f"accuse/{name}": value for name, value in self._accuse.state().items()}
        state |= {f"evade/{name}": value for name, value in self._evade.state().items()}
        state["generator"] = self._generator.get_state()
        if self.snapshots:
            state["ends"] = torch.tensor([[one.real, one.generated] for one in self.snapshots])
            for name in dict(self._judge.named_parameters()):
                kept = [one.discriminator.state_dict()[name] for one in self.snapshots]
                state[f"kept/{name}"] = torch.stack(kept)
        return state

    def load_state(self, state: State) -> None:
        """Go back to a state."""
        self._accuse.load_state(_under("accuse/", state))
        self._evade.load_state(_under("evade/", state))
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        self._generator.set_state(tensors["generator"])
        kept = _under("kept/", tensors)
        self._steps = int(state["steps"])
        self.snapshots = []
        for place in range(int(state["snapshots"])):
            past = copy.deepcopy(self._judge)
            weights = {name: own[place] for name, own in kept.items()}
            past.load_state_dict(past.state_dict() | weights)
            real, generated = tensors["ends"][place].tolist()
            self.snapshots.append(Snapshot(past, real, generated))

    def _accusation(self, batch: Logs) -> tuple[Float[Tensor, ""], Metrics]:
        """Tell logged from generated, without certainty between them."""
        with torch.no_grad():
            faked = self._judge.inputs(batch.observations, batch.actions, self._generated(batch))
        real = self._judge.inputs(batch.observations, batch.actions, batch.next_observations)
        logits = self._judge.logits(torch.cat([real, faked]))[0]
        is_real = torch.arange(len(logits)) < len(real)
        loss = 2 * discriminator(logits, is_real).mean()
        share = torch.rand(len(real), 1, generator=self._generator)
        between = (share * real + (1 - share) * faked).requires_grad_()
        (slopes,) = torch.autograd.grad(
            self._judge.logits(between).sum(), between, create_graph=True
        )
        accuracy = ((logits.detach() > 0) == is_real).float().mean()
        whole = loss + self.options.penalty * gradient_penalty(slopes).mean()
        return whole, {"accuracy": float(accuracy)}

    def _evasion(self, batch: Logs) -> tuple[Float[Tensor, ""], Metrics]:
        """Let what is generated look real; the slope goes through the draws."""
        generated = self._generated(batch)
        reward = looks_real(self._judge(batch.observations, batch.actions, generated)[0]).mean()
        return -reward, {"reward": float(reward.detach())}

    def _generated(self, batch: Logs) -> Float[Tensor, "n d"]:
        """Draw what follows each row from one member, as likely any as another."""
        prediction = self._model.predict(batch.observations, batch.actions)
        rows = torch.arange(len(batch.actions))
        members = torch.randint(self._model.options.members, rows.shape, generator=self._generator)
        mean = prediction.next_observations[members, rows]
        noise = torch.empty_like(mean).normal_(generator=self._generator)
        return mean + prediction.deviations[members, rows, :-1] * noise

    @torch.no_grad()
    def _snapshot(self) -> Snapshot:
        probe = self._probe
        real = self._judge(probe.observations, probe.actions, probe.next_observations).mean()
        generated = self._judge(probe.observations, probe.actions, self._generated(probe)).mean()
        return Snapshot(copy.deepcopy(self._judge), float(real), float(generated))


def learn_reward(
    dynamics: Dynamics,
    logged: Transitions,
    options: AdversaryOptions,
    *,
    seed: int,
    hooks: Iterable[Hook] = (),
) -> DynamicsReward:
    """Learn the dynamics reward of a log, beginning from dynamics that are fitted to it.

    Raises:
        ValueError: no snapshot finds the log more real than what is generated.
    """
    adversary = Adversary(dynamics, logged, options, seed=seed)
    fit(adversary, adversary.batches(), hooks=hooks)
    return adversary.reward()


def _under(prefix: str, state: Mapping[str, Kept]) -> dict[str, Kept]:
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }
