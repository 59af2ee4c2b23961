"""A task of our own, in the few lines that docs/control.md shows: push a dot to where it is asked.

An episode is over, and not merely cut off, where the dot leaves the field.
"""

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box


class Dot(gymnasium.Env):
    """Place and goal on a line; an action is a step, and the distance to the goal is paid."""

    observation_space = Box(-4, 4, (2,), np.float32)
    action_space = Box(-2, 2, (1,), np.float32)
    goes = 0.2

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.state.copy(), {}

    def step(self, action):
        self.state[0] += self.goes * action[0]
        reward = 1.0 - abs(float(self.state[0] - self.state[1]))
        return self.state.copy(), reward, bool(abs(self.state[0]) > 2), False, {}


def has_left(observations, actions, next_observations):
    return torch.abs(next_observations[:, 0]) > 2


def closeness(observations, actions, next_observations):
    return 1 - (next_observations[:, 0] - next_observations[:, 1]).abs()


for name in ("Dot-v0", "Spot-v0"):
    gymnasium.register(name, Dot, max_episode_steps=20)


class Idle(Dot):
    """The dot's task where nothing is paid: no policy is better than another."""

    def step(self, action):
        seen, _, is_over, is_late, facts = super().step(action)
        return seen, 0.0, is_over, is_late, facts


gymnasium.register("Idle-v0", Idle, max_episode_steps=20)
