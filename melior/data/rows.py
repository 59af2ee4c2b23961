"""A row's columns, and what their values mean: turns, numbers, labels, ratings.

Whatever is not what was needed is said with the row, the column and what stood there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from melior.data.formats import Fields
from melior.data.sources import near
from melior.records import Facts, Turn, Turns

ROLES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "observation": "tool",
}
"""Names in `from` that mean a role."""


GAPS = (None, "", "N/A")
"""What stands in a column of ratings where nobody rated."""


class Row:
    """The columns of one row; what was not read when `rest` is called are its facts."""

    def __init__(self, origin: str, fields: Fields, layout: str = "a row") -> None:
        self.origin = origin
        self.fields = fields
        self.layout = layout
        self._read: set[str] = set()

    def __contains__(self, name: str) -> bool:
        """Say whether a column is there and not null."""
        return self.fields.get(name) is not None

    def get(self, name: str) -> Any:
        """Return a column that must be there."""
        self._read.add(name)
        if name not in self.fields:
            raise ValueError(
                f"{self.origin}: {self.layout} needs {name!r}; found {list(self.fields)}"
                + near(name, [other for other in self.fields if other not in self._read])
            )
        return self.fields[name]

    def optional(self, name: str) -> Any:
        """Return a column, or None where it is absent."""
        self._read.add(name)
        return self.fields.get(name)

    def turns(self, name: str, role: str) -> Turns:
        """Return a column of text or messages as turns; plain text is said by `role`."""
        return turns(self.get(name), role, f"{self.origin}: {name!r}")

    def text(self, name: str) -> str:
        """Return a column of text; null or absent is empty."""
        value = self.optional(name) or ""
        if not isinstance(value, str):
            raise ValueError(f"{self.origin}: {name!r} needs text; found {spelled(value)}")
        return value

    def number(self, name: str) -> float | None:
        """Return a column of finite numbers; None where it is null or absent."""
        return number(self.optional(name), f"{self.origin}: {name!r}")

    def label(self, name: str) -> float:
        """Return 1 for a true label and 0 for a false one."""
        value = self.get(name)
        word = str(value).lower()
        if word not in ("true", "false", "1", "0", "1.0", "0.0"):
            raise ValueError(f"{self.origin}: {name!r} needs true or false; found {spelled(value)}")
        return float(word in ("true", "1", "1.0"))

    def list(self, name: str) -> list[Any]:
        """Return a column that holds a list."""
        value = self.get(name)
        if not isinstance(value, list):
            raise ValueError(f"{self.origin}: {name!r} needs a list; found {spelled(value)}")
        return value

    def objects(self, name: str, each: str) -> Iterator[Row]:
        """Yield the objects of a column that lists them, as rows of their own."""
        for i, value in enumerate(self.list(name), 1):
            where = f"{self.origin}: {each} {i}"
            if not isinstance(value, dict):
                raise ValueError(f"{where} needs an object; found {spelled(value)}")
            yield Row(where, value, "it")

    def rest(self) -> Facts:
        """Return the columns that were not read."""
        return {name: value for name, value in self.fields.items() if name not in self._read}


def turns(value: object, role: str, where: str) -> Turns:
    """Return text or messages as turns; plain text is said by `role`."""
    if isinstance(value, str):
        return (Turn(role, value),)
    if isinstance(value, dict):
        return (_turn(value, where),)
    if not isinstance(value, list):
        raise ValueError(f"{where} needs text or messages; found {spelled(value)}")
    if not value and role == "assistant":
        raise ValueError(f"{where} needs at least one message; found an empty list")
    return tuple(_turn(one, f"{where} message {i}") for i, one in enumerate(value, 1))


def number(value: object, where: str) -> float | None:
    """Return a finite number, also where it is spelled as text; None stays None."""
    if value is None or value == "":
        return None
    try:
        result = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        result = math.nan
    if not math.isfinite(result):
        raise ValueError(f"{where} needs a finite number; found {spelled(value)}")
    return result


def ratings(values: Mapping[str, object], where: str) -> Facts:
    """Return named ratings as numbers; a gap (null, nan, N/A) is left out."""
    present = {
        name: value
        for name, value in values.items()
        if value not in GAPS and not (isinstance(value, float) and math.isnan(value))
    }
    return {name: number(value, f"{where}: {name!r}") for name, value in present.items()}


def _turn(value: object, where: str) -> Turn:
    if not isinstance(value, dict):
        raise ValueError(f"{where} needs 'role' and 'content'; found {spelled(value)}")
    extra = {name: said for name, said in value.items() if said is not None}
    names = ("role", "content") if "role" in value else ("from", "value")
    role, content = extra.pop(names[0], None), extra.pop(names[1], None)
    if not isinstance(role, str) or names[1] not in value:
        raise ValueError(f"{where} needs 'role' and 'content'; found {list(value)}")
    if content is None and extra:
        content = ""  # A message may consist of tool calls alone.
    if isinstance(content, list):
        content = "".join(_part(part, where) for part in content)
    if not isinstance(content, str):
        raise ValueError(f"{where}: 'content' needs text; found {spelled(content)}")
    return Turn(ROLES.get(role, role) if names[0] == "from" else role, content, extra)


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    found = part.get("type") if isinstance(part, dict) else part
    raise ValueError(f"{where}: 'content' needs parts of type 'text'; found {spelled(found)}")


def spelled(value: object) -> str:
    """Say what was found, briefly and in the words of JSON."""
    if value is None or value == []:
        return "null" if value is None else "an empty list"
    names = {bool: "", str: "", int: "the number ", float: "the number ", dict: "an object "}
    text = repr(value).lower() if isinstance(value, bool) else repr(value)
    return names.get(type(value), "") + (text if len(text) <= 60 else text[:57] + "...")
