"""Fitting an ensemble of dynamics to logged transitions, until no member gets better.

Janner et al. 2019, arXiv 1906.08253 (MBPO), and the releases of MOPO and MOBILE: members learn from
resampled rows of their own, are judged on the same held-out rows, and each keeps its best weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior import ops
from melior.checks import in_range
from melior.data.control import Transitions
from melior.losses.control import gaussian_nll
from melior.models.control import Dynamics
from melior.options import OptimConfig
from melior.records import Metrics
from melior.training.checkpoint import State
from melior.training.loop import Hook, Step, descend, fit

_BOUND = 0.01
"""Weight of what draws the variance's bounds together; PETS's code."""


@dataclass(frozen=True)
class FittingOptions:
    """How dynamics are fitted; the defaults are those of MOPO, MOBILE and MOREC."""

    batch_size: int = 256
    """Rows of each member in a step."""
    held_out: float = 0.2
    """Share of rows held out, ..."""
    max_held_out: int = 1000
    """... and the most of them."""
    patience: int = 5
    """Stop after so many epochs in which no member got better ..."""
    improvement: float = 0.01
    """... by this share of its held-out error."""
    max_epochs: int = 200
    optim: OptimConfig = field(
        default_factory=lambda: OptimConfig(
            learning_rate=1e-3,
            lr_scheduler_type="constant",
            warmup_ratio=0.0,
            weight_decay=5e-5,
            max_grad_norm=1e6,
        )
    )
    """The releases weigh decay layer by layer, from 2.5e-5 to 1e-4; here all alike. Gradients are
    not cut down: the norm is of all members together, and one would slow the others."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        in_range("batch_size", self.batch_size, 1)
        in_range("held_out", self.held_out, 0, 1, above=True, below=True)
        in_range("max_held_out", self.max_held_out, 1)
        in_range("patience", self.patience, 1)
        in_range("improvement", self.improvement, 0, 1, below=True)
        in_range("max_epochs", self.max_epochs, 1)


@dataclass(frozen=True)
class Examples:
    """Transitions as dynamics learn them; each member may have rows of its own."""

    observations: Float[Tensor, "*m n d"]
    actions: Float[Tensor, "*m n a"]
    targets: Float[Tensor, "*m n d+1"]
    """Change of the observation, and the reward as the last."""

    def rows(self, chosen: Int[Tensor, "*m n"]) -> Examples:
        """Return some rows, member by member where `chosen` is."""
        return Examples(self.observations[chosen], self.actions[chosen], self.targets[chosen])


def examples(logged: Transitions) -> Examples:
    """Return all rows of a log."""
    observations, actions, rewards, following = map(
        torch.from_numpy,
        (logged.observations, logged.actions, logged.rewards, logged.next_observations),
    )
    targets = torch.cat([following - observations, rewards[:, None]], dim=-1)
    return Examples(observations, actions, targets)


