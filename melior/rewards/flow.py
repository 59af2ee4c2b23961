"""Rewards of what flows build: known landscapes of grids, of bits and of DNA, in logs.

Each maker returns a function from objects `[n d]` to their log-rewards `[n]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LogReward = Callable[[Int[Tensor, "n d"]], Float[Tensor, " n"]]


@dataclass(frozen=True)
class Modes:
    """The modes of a reward, however many objects there are."""

    count: int
    among: Callable[[Int[Tensor, "n d"]], Bool[Tensor, " m"]]
    """Says which of them were reached, when these objects were built."""


MOST_AXES = 16
"""Of a grid whose corners are told apart."""
BIT_WORDS = ("00000000", "11111111", "11110000", "00001111", "00111100")
"""Of which the modes of bit sequences are made; arXiv 2201.13259."""


def corners(height: int, *, least: float = 0.01, ring: float = 0.5, peak: float = 2.0) -> LogReward:
    """Return the grid's classic: a plateau in each corner, on it a peak, and little between them.

    Bengio, Jain, Korablyov, Precup, Bengio 2021, arXiv 2106.04399. The peak's inner and
    outer bound do not belong to it.
    """

    def log_reward(cells: Tensor) -> Tensor:
        off_centre = _off_centre(cells, height)
        is_out = (off_centre > 0.5).all(-1)
        return (least + ring * is_out + peak * _on_peak(cells, height)).log()

    return log_reward


def corner_peaks(height: int, n_axes: int) -> Modes | None:
    """Return the peaks of `corners`, one in each corner; None where they are none or too many."""
    if n_axes > MOST_AXES or not _on_peak(torch.arange(height)[:, None], height).any():
        return None
    place = 2 ** torch.arange(n_axes)

    def among(cells: Tensor) -> Tensor:
        corner = ((cells > (height - 1) / 2).long() * place).sum(-1)
        found = torch.zeros(2**n_axes, dtype=torch.bool)
        return found.index_fill(0, corner[_on_peak(cells, height)], True)

    return Modes(2**n_axes, among)


def sparse(height: int, *, least: float = 1e-4) -> LogReward:
    """Return a reward of 1 one cell inside each corner of the plane but the start's, else little.

    Of the plane only: `(h-2, h-2)`, `(h-2, 1)` and `(1, h-2)`.
    """
    places = [[height - 2, height - 2], [height - 2, 1], [1, height - 2]]

    def log_reward(cells: Tensor) -> Tensor:
        wanted = cells.new_tensor(places)
        is_one = (cells[:, None] == wanted).all(-1).any(-1)
        return torch.where(is_one, 1.0, least).log()

    return log_reward


def cosine(height: int, *, least: float = 0.1, scale: float = 0.5) -> LogReward:
    """Return a grid of many modes: `least + scale` times a product of waves under a bell.

    The "cosine" landscape of torchgfn: `(cos(50 u) + 1) N(5 u)` with `u` a cell's place from -0.5
    to 0.5 along each axis, and `N` the normal density.
    """

    def log_reward(cells: Tensor) -> Tensor:
        u = cells / (height - 1) - 0.5
        waves = ((50 * u).cos() + 1) * _normal_density(5 * u)
        return (least + scale * waves.prod(-1)).log()

    return log_reward


def nearest_mode(
    modes: Int[Tensor, "m d"], *, word_bits: int = 1, sharpness: float = 3.0
) -> LogReward:
    """Return `exp(-sharpness * least distance)`, the distance being the share of bits that differ.

    Malkin, Jain, Bengio, Sun, Bengio 2022, arXiv 2201.13259, who take `exp` of minus the
    edit distance. Here it is the Hamming distance, which is never smaller, as in torchgfn.

    Args:
        modes: as bits, 0 and 1.
        word_bits: how many bits a letter stands for; letter 1 is the word of zeros.
        sharpness: at a distance of 1.
    """

    def log_reward(letters: Tensor) -> Tensor:
        differs = _share_that_differs(letters, modes, word_bits)
        return (-sharpness * differs.amin(-1)).to(torch.get_default_dtype())

    return log_reward


def around_modes(
    modes: Int[Tensor, "m d"], *, word_bits: int, sharpness: float, share: float
) -> Modes:
    """Return the modes of `nearest_mode`: one is reached by what is worth a share of it or more.

    arXiv 2201.13259 counts a mode at an edit distance of at most 28 of 120 bits.
    """
    distinct = modes.unique(dim=0)
    # A little more, as shares of bits are rounded.
    farthest = -math.log(share) / sharpness + 1e-9

    def among(letters: Tensor) -> Tensor:
        return (_share_that_differs(letters, distinct, word_bits) <= farthest).any(0)

    return Modes(len(distinct), among)


def _share_that_differs(letters: Tensor, modes: Tensor, word_bits: int) -> Float[Tensor, "n m"]:
    bits = as_bits(letters, word_bits)
    return (bits[:, None] != modes.to(bits)).double().mean(-1)


def as_bits(letters: Int[Tensor, "n d"], word_bits: int) -> Int[Tensor, "n bits"]:
    """Write full strings of words of bits out, the highest bit of each word first."""
    shifts = torch.arange(word_bits - 1, -1, -1, device=letters.device)
    return ((letters - 1)[..., None] >> shifts & 1).flatten(1)


def drawn_modes(length: int, count: int, *, generator: torch.Generator) -> Int[Tensor, "m bits"]:
    """Draw strings of bits made of the paper's five words; arXiv 2201.13259.

    Raises:
        ValueError: the length is no multiple of 8.
    """
    n_words, rest = divmod(length, 8)
    if rest or not n_words:
        raise ValueError(f"length must be a multiple of 8, the bits of a word; found {length}")
    words = torch.tensor([[int(bit) for bit in word] for word in BIT_WORDS])
    return words[torch.randint(len(words), (count, n_words), generator=generator)].flatten(1)


def binding_site(log_odds: Float[Tensor, "w 4"], *, sharpness: float = 1.0) -> LogReward:
    """Return how well a factor binds to DNA: the best of all windows, on either strand.

    A made-up landscape of the kind of TF-Bind-8 (Barrera et al. 2016), whose measured table is not
    ours to give away: a site is a matrix of log-odds of the letters A C G T, 1 to 4 here, and
    the other strand is read backwards with A and T, C and G swapped.
    """

    def log_reward(letters: Tensor) -> Tensor:
        both = torch.stack([letters, (5 - letters).flip(-1)])
        windows = both.unfold(-1, len(log_odds), 1) - 1
        place = torch.arange(len(log_odds), device=letters.device)
        scores = log_odds.to(letters.device)[place, windows].sum(-1)
        return sharpness * scores.amax(dim=(0, 2))

    return log_reward


def checked(log_reward: LogReward) -> LogReward:
    """Return the reward, with a sentence where a trajectory could not be learned from.

    Raises:
        ValueError: from the function, naming the first object whose log-reward is not finite.
    """

    def log_reward_or_sentence(objects: Tensor) -> Tensor:
        found = log_reward(objects)
        wrong = ~found.isfinite()
        if wrong.any():
            raise ValueError(
                "reward: finite log-rewards are needed to balance flows; found"
                f" {_first(wrong, found, objects)}; give what is worth nothing a small reward, such"
                " as 1e-4"
            )
        return found

    return log_reward_or_sentence


def summable(log_reward: LogReward) -> LogReward:
    """Return the reward, with a sentence where a sum over outcomes could not be taken.

    Raises:
        ValueError: from the function, naming the first object whose log-reward is nan or inf.
    """

    def log_reward_or_sentence(objects: Tensor) -> Tensor:
        found = log_reward(objects)
        wrong = found.isnan() | (found == torch.inf)
        if wrong.any():
            raise ValueError(
                "reward: a finite log-reward, or -inf for none, is needed; found"
                f" {_first(wrong, found, objects)}"
            )
        return found

    return log_reward_or_sentence


def _first(wrong: Bool[Tensor, " n"], found: Tensor, objects: Tensor) -> str:
    row = int(wrong.nonzero()[0])
    return f"{float(found[row])} of {objects[row].tolist()}"


def _on_peak(cells: Int[Tensor, "n d"], height: int) -> Bool[Tensor, " n"]:
    off_centre = _off_centre(cells, height)
    return ((off_centre > 0.6) & (off_centre < 0.8)).all(-1)


def _off_centre(cells: Tensor, height: int) -> Tensor:
    """Return how far each coordinate is from the middle, 1 at the walls."""
    return (2 * (cells / (height - 1) - 0.5)).abs()


def _normal_density(values: Tensor) -> Tensor:
    return (-values.square() / 2).exp() / (2 * torch.pi) ** 0.5
