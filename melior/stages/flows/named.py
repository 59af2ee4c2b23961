"""From options to environments and rewards, checked before anything learns from them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from melior import ops
from melior.data.flow import FlowEnvironment
from melior.envs.flow import Fillings, Growing, HyperGrid, Strings
from melior.envs.flow_graph import check_paths
from melior.own import own
from melior.rewards.flow import (
    LogReward,
    Modes,
    around_modes,
    binding_site,
    corner_peaks,
    corners,
    cosine,
    drawn_modes,
    nearest_mode,
    sparse,
)
from melior.rewards.flow_chemistry import binding_rna, drug_likeness
from melior.stages.flows.options import FlowOptions, RewardOptions

KINDS = {"strings": Strings, "growing": Growing, "fillings": Fillings}
SITE = 6
"""Letters of a binding site, at most."""


def load_environment(options: FlowOptions) -> FlowEnvironment:
    """Return the environment, once its two directions agree on what is near the start.

    Raises:
        ValueError: its masks disagree, its paths do not end, or there is nothing to choose.
    """
    env: object
    if options.env == "grid":
        env = HyperGrid(options.axes, options.height)
    elif options.env in KINDS:
        env = KINDS[options.env](options.length, options.letters)
    else:
        env = own(options.env)
    if isinstance(env, type):
        raise ValueError(
            f"{options.env}: an environment is needed; found its class; add a line such as"
            f" 'env = {env.__name__}()' and name that"
        )
    if not isinstance(env, FlowEnvironment):
        members = ", ".join(sorted(_members()))
        missing = ", ".join(name for name in sorted(_members()) if not hasattr(env, name))
        raise ValueError(f"{options.env}: an environment needs {members}; found no {missing}")
    check_paths(env)
    return env


def load_reward(options: RewardOptions, flow: FlowOptions) -> LogReward:
    """Return the log-reward of objects; of one's own, with a sentence where it is no such thing."""
    generator = ops.generator(options.reward_seed)
    makers: dict[str, Callable[[], LogReward]] = {
        "corners": lambda: corners(flow.height),
        "sparse": lambda: sparse(flow.height),
        "cosine": lambda: cosine(flow.height),
        "modes": lambda: nearest_mode(
            _drawn_modes(options, flow),
            word_bits=_word_bits(flow),
            sharpness=options.sharpness,
        ),
        "rna": lambda: binding_rna(
            torch.randint(1, 5, (flow.length,), generator=generator), sharpness=options.sharpness
        ),
        "qed": lambda: drug_likeness(sharpness=options.sharpness),
        "site": lambda: binding_site(
            torch.randn(min(SITE, flow.length), 4, generator=generator),
            sharpness=options.sharpness,
        ),
    }
    if options.reward in makers:
        return makers[options.reward]()
    function = own(options.reward)
    if not callable(function) or isinstance(function, type):
        raise ValueError(f"{options.reward}: a function of objects is needed; found {function!r}")
    return _shaped(function, options.reward)


def load_modes(options: RewardOptions, flow: FlowOptions) -> Modes | None:
    """Return the modes of a reward that knows where they are; None of another."""
    if options.reward == "corners" and flow.env == "grid":
        return corner_peaks(flow.height, flow.axes)
    if options.reward == "modes":
        return around_modes(
            _drawn_modes(options, flow),
            word_bits=_word_bits(flow),
            sharpness=options.sharpness,
            share=options.mode_share,
        )
    return None


def _drawn_modes(options: RewardOptions, flow: FlowOptions) -> Int[Tensor, "m bits"]:
    generator, bits = ops.generator(options.reward_seed), flow.length * _word_bits(flow)
    return drawn_modes(bits, options.n_modes, generator=generator)


def _word_bits(flow: FlowOptions) -> int:
    return flow.letters.bit_length() - 1


def _members() -> set[str]:
    return {name for name in vars(FlowEnvironment) if not name.startswith("_")}


def _shaped(function: Callable[[Tensor], object], where: str) -> LogReward:
    def log_reward(objects: Int[Tensor, "n d"]) -> Float[Tensor, " n"]:
        found = function(objects)
        if not isinstance(found, Tensor) or found.shape != (len(objects),):
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(
                f"{where}: a tensor of one log-reward an object is needed, {len(objects)} here;"
                f" found {shape}"
            )
        return found.to(torch.get_default_dtype())

    return log_reward
