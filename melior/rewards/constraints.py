"""Constraints that a program can verify, in the spirit of IFEval (Zhou et al. 2023, 2311.07911).

Each is a pure function of an answer and named parameters; `CONSTRAINTS` is the one table of
names. What the functions share:

* A *word* is what stands between white space and holds a letter or a digit: `don't`, `well-known`
  and `3.5` are one each, a lone dash is none; a script without spaces gives one word per stretch.
* Words and phrases are compared without regard to case, to Unicode composition, or to which of
  the straight and curly quotes is written.
* `at` is `exactly`, `at least` or `at most` n; `at most` asks for one at least, so that leaving the
  thing out is no way to meet it. Items that are counted (bullets, sentences, ...) count towards
  `at least` once when they are equal, so that saying one thing twice is no way either.
* Where an answer must contain something, it must say at least `OTHER_WORDS` words besides, so that
  copying the keyword alone is not an answer.
* An empty answer meets nothing; `rules.is_met` is the door that sees to it for every function.
"""

from __future__ import annotations

import inspect
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Final

from melior.checks import one_of

OTHER_WORDS: Final = 3
AT: Final = ("exactly", "at least", "at most")
_LIST_MARK = r"(?:[-*•–]|\d+[.)])"
_QUOTES = str.maketrans("“”„‘’", '"""\'\'')


def bullets(answer: str, *, n: int, at: str = "exactly") -> bool:
    """Count lines that begin with `-`, `*`, `•` or `–`, a space and a word, at any indentation.

    Numbered items, rules (`---`), bold lines (`**so**`) and bullets without a word do not count.
    """
    return _holds_items(_lines_after(r"[-*•–]", answer), n, at)


def numbered(answer: str, *, n: int, at: str = "exactly") -> bool:
    """Count lines that begin with a number, `.` or `)`, a space and a word, in order from 1 on.

    The same number again or a gap means that there is no such list.
    """
    marks = re.findall(r"^[ \t]*(\d{1,4})[.)][ \t]", answer, re.MULTILINE)
    runs = [int(mark) for mark in marks] == list(range(1, len(marks) + 1))
    return runs and _holds_items(_lines_after(r"\d{1,4}[.)]", answer), n, at)


def sentences(answer: str, *, n: int, at: str = "exactly") -> bool:
    """Count sentences.

    One ends with `.`, `!`, `?` or `…` before white space, with the full-width marks, at a blank
    line, or where a list item begins; it holds a word, and a last one without a mark counts.
    Decimals, `e.g.`, `Dr.`, initials and the numbers of a list end none.
    """
    return _holds_items(_sentences(answer), n, at)


def words(answer: str, *, n: int, at: str = "at most") -> bool:
    """Count words, marks of lists left out."""
    return _holds(len(split_words(answer)), n, at)


def lines(answer: str, *, n: int, at: str = "exactly") -> bool:
    """Count lines that hold a word."""
    return _holds_items([line for line in answer.splitlines() if split_words(line)], n, at)


def paragraphs(answer: str, *, n: int, at: str = "exactly") -> bool:
    """Count parts that hold a word and are separated by lines of three asterisks, `***`.

    Blank lines separate nothing, and a separator at either end does no harm.
    """
    parts = re.split(r"^[ \t]*\*\*\*[ \t]*$", answer, flags=re.MULTILINE)
    return _holds_items([part for part in parts if split_words(part)], n, at)


def keyword(answer: str, *, word: str, n: int = 1, at: str = "at least") -> bool:
    """Count a word or phrase, whole: `art` is not in `party`; `cats` is not `cat`."""
    pattern = _whole(word)
    return _holds(len(pattern.findall(_plain(answer))), n, at) and _says_more(answer, pattern)


def forbidden(answer: str, *, words: Sequence[str]) -> bool:
    """Ask that none of the words or phrases occurs, whole: another form is another word."""
    return not any(_whole(word).search(_plain(answer)) for word in words)


def no_commas(answer: str) -> bool:
    """Ask for no comma of any script, in numbers neither."""
    return not re.search("[,،、，]", answer)


def no_digits(answer: str) -> bool:
    """Ask for no digit of any script, in list numbers neither; numbers in words are fine."""
    return not any(letter.isdigit() for letter in answer)


def lower_case(answer: str) -> bool:
    """Ask that every letter that has a case is small, and that there is one."""
    return answer.islower()


def upper_case(answer: str) -> bool:
    """Ask that every letter that has a case is a capital, and that there is one."""
    return answer.isupper()


