r"""Texts as token ids, word by word, each word looked up once.

A byte-level BPE cuts a text into words by an expression, and each word into tokens by itself; the
same words come again and again. Here Python's `re` cuts, and a table gives what the tokenizer has
made of a word: the same ids at a third of its time.

Only where that is certain. The expressions of the tokenizer's library know `\p{L}`, `\p{N}` and
`\s`, which are other characters in each version of Unicode: a text that holds one on which versions
disagree is left to the tokenizer, and so is any tokenizer whose words are cut otherwise.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain, groupby, product
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

CONTRACTIONS = "'s|'t|'re|'ve|'m|'ll|'d"
GPT2 = rf"{CONTRACTIONS}| ?\p{{L}}+| ?\p{{N}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?!\S)|\s+"
"""What `ByteLevel` cuts by (Radford et al. 2019)."""
APART = rf"\p{{N}}|{CONTRACTIONS}| ?\p{{L}}+| ?[^\s\p{{L}}\p{{N}}]+|\s+(?![^\s\p{{N}}])|\s+"
"""The same behind `Digits`, which sets each digit apart first."""
LLAMA3 = (
    rf"(?i:{CONTRACTIONS})|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace("{1,3}", "")
MOST_WORDS = 1 << 18
LONGEST = 64
"""Characters of a word that is kept."""
SYMBOLS = r"\U0001f300-\U0001faff"
"""Pictures: no letters, digits or spaces, nor reserved for any."""
SPACES = frozenset((*range(0x09, 0x0E), 0x85))
"""Control characters that count as space."""
DOUBTFUL = frozenset((0x17F, 0x212A, 0x180E))
"""Letters that are an s and a k where case does not count; what was a space for some years."""


class Words:
    """A tokenizer's words, as far as they have been met.

    Args:
        backend: the tokenizer; its padding and truncation must be off when it is asked.
        expression: what cuts its words.
        is_composed: it composes characters (NFC) before that.
    """

    def __init__(self, backend: Tokenizer, expression: str, *, is_composed: bool) -> None:
        self._backend = backend
        self._is_composed = is_composed
        self._cut = _compiled(expression).findall
        added = {token.content: i for i, token in backend.get_added_tokens_decoder().items()}
        longest_first = sorted(filter(None, added), key=len, reverse=True)
        self._added = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})").split
        self._known = {content: [i] for content, i in added.items()}
        self._table = _Table(self._of_word)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens around it."""
        rows = [self._ids(text) if self._is_plain(text) else [] for text in texts]
        left = [i for i, text in enumerate(texts) if text and not rows[i]]
        slow = self._backend.encode_batch_fast([texts[i] for i in left], add_special_tokens=False)
        for i, row in zip(left, slow, strict=True):
            rows[i] = row.ids
        return rows

    def _is_plain(self, text: str) -> bool:
        """Say whether versions of Unicode agree on all characters of a text."""
        if text.isascii():
            return True
        is_composed = not self._is_composed or unicodedata.is_normalized("NFC", text)
        return is_composed and _unsettled().search(text) is None

    def _ids(self, text: str) -> list[int]:
        of_word = self._table.__getitem__
        ids: list[int] = []
        for place, part in enumerate(self._added(text)):
            if place % 2:
                ids += self._known[part]
            else:
                ids += chain.from_iterable(map(of_word, self._cut(part)))
        return ids

    def _of_word(self, word: str) -> list[int]:
        return list(self._backend.encode(word, add_special_tokens=False).ids)