class Fitting:
    """The epochs of a fit, and what was best in them; a run can leave it and come back to it."""

    def __init__(
        self, dynamics: Dynamics, logged: Transitions, options: FittingOptions, *, seed: int
    ) -> None:
        """Hold rows out, scale by the others, and draw each member's own.

        Raises:
            ValueError: there are too few rows.
        """
        in_range("transitions to fit dynamics to", len(logged), 2)
        self._dynamics, self._options = dynamics, options
        self._generator = ops.generator(ops.stream(seed, "fitting"))
        order = torch.randperm(len(logged), generator=self._generator)
        n_held_out = max(1, min(int(options.held_out * len(logged)), options.max_held_out))
        everything = examples(logged)
        self._held_out = everything.rows(order[:n_held_out])
        self._known = everything.rows(order[n_held_out:])
        count, members = len(logged) - n_held_out, dynamics.options.members
        self._own = torch.randint(count, (members, count), generator=self._generator)
        self.n_batches = -(-count // options.batch_size)
        known = self._known
        dynamics.fit_scales(known.observations, known.actions, known.targets)
        self.errors = torch.full((members,), torch.inf)
        """The best held-out error of each member: mean square of the scaled targets."""
        self._best = _members(dynamics)
        self._epoch, self._place, self._waited = 0, 0, 0
        self._before_epoch = self._generator.get_state()

    def batches(self) -> Iterator[Sequence[Examples]]:
        """Yield the optimizer batches that are still to come, until no member gets better."""
        while self._epoch < self._options.max_epochs and self._waited < self._options.patience:
            self._generator.set_state(self._before_epoch)
            noise = torch.rand(self._own.shape, generator=self._generator)
            rows = self._own.gather(1, noise.argsort(-1)).split(self._options.batch_size, dim=1)
            while self._place < len(rows):
                chosen = rows[self._place]
                self._place += 1
                yield [self._known.rows(chosen)]
            self._judge()

    def finish(self) -> None:
        """Give each member its best weights, and elect."""
        self._dynamics.members.load_state_dict(self._best)
        self._dynamics.elect(self.errors)

    def state(self) -> State:
        """Return all that what comes next depends on."""
        best: State = {f"best/{name}": value for name, value in self._best.items()}
        return best | {
            "epoch": self._epoch,
            "place": self._place,
            "waited": self._waited,
            "errors": self.errors,
            "generator": self._before_epoch,
        }

    def load_state(self, state: State) -> None:
        """Go back to a state."""
        tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
        self._best = {
            name.removeprefix("best/"): value.clone()
            for name, value in tensors.items()
            if name.startswith("best/")
        }
        self.errors, self._before_epoch = tensors["errors"].clone(), tensors["generator"]
        self._epoch, self._place = int(state["epoch"]), int(state["place"])
        self._waited = int(state["waited"])

    @torch.no_grad()
    def _judge(self) -> None:
        held_out = self._held_out
        mean, _ = self._dynamics(held_out.observations, held_out.actions)
        wanted = self._dynamics.outputs(held_out.targets)
        found = (mean - wanted).square().mean((1, 2))
        is_better = found < (1 - self._options.improvement) * self.errors
        self.errors = found.where(is_better, self.errors)
        for name, weight in self._dynamics.members.state_dict().items():
            self._best[name][is_better] = weight[is_better]
        self._waited = 0 if is_better.any() else self._waited + 1
        self._epoch, self._place = self._epoch + 1, 0
        self._before_epoch = self._generator.get_state()


def fit_dynamics(
    dynamics: Dynamics,
    logged: Transitions,
    options: FittingOptions,
    *,
    seed: int,
    hooks: Iterable[Hook] = (),
) -> Fitting:
    """Fit an ensemble to a log and elect its best members; return how it went."""
    fitting = Fitting(dynamics, logged, options, seed=seed)
    fit(stepper(dynamics, options, fitting.n_batches), fitting.batches(), hooks=hooks)
    fitting.finish()
    return fitting


def stepper(dynamics: Dynamics, options: FittingOptions, n_batches: int) -> Step[Examples]:
    """Return the step that raises the likelihood of each member's rows.

    Members are added and never averaged, so that each learns what it would learn alone.
    """

    def objective(batch: Examples) -> tuple[Float[Tensor, ""], Metrics]:
        mean, log_variance = dynamics(batch.observations, batch.actions)
        targets = dynamics.outputs(batch.targets)
        loss = gaussian_nll(mean, log_variance, targets).mean(-1).sum() / targets.shape[-1]
        error = (mean.detach() - targets).square().mean()
        return loss + _BOUND * dynamics.bound_loss(), {"mse": float(error)}

    parameters = dict(dynamics.named_parameters())
    return descend(objective, parameters, options.optim, total_steps=options.max_epochs * n_batches)


def _members(dynamics: Dynamics) -> dict[str, Tensor]:
    return {name: weight.clone() for name, weight in dynamics.members.state_dict().items()}