def capital_words(answer: str, *, n: int, at: str = "at least") -> bool:
    """Count words of two or more letters that are all capitals; not when the whole answer is."""
    found = [
        word for word in split_words(answer) if word.isupper() and sum(map(str.isalpha, word)) > 1
    ]
    return _holds(len(found), n, at) and not answer.isupper()


def letter(answer: str, *, letter: str, n: int, at: str = "at least") -> bool:
    """Count a letter, small or capital, accents apart (`é` is not `e`)."""
    return _holds(_plain(answer).count(_plain(letter)), n, at)


def json_only(answer: str, *, keys: Sequence[str] = ()) -> bool:
    """Ask that the whole answer, or all of it in one code fence, is a JSON object or list.

    With keys it is an object in which each is present with a value that is not null, empty, or a
    text without a word.
    """
    fenced = re.fullmatch(r"\s*```[\w-]*[ \t]*\n(.*?)\n?[ \t]*```\s*", answer, re.DOTALL)
    try:
        value = json.loads(fenced[1] if fenced else answer, parse_constant=_refuse)
    except (ValueError, RecursionError):
        return False
    if not isinstance(value, dict):
        return isinstance(value, list) and bool(value) and not keys
    return bool(value) and all(_says_something(value.get(key)) for key in keys)


def starts_with(answer: str, *, phrase: str) -> bool:
    """Ask for a phrase at the start; quotes, asterisks and `#` before it do not matter."""
    pattern = re.compile(r'[\s"\'*#]*' + _whole(phrase).pattern)
    return bool(pattern.match(_plain(answer))) and _says_more(answer, pattern)


def ends_with(answer: str, *, phrase: str) -> bool:
    """Ask for a phrase at the end; quotes, asterisks, `.` and `!` after it do not matter."""
    pattern = re.compile(_whole(phrase.rstrip(" .!")).pattern + r'[\s"\'*_.!]*\Z')
    return bool(pattern.search(_plain(answer))) and _says_more(answer, pattern)


def quoted(answer: str) -> bool:
    """Ask for a double quote, straight or curly, as the first and as the last character."""
    inside = re.fullmatch(r'\s*"(.+)"\s*', answer.translate(_QUOTES), re.DOTALL)
    return bool(inside) and bool(split_words(inside[1] if inside else ""))


def title(answer: str) -> bool:
    """Ask for a title in double angle brackets, `<<so>>`, on one line, and a text besides."""
    pattern = re.compile(r"<<[^<>\n]*[^\W_][^<>\n]*>>")
    return bool(pattern.search(answer)) and _says_more(answer, pattern)


def highlights(answer: str, *, n: int, at: str = "at least") -> bool:
    """Count passages in asterisks, `*so*` or `**so**`, within a line; bullets are none."""
    pattern = re.compile(r"(?<!\*)(\*{1,2})(?=[^\s*])([^*\n]*[^\s*])\1(?!\*)")
    found = [match[2] for match in pattern.finditer(answer) if split_words(match[2])]
    return _holds_items(found, n, at) and _says_more(answer, pattern)


def postscript(answer: str, *, marker: str = "P.S.") -> bool:
    """Ask for a line after the text that begins with the marker, full stops or not, and goes on."""
    mark = r"\.?\s?".join(map(re.escape, _plain(marker).replace(".", "").replace(" ", "")))
    lines = _plain(answer).split("\n")
    for number, line in enumerate(lines):
        found = re.match(rf"[\s*]*{mark}\.?(?:[\s:,*-]+|$)", line)
        if found:
            after = "\n".join([line[found.end() :], *lines[number + 1 :]])
            return bool(split_words("\n".join(lines[:number])) and split_words(after))
    return False


def placeholders(answer: str, *, n: int, at: str = "at least") -> bool:
    """Count different names in square brackets, `[address]`, links and tick boxes left out."""
    found = re.findall(r"\[([^\[\]\n]*[^\W_][^\[\]\n]+)\](?!\()", answer)
    return _holds_items(found, n, at)


def question(answer: str) -> bool:
    """Ask for a question mark that follows a word."""
    return bool(re.search(r"[^\W_][\"')*\s]*[?？]", answer))


def choice(answer: str, *, options: Sequence[str]) -> bool:
    """Ask for one of the options and nothing else, quotes and final marks apart."""
    said = _plain(answer).strip(" \n\t\"'*.!")
    return said in {_plain(option).strip(" .!") for option in options}