class _Table(dict[str, list[int]]):
    """What a function says of a word, asked once while there is room."""

    def __init__(self, ask: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._ask = ask

    def __missing__(self, word: str) -> list[int]:
        found = self._ask(word)
        if len(word) <= LONGEST:
            if len(self) >= MOST_WORDS:
                self.clear()
            self[word] = found
        return found


def words(backend: Tokenizer) -> Words | None:
    """Return a tokenizer's words, or None where its texts must be read by itself."""
    expression = _expression(_rules(backend.pre_tokenizer))
    normalizer = _rules(backend.normalizer).get("type")
    model, added = backend.model, backend.get_added_tokens_decoder().values()
    if expression is None or normalizer not in (None, "NFC"):
        return None
    if not isinstance(model, BPE) or model.dropout:
        return None
    if any(one.lstrip or one.rstrip or one.single_word for one in added):
        return None
    if len({one.normalized for one in added}) > 1:  # are looked for one kind after the other
        return None
    found = Words(backend, expression, is_composed=normalizer == "NFC")
    return found if _agree(found, backend) else None


def _rules(part: PreTokenizer | Normalizer | None) -> dict[str, Any]:
    """Return a part of a tokenizer as its file would say it; nothing where it has none."""
    return json.loads(part.__getstate__()) if part else {}


def _expression(rules: dict[str, Any]) -> str | None:
    """Return what cuts the words, where it is one of the known ways."""
    *before, last = [dict(step) for step in rules.get("pretokenizers", [rules])] or [{}]
    for step in (*before, last):
        step.pop("trim_offsets", None)  # where a token stood is not asked
    bytes_only = {"type": "ByteLevel", "add_prefix_space": False}
    if last == bytes_only | {"use_regex": True}:
        apart = [{"type": "Digits", "individual_digits": True}]
        return GPT2 if not before else APART if before == apart else None
    if last != bytes_only | {"use_regex": False}:
        return None
    for known in (GPT2, LLAMA3, QWEN2):
        cut = {"pattern": {"Regex": known}, "behavior": "Isolated", "invert": False}
        if before == [{"type": "Split"} | cut]:
            return known
    return None


def _agree(found: Words, backend: Tokenizer) -> bool:
    """Say whether both make the same of characters of all kinds in all orders of three.

    What another version of the tokenizer's library reads otherwise comes to light here.
    """
    kinds = ["a", "Z", "é", "中", "7", "²", " ", "\t", "\n", "\r", "\xa0", "'", "'ll", ".", "💡"]
    probe = "".join(map("".join, product(kinds, repeat=3)))
    return found([probe]) == [backend.encode(probe, add_special_tokens=False).ids]


@cache
def _compiled(expression: str) -> re.Pattern[str]:
    """Compile an expression whose classes are written as what they hold."""
    parts = re.split(r"(\[[^]]*\])", expression.replace(r"\S", r"[^\s]"))
    for place, part in enumerate(parts):
        for name, kind in ((r"\s", "s"), (r"\p{L}", "L"), (r"\p{N}", "N")):
            held = _settled()[kind]
            part = part.replace(name, held if place % 2 else f"[{held}]")
        parts[place] = part
    return re.compile("".join(parts))


@cache
def _unsettled() -> re.Pattern[str]:
    return re.compile(f"[^{''.join(_settled().values())}{SYMBOLS}]")


@cache
def _settled() -> dict[str, str]:
    """Return by kind (space, letter, number, other) the characters that versions agree on.

    They were assigned in Unicode 3.2, of 2002, and are of the same kind today.
    """
    codes = range(0x10000)
    old, new = ([_kind(name, code) for name, code in zip(map(data.category, map(chr, codes)), codes,
                 strict=True)] for data in (unicodedata.ucd_3_2_0, unicodedata))  # fmt: skip
    spans: dict[str, list[str]] = {kind: [] for kind in ("s", "L", "N", "o", "")}
    start = 0
    for kind, run in groupby(a if a == b else "" for a, b in zip(old, new, strict=True)):
        end = start + sum(1 for _ in run)
        spans[kind].append(rf"\u{start:04x}-\u{end - 1:04x}")
        start = end
    return {kind: "".join(found) for kind, found in spans.items() if kind}


def _kind(category: str, code: int) -> str:
    """Return a character's kind by its category; nothing for what is none, or not certain."""
    if category in ("Cn", "Cs", "Co") or code in DOUBTFUL:
        return ""
    if category[0] == "Z" or code in SPACES:
        return "s"
    return category[0] if category[0] in "LN" else "o"
