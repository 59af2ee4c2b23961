"""What flows are held against at equal looks at the reward: Markov chains, and Q-learning."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from melior import ops
from melior.data.flow import FlowEnvironment, Trajectories
from melior.losses.flow import squared
from melior.models.flow import log_shares
from melior.options import OptimConfig
from melior.records import Metrics
from melior.rewards.flow import LogReward
from melior.sampling.flow import Policy, evenly, sample, sample_back, sample_on
from melior.training.loop import descend


def back_and_forth(
    env: FlowEnvironment,
    log_reward: LogReward,
    *,
    chains: int,
    longest: int,
    generator: torch.Generator,
) -> Iterator[Int[Tensor, "n d"]]:
    """Yield where chains of Metropolis and Hastings are, from their start on; each costs a look.

    A proposal takes 1 to `longest` steps back, evenly, and goes on evenly to a stop (after Zhang,
    Malkin, Liu, Volokhova, Courville, Bengio 2022, arXiv 2202.01361). It is accepted by the
    probability of both ways: back from here and on to there, against back from there and on to
    here. One that could not have been gone the other way, as it is longer, is refused.
    """
    here = sample(env, evenly(env.allowed), chains, generator=generator).objects
    worth = log_reward(here)
    yield here
    while True:
        steps = torch.randint(1, longest + 1, (chains,), generator=generator)
        there, log_ratio = proposed(env, here, steps, longest=longest, generator=generator)
        new = log_reward(there)
        chance = torch.rand(chains, generator=generator).log()
        accepted = chance < (new - worth + log_ratio).nan_to_num(-torch.inf)
        here = there.where(accepted[:, None], here)
        worth = new.where(accepted, worth)
        yield here


def proposed(
    env: FlowEnvironment,
    objects: Int[Tensor, "n d"],
    steps: Int[Tensor, " n"],
    *,
    longest: int,
    generator: torch.Generator,
) -> tuple[Int[Tensor, "n d"], Float[Tensor, " n"]]:
    """Return other objects, and the log of the way from each back to the first over the way there.

    Both ways pass through the same state: `steps` before the object, or the start.
    """
    old = sample_back(env, objects, evenly(env.undoable), generator=generator)
    turn = (old.lengths - 1 - steps).clamp(min=0)
    rows = torch.arange(len(objects))
    new = sample_on(env, evenly(env.allowed), old.states[rows, turn], generator=generator)
    # The steps of the old trajectory from where it is left on, its stop the last.
    later = torch.arange(old.actions.shape[1]) >= turn[:, None]
    ratio = _evenly_undone(env, new) - _evenly_undone(env, old, later)
    ratio = ratio + _evenly_done(env, old, later) - _evenly_done(env, new)
    gone, back = new.lengths - 1, old.lengths - 1 - turn
    # How far back is drawn evenly, and all that is too far leads to the start: as many draws as
    # there are from each side.
    n_here, n_there = _draws(back, turn, longest), _draws(gone, turn, longest)
    return new.objects, ratio + n_there.log() - n_here.log()


def _draws(steps: Tensor, turn: Tensor, longest: int) -> Float[Tensor, " n"]:
    """Count the numbers of steps that lead back to the turn: one, or all beyond the start."""
    beyond = (longest - steps.clamp(min=1) + 1).clamp(min=0)
    is_one = ((steps >= 1) & (steps <= longest)).long()
    return torch.where(turn == 0, beyond, is_one).to(torch.get_default_dtype())


def _evenly_undone(
    env: FlowEnvironment, path: Trajectories, judged: Bool[Tensor, "n t"] | None = None
) -> Float[Tensor, " n"]:
    """Return the log-probability of undoing some steps of trajectories, all ways equally likely."""
    ways = env.undoable(path.states.flatten(0, 1)).sum(-1).view(path.actions.shape)
    goes_on = path.is_step.roll(-1, 1)
    goes_on[:, -1] = False
    kept = goes_on if judged is None else goes_on & judged
    after = ways.roll(-1, 1).clamp(min=1)
    return -after.to(torch.get_default_dtype()).log().where(kept, 0.0).sum(-1)


def _evenly_done(
    env: FlowEnvironment, path: Trajectories, judged: Bool[Tensor, "n t"] | None = None
) -> Float[Tensor, " n"]:
    """Return the log-probability of some steps of trajectories, all ways on equally likely."""
    ways = env.allowed(path.states.flatten(0, 1)).sum(-1).view(path.actions.shape).clamp(min=1)
    kept = path.is_step if judged is None else path.is_step & judged
    return -ways.to(torch.get_default_dtype()).log().where(kept, 0.0).sum(-1)


@dataclass
class QLearner:
    """Q-learning of a reward at the stop: a double network, greedy but for a share of its steps.

    Mnih et al. 2015; van Hasselt, Guez, Silver 2016, arXiv 1509.06461. It looks for the best
    object and not for all in proportion. Values are of rewards and not of their logs: over the best
    built so far, as a factor may be beyond what `exp` can hold.
    """

    env: FlowEnvironment
    values: nn.Sequential
    older: nn.Sequential
    best: float = -math.inf
    """Log-reward of the best object built so far."""

    def policy(
        self, states: Int[Tensor, "n d"], _: Int[Tensor, " n"]
    ) -> Float[Tensor, "n actions"]:
        """Return the greedy policy: all of it on the action of the highest value."""
        allowed = self.env.allowed(states)
        best = self.values(self.env.features(states)).masked_fill(~allowed, -torch.inf).argmax(-1)
        return log_shares(nn.functional.one_hot(best, allowed.shape[-1]) * 1e4, allowed)

    @torch.no_grad()
    def over_best(self, log_reward: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """Return rewards over the best; when that rises, what values say falls by as much.

        Their last layer is rescaled, so that what was learned is kept as far as float32 holds it
        (after van Hasselt, Guez, Hessel, Mnih, Silver 2016, arXiv 1602.07714).
        """
        before, self.best = self.best, max(self.best, float(log_reward.max()))
        if self.best > before > -math.inf:
            for network in (self.values, self.older):
                for parameter in network[-1].parameters():
                    parameter.mul_(math.exp(before - self.best))
        return (log_reward - self.best).exp()

    def loss(
        self, batch: Trajectories, reward: Float[Tensor, " n"]
    ) -> tuple[Float[Tensor, ""], Metrics]:
        """Return the squared error of one step ahead."""
        env, is_step = self.env, batch.is_step
        states, actions = batch.states[is_step], batch.actions[is_step]
        n, t = is_step.shape
        following = batch.states[:, torch.arange(1, t + 1).clamp(max=t - 1)][is_step]
        is_stop = actions == env.n_actions
        with torch.no_grad():
            allowed, features = env.allowed(following), env.features(following)
            best = self.values(features).masked_fill(~allowed, -torch.inf).argmax(-1, keepdim=True)
            ahead = self.older(features).gather(-1, best)[:, 0]
            wanted = torch.where(is_stop, reward[:, None].expand(n, t)[is_step], ahead)
        said = self.values(env.features(states)).gather(-1, actions[:, None])[:, 0]
        loss = squared(said - wanted).mean()
        return loss, {"loss": loss.item()}


def q_learning(
    env: FlowEnvironment,
    log_reward: LogReward,
    *,
    batch_size: int,
    width: int,
    exploration: float,
    optim: OptimConfig,
    steps: int,
    seed: int,
    every: int = 100,
) -> Iterator[tuple[Policy, Int[Tensor, "n d"]]]:
    """Yield the greedy policy and what was built, step by step; the older network follows `every`.

    A batch is built anew for each step, so that the looks at the reward are those of flows.
    """
    generator = ops.generator(seed)
    n_features = env.features(env.start[None]).shape[-1]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        both = [_values(n_features, env.n_actions + 1, width) for _ in range(2)]
    both[1].load_state_dict(both[0].state_dict())
    learner = QLearner(env, both[0], both[1].requires_grad_(False))
    step = descend(
        lambda batch: learner.loss(batch, learner.over_best(log_reward(batch.objects))),
        dict(learner.values.named_parameters()),
        optim,
        total_steps=steps,
    )
    for number in range(1, steps + 1):
        batch = sample(
            env, learner.policy, batch_size, generator=generator, exploration=exploration
        )
        step([batch])
        if number % every == 0:
            learner.older.load_state_dict(learner.values.state_dict())
        yield learner.policy, batch.objects


def _values(n_features: int, n_out: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(n_features, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, n_out),
    )
