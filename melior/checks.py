"""Checks of options: each says what is needed and what was found; no torch."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import fields


def in_range(
    name: str,
    value: float,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """Check that a value is finite and within its bounds.

    Args:
        name: the option as the user writes it.
        value: what was given.
        low: the smallest value that is right.
        high: the largest value that is right.
        above: `low` itself is wrong.
        below: `high` itself is wrong.

    Raises:
        ValueError: naming the option, the range and what was found.
    """
    is_right = (low < value if above else low <= value) and (
        value < high if below else value <= high
    )
    if math.isfinite(value) and is_right:
        return
    bounds = []
    if low > -math.inf:
        bounds.append(f"{'above' if above else 'at least'} {low:g}")
    if high < math.inf:
        bounds.append(f"{'below' if below else 'at most'} {high:g}")
    raise ValueError(f"{name} must be {' and '.join(bounds) or 'finite'}; found {value:g}")


def one_of(name: str, value: str, allowed: Iterable[str]) -> None:
    """Check that a word is one of those that are known, and say which comes nearest."""
    import difflib

    known = list(allowed)
    if value in known:
        return
    near = difflib.get_close_matches(value, known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"{name} must be one of {', '.join(known)}; found {value!r}{hint}")


def not_read(config: object, names: Iterable[str], where: str) -> None:
    """Check that options which nothing would read are left at their defaults.

    Args:
        config: a dataclass that holds them.
        names: of the options.
        where: in which case nothing reads them, such as "with --data".

    Raises:
        ValueError: one was given.
    """
    defaults = {field.name: field.default for field in fields(config)}  # type: ignore[arg-type]  # any dataclass
    for name in names:
        if (found := getattr(config, name)) != defaults[name]:
            option = name.replace("_", "-")
            raise ValueError(f"--{option} is not read {where}: leave it out; found {found}")


_DEVICES = {"auto", "cpu", "cuda", "mps", "xpu", "hpu", "npu", "mlu", "musa", "xla"}


def known_device(name: str) -> None:
    """Check that a device is of a kind that torch knows, before torch is imported.

    Raises:
        ValueError: it is not.
    """
    kind, colon, number = name.partition(":")
    if kind not in _DEVICES or (colon and not number.isdecimal()):
        raise ValueError(
            f"device {name!r}: needs to be one that torch can use here, such as cpu, cuda, cuda:1"
            " or mps; use auto or cpu"
        )
