"""HTML that is safe by construction: plain text is escaped wherever it is put in."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Sequence
from typing import Union

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
VOID = {"img", "input", "link", "meta"}

Child = Union["str", "Iterable[Child]", None]


class Html(str):
    """Markup that has been escaped; everything else that is a string is text."""


def text(value: str) -> Html:
    """Escape text; half surrogates and control characters are shown as replacement characters."""
    whole = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return Html(html.escape(CONTROL.sub("\N{REPLACEMENT CHARACTER}", whole)))


def tag(name: str, /, *children: Child, **attributes: str | float | bool | None) -> Html:
    """Build an element: `tag("p", "a < b", class_="note", aria_label="x")`."""
    parts = [name]
    for key, value in attributes.items():
        key = key.rstrip("_").replace("_", "-")
        if value is True:
            parts.append(key)
        elif value is not None and value is not False:
            shown = f"{value:.6g}" if isinstance(value, float) else str(value)
            parts.append(f'{key}="{text(shown)}"')
    opening = f"<{' '.join(parts)}>"
    return Html(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def join(children: Iterable[Child]) -> Html:
    """Put markup and text in a row."""
    parts = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, str):
            parts.append(text(child))
        elif child is not None:
            parts.append(join(child))
    return Html("".join(parts))


def hue(place: int) -> int:
    """Return the palette's colour of a run."""
    return place % 6


def chip(place: int) -> Html:
    """Draw the mark of a run, which its label stands beside."""
    return tag("i", class_=f"chip hue{hue(place)}", aria_hidden="true")


def table(heads: Iterable[Child], rows: Iterable[Sequence[Child]], class_: str = "") -> Html:
    """Write a table that scrolls on its own where the page is narrow."""
    head = tag("tr", [tag("th", cell, scope="col") for cell in heads])
    body = [
        tag("tr", tag("th", row[0], scope="row"), [tag("td", cell) for cell in row[1:]])
        for row in rows
    ]
    whole = tag("table", tag("thead", head), tag("tbody", body), class_=class_ or None)
    return tag("div", whole, class_="scroll", tabindex=0, role="region", aria_label="Table")