CONSTRAINTS: Final[dict[str, Callable[..., bool]]] = {
    check.__name__: check
    for check in (
        bullets, numbered, sentences, words, lines, paragraphs, keyword, forbidden, no_commas,
        no_digits, lower_case, upper_case, capital_words, letter, json_only, starts_with, ends_with,
        quoted, title, highlights, postscript, placeholders, question, choice,
    )
}  # fmt: skip
"""Every constraint by its name."""


def checked(constraint: Any, origin: str) -> dict[str, Any]:
    """Return the constraint if its name is known and its parameters are those of the function.

    Raises:
        ValueError: naming the origin, what is wrong and the nearest right name.
    """
    if not isinstance(constraint, dict) or not isinstance(constraint.get("name"), str):
        raise ValueError(
            f"{origin}: a constraint needs a 'name', as in {{'name': 'bullets', 'n': 3}}; "
            f"found {constraint!r}"
        )
    name = constraint["name"]
    one_of(f"{origin}: a constraint's name", name, CONSTRAINTS)
    taken = list(inspect.signature(CONSTRAINTS[name]).parameters.values())[1:]
    for key, value in constraint.items():
        if key == "name":
            continue
        if not taken:
            raise ValueError(f"{origin}: constraint {name!r} takes no parameters; found {key!r}")
        one_of(f"{origin}: a parameter of {name!r}", key, [parameter.name for parameter in taken])
        _check_value(f"{origin}: {key!r} of {name!r}", key, value)
    missing = [p.name for p in taken if p.default is p.empty and p.name not in constraint]
    if missing:
        raise ValueError(f"{origin}: constraint {name!r} needs {missing[0]!r}; found {constraint}")
    return constraint


def _check_value(where: str, key: str, value: Any) -> None:
    if key == "at":
        one_of(where, str(value), AT)
    elif key == "n":
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{where} must be a whole number of at least 1; found {value!r}")
    elif key in ("words", "keys", "options"):
        if not isinstance(value, list) or not value or not all(map(_is_text, value)):
            raise ValueError(f"{where} must be a list of texts; found {value!r}")
    elif not _is_text(value):
        raise ValueError(f"{where} must be a text; found {value!r}")


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _holds(count: int, n: int, at: str) -> bool:
    if at == "at least":
        return count >= n
    return count == n if at == "exactly" else 1 <= count <= n


def _holds_items(items: Sequence[str], n: int, at: str) -> bool:
    distinct = len({" ".join(_plain(item).split()) for item in items})
    if at == "at least":
        return distinct >= n
    return _holds(len(items), n, at) and (at == "at most" or distinct == n)


def _plain(text: str) -> str:
    return unicodedata.normalize("NFC", text).translate(_QUOTES).casefold()


def split_words(text: str) -> list[str]:
    """Return the words of a text, marks of lists left out."""
    bare = re.sub(rf"^[ \t]*{_LIST_MARK}[ \t]+", "", text, flags=re.MULTILINE)
    return [word for word in bare.split() if any(map(str.isalnum, word))]


def _lines_after(mark: str, text: str) -> list[str]:
    found = re.findall(rf"^[ \t]*{mark}[ \t]+(.*)$", text, re.MULTILINE)
    return [line for line in found if split_words(line)]


def _whole(phrase: str) -> re.Pattern[str]:
    inner = r"\s+".join(map(re.escape, _plain(phrase).split()))
    return re.compile(rf"(?<!\w){inner}(?!\w)")


def _says_more(answer: str, pattern: re.Pattern[str]) -> bool:
    return len(split_words(pattern.sub(" ", _plain(answer)))) >= OTHER_WORDS


_NO_END = re.compile(r"(?:^|[\s(\"'])(?:mr|mrs|ms|dr|prof|st|vs|(?:[a-z]\.)+[a-z]|[a-hj-z])\.$")


def _sentences(text: str) -> list[str]:
    found = []
    for block in re.split(rf"\n[ \t]*\n|\n(?=[ \t]*{_LIST_MARK}[ \t])", text):
        bare = re.sub(rf"^\s*{_LIST_MARK}[ \t]+", "", block)
        begin = ""
        for piece in re.findall(
            r".+?(?:[.!?…]+[\"'”’)*\]]*(?=\s|\Z)|[。！？]+|\Z)", bare, re.DOTALL
        ):
            begin += piece
            if not _NO_END.search(begin[-16:].casefold()):
                found.append(begin)
                begin = ""
        found.append(begin)
    return [sentence for sentence in found if split_words(sentence)]


def _says_something(value: Any) -> bool:
    return bool(split_words(value)) if isinstance(value, str) else value not in (None, [], {})


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is not JSON")
