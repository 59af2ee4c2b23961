"""Trajectories of flows: forward by a policy, and backward from what was built."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from melior.checks import in_range
from melior.data.flow import NO_ACTION, FlowEnvironment, Trajectories

Policy = Callable[[Int[Tensor, "n d"], Int[Tensor, " n"]], Float[Tensor, "n a"]]
"""From states, and the numbers of their trajectories, to log-probabilities of actions; hardly any
where an action is not allowed."""
_Drawn = tuple[Tensor, Tensor, Tensor]
"""A step of those that still go on: which they are, where they stand, and what each takes."""


def sample(
    env: FlowEnvironment,
    policy: Policy,
    n: int,
    *,
    generator: torch.Generator,
    exploration: float = 0.0,
) -> Trajectories:
    """Build `n` objects.

    Args:
        env: the environment.
        policy: of all actions, the stop being the last.
        n: how many.
        generator: of the draws.
        exploration: the share of actions that are drawn evenly from those allowed.

    Raises:
        ValueError: a trajectory is longer than the environment says.
    """
    starts = env.start.to(generator.device).expand(n, -1)
    return sample_on(env, policy, starts, generator=generator, exploration=exploration)


def sample_on(
    env: FlowEnvironment,
    policy: Policy,
    states: Int[Tensor, "n d"],
    *,
    generator: torch.Generator,
    exploration: float = 0.0,
) -> Trajectories:
    """Go on from states to objects; otherwise as `sample`."""
    in_range("exploration", exploration, 0, 1)
    steps: list[_Drawn] = []
    with torch.inference_mode():  # of few rows the book-keeping costs as much as the products
        going, here = torch.arange(len(states), device=states.device), states
        while len(going):
            _still_within(env, here, len(steps))
            log_probs = policy(here, going)
            if exploration:
                log_probs = _explored(log_probs, env.allowed(here), exploration, generator)
            chosen = drawn(log_probs, generator=generator)
            steps.append((going, here, chosen))
            left = (chosen != env.n_actions).nonzero()[:, 0]
            if len(left) < len(going):
                going, here, chosen = (part.index_select(0, left) for part in steps[-1])
            here = env.step(here, chosen)
    return _side_by_side(steps)


@torch.no_grad()
def sample_back(
    env: FlowEnvironment,
    objects: Int[Tensor, "n d"],
    policy: Policy,
    *,
    generator: torch.Generator,
) -> Trajectories:
    """Take objects apart, and return how each would have been built.

    Args:
        env: the environment.
        objects: what was built.
        policy: of the undoing of each action.
        generator: of the draws.
    """
    n = len(objects)
    states, going = objects, torch.arange(n, device=objects.device)
    visited, taken = [objects], [torch.full((n,), env.n_actions, device=objects.device)]
    while len(going := going[env.undoable(states[going]).any(-1)]):
        if len(taken) == env.longest:
            raise ValueError(
                f"environment: objects must be taken apart within {env.longest - 1} steps, as"
                f" 'longest' says; found one that goes on at {states[going[0]].tolist()}"
            )
        here = states[going]
        log_probs = policy(here, going).masked_fill(~env.undoable(here), -torch.inf)
        chosen = drawn(log_probs, generator=generator)
        states = states.index_copy(0, going, env.undo(here, chosen))
        visited.append(states)
        taken.append(chosen.new_full((n,), NO_ACTION).index_copy(0, going, chosen))
    return _turned(torch.stack(visited, 1), torch.stack(taken, 1))


def evenly(mask: Callable[[Tensor], Bool[Tensor, "n a"]]) -> Policy:
    """Return the policy that draws evenly: of `env.allowed` a way on, of `env.undoable` back."""

    def policy(states: Tensor, _: Tensor) -> Tensor:
        return _even(mask(states))

    return policy


def drawn(log_probs: Float[Tensor, "n a"], *, generator: torch.Generator) -> Int[Tensor, " n"]:
    """Draw one of each row's entries; -inf is never drawn.

    The least of exponential waiting times, each at the rate of its probability, is the one drawn.
    """
    waiting = torch.empty_like(log_probs).exponential_(generator=generator)
    return (log_probs - waiting.log()).argmax(-1)


def _still_within(env: FlowEnvironment, here: Tensor, taken: int) -> None:
    if taken == env.longest:
        raise ValueError(
            f"environment: trajectories must stop within {env.longest} actions, as 'longest'"
            f" says; found one that goes on at {here[0].tolist()}"
        )


def _explored(
    log_probs: Tensor, allowed: Tensor, exploration: float, generator: torch.Generator
) -> Tensor:
    """In a share of the rows make all that is allowed equally likely; the rest has hardly any."""
    chance = torch.rand(len(allowed), 1, generator=generator, device=allowed.device)
    return log_probs.masked_fill(allowed & (chance < exploration), 0.0)


def _side_by_side(steps: Sequence[_Drawn]) -> Trajectories:
    """Put the steps of each trajectory beside one another; what is over stays where it ended."""
    counts = [len(going) for going, _, _ in steps]
    going, here, chosen = (torch.cat(parts) for parts in zip(*steps, strict=True))
    time = torch.arange(len(steps), device=going.device)
    place = time.repeat_interleave(torch.tensor(counts, device=going.device))
    actions = chosen.new_full((counts[0], len(steps)), NO_ACTION)
    actions[going, place] = chosen
    states = here.new_empty(counts[0], len(steps), here.shape[-1])
    states[going, place] = here
    where = time.minimum((actions != NO_ACTION).sum(-1, keepdim=True) - 1)
    return Trajectories(states.gather(1, where[..., None].expand(states.shape)), actions)


def _even(mask: Bool[Tensor, "n a"]) -> Tensor:
    share = mask / mask.sum(-1, keepdim=True).clamp(min=1)
    return share.log()


def _turned(states: Tensor, actions: Tensor) -> Trajectories:
    """Bring what was noted from the end, the stop first, into the order of building."""
    steps = torch.arange(actions.shape[1], device=actions.device)
    last = (actions != NO_ACTION).sum(-1, keepdim=True) - 1
    place = last - steps
    taken = actions.gather(1, place.clamp(min=0)).where(place >= 0, NO_ACTION)
    where = place.clamp(min=0)[..., None].expand(states.shape)
    return Trajectories(states.gather(1, where), taken)
