"""Options of flows: what is built, and what it is worth; checked when built, without torch."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass

from melior.checks import in_range, not_read
from melior.own import check_name

ENVIRONMENTS = ("grid", "strings", "growing", "fillings")
REWARDS = {
    "corners": ("grid",),
    "sparse": ("grid",),
    "cosine": ("grid",),
    "modes": ("strings", "fillings"),
    "site": ("strings", "fillings"),
    "rna": ("strings", "growing", "fillings"),
    "qed": ("growing",),
}
"""Name, and the environments whose objects it can be asked of."""
READ_BY = {
    "reward_seed": ("modes", "site", "rna"),
    "n_modes": ("modes",),
    "sharpness": ("modes", "site", "rna", "qed"),
}
"""Option, and the rewards that read it."""
LETTERS = {"site": 4, "rna": 4, "qed": 12}
"""How many a reward reads; of `qed` one to a fragment."""
EXTRAS = {"rna": ("RNA", "rna"), "qed": ("rdkit", "molecules")}
"""Package that a reward needs, and the extra that brings it."""


@dataclass(frozen=True)
class FlowOptions:
    """What is built, step by step."""

    env: str = "grid"
    """`grid`: a cell, axis by axis; `strings`: letters from the left; `growing`: the same, but they
    may stop early; `fillings`: letters at places in any order; or one of your own: `FILE.py:NAME`,
    where NAME is an environment."""
    axes: int = 2
    """Of a grid."""
    height: int = 8
    """Cells along each axis of a grid."""
    length: int = 8
    """Places of a string."""
    letters: int = 4
    """Of a string; DNA has 4, and words of k bits are letters of an alphabet of 2^k."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_name("env", self.env, ENVIRONMENTS)
        in_range("axes", self.axes, 1)
        in_range("height", self.height, 2)
        in_range("length", self.length, 1)
        in_range("letters", self.letters, 2)
        if self.env in ENVIRONMENTS:
            unread = ("length", "letters") if self.env == "grid" else ("axes", "height")
            not_read(self, unread, f"with --env {self.env}")


@dataclass(frozen=True)
class RewardOptions:
    """What is worth building."""

    reward: str
    """Of a grid `corners`, `sparse` or `cosine`; of strings `modes` (bits near one of some
    strings), `site` (DNA that a factor binds to), `rna` (RNA that binds to another; needs the extra
    `rna`) or `qed` (growing strings of fragments as molecules; needs the extra `molecules`); or
    your own: `FILE.py:NAME`, a function from objects, a row each, to their log-rewards."""
    reward_seed: int = 0
    """Draws the modes, the site, or the RNA that is bound."""
    n_modes: int = 4
    """Of `modes`."""
    sharpness: float = 3.0
    """Of `modes`, `site`, `rna` and `qed`: how much a difference counts in the log-reward."""
    mode_share: float = 0.9
    """Objects worth at least this share of the best one count as modes; of `modes`, what is worth
    it of one of those strings reaches that one; where objects are too many to list and the reward
    does not know its modes, the best is that of what was built."""

    def __post_init__(self) -> None:
        """Check the ranges."""
        check_name("reward", self.reward, REWARDS)
        in_range("reward_seed", self.reward_seed, 0, 2**63 - 1)
        in_range("n_modes", self.n_modes, 1)
        in_range("sharpness", self.sharpness, 0, above=True)
        in_range("mode_share", self.mode_share, 0, 1, above=True)
        if self.reward in REWARDS:
            unread = [name for name, of in READ_BY.items() if self.reward not in of]
            not_read(self, unread, f"with --reward {self.reward}")

    def check(self, flow: FlowOptions) -> None:
        """Check that the reward can be asked of what is built.

        Raises:
            ValueError: it is for other objects.
        """
        known = REWARDS.get(self.reward)
        if known and flow.env not in known:
            raise ValueError(f"reward {self.reward} is for {' and '.join(known)}; found {flow.env}")
        if self.reward == "sparse" and flow.axes != 2:
            raise ValueError(f"reward sparse is for a grid of 2 axes; found {flow.axes}")
        wanted = LETTERS.get(self.reward, flow.letters)
        if flow.letters != wanted:
            raise ValueError(
                f"reward {self.reward}: letters must be {wanted}; found {flow.letters}"
            )
        package, extra = EXTRAS.get(self.reward, ("", ""))
        if package and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"reward {self.reward} needs the extra {extra!r}; found {package} not installed;"
                f" pip install 'melior[{extra}]'"
            )
        bits = flow.length * (flow.letters.bit_length() - 1)
        if self.reward == "modes" and (flow.letters & flow.letters - 1 or bits % 8):
            raise ValueError(
                "reward modes is for words of bits: letters must be a power of 2 and the string's"
                f" bits a multiple of 8; found {flow.length} letters of {flow.letters}"
            )
