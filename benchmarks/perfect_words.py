"""What 1000 objects of a perfect sampler are worth, of the strings of `melior gfn --reward modes`.

    python benchmarks/perfect_words.py --length 12 --letters 4 --sharpness 48

All strings are listed, so that shares are exact: 16.8 million of 24 bits take a minute and 2 GB.
"""

from __future__ import annotations

import argparse

import torch

from melior import ops
from melior.evaluation.flow import top
from melior.rewards.flow import drawn_modes, nearest_mode

CHUNK = 1 << 20


def main() -> None:
    asked = _arguments()
    bits = (asked.letters - 1).bit_length() * asked.length
    modes = drawn_modes(bits, asked.n_modes, generator=ops.generator(asked.reward_seed))
    # A letter of one bit: the reward is the same, and needs no words.
    log_reward = nearest_mode(modes, sharpness=asked.sharpness)
    places = torch.arange(1 << bits).split(CHUNK)
    logs = torch.cat([log_reward(_letters(part, bits)) for part in places]).double()
    shares = logs.softmax(0).cumsum(0)
    drawn = torch.rand(asked.objects, generator=ops.generator(asked.seed), dtype=torch.float64)
    objects = _letters(torch.searchsorted(shares, drawn).clamp(max=len(logs) - 1), bits)
    worth = log_reward(objects)
    reached = {tuple(one) for one in objects[worth == 0].tolist()}
    _, best = top(objects, worth, 100)
    print(
        f"{len(logs)} strings, of which the {asked.n_modes} modes hold "
        f"{float((logs == 0).double().sum() / logs.exp().sum()):.4f}; of {asked.objects} objects: "
        f"{len(reached)} modes, mean reward {float(worth.exp().mean()):.4f}, of the 100 best "
        f"{float(best.exp().mean()):.4f}"
    )


def _letters(places: torch.Tensor, bits: int) -> torch.Tensor:
    """Return strings of bits as letters, 1 and 2, by their numbers."""
    return 1 + (places[:, None] >> torch.arange(bits - 1, -1, -1) & 1)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--length", type=int, default=12)
    parser.add_argument("--letters", type=int, default=4)
    parser.add_argument("--sharpness", type=float, default=48.0)
    parser.add_argument("--n-modes", type=int, default=4)
    parser.add_argument("--reward-seed", type=int, default=0)
    parser.add_argument("--objects", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
