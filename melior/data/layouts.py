"""What a row may look like, and the pair or group that it means: our layouts and TRL's.

The columns of a source's first row decide its layout. Plain strings become one turn of the user
or the assistant; how turns are rendered, the chat template decides later. Columns that a layout
does not read are kept as facts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from melior.data.formats import Fields
from melior.data.sources import near
from melior.records import Candidate, Facts, Group, Pair, Turn, Turns

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
            raise ValueError(f"{self.origin}: {name!r} needs text; found {_spell(value)}")
        return value

    def number(self, name: str) -> float | None:
        """Return a column of finite numbers; None where it is null or absent."""
        return number(self.optional(name), f"{self.origin}: {name!r}")

    def label(self, name: str) -> float:
        """Return 1 for a true label and 0 for a false one."""
        value = self.get(name)
        word = str(value).lower()
        if word not in ("true", "false", "1", "0", "1.0", "0.0"):
            raise ValueError(f"{self.origin}: {name!r} needs true or false; found {_spell(value)}")
        return float(word in ("true", "1", "1.0"))

    def list(self, name: str) -> list[Any]:
        """Return a column that holds a list."""
        value = self.get(name)
        if not isinstance(value, list):
            raise ValueError(f"{self.origin}: {name!r} needs a list; found {_spell(value)}")
        return value

    def objects(self, name: str, each: str) -> Iterator[Row]:
        """Yield the objects of a column that lists them, as rows of their own."""
        for i, value in enumerate(self.list(name), 1):
            where = f"{self.origin}: {each} {i}"
            if not isinstance(value, dict):
                raise ValueError(f"{where} needs an object; found {_spell(value)}")
            yield Row(where, value, "it")

    def rest(self) -> Facts:
        """Return the columns that were not read."""
        return {name: value for name, value in self.fields.items() if name not in self._read}


@dataclass(frozen=True)
class Layout:
    """Columns that mean a pair or a group."""

    name: str
    family: str
    """The tool that writes it, as in `data convert --from`."""
    needs: tuple[str, ...]
    parse: Callable[[Row], Pair | Group]
    fits: Callable[[Fields], bool] = lambda fields: True


def turns(value: object, role: str, where: str) -> Turns:
    """Return text or messages as turns; plain text is said by `role`."""
    if isinstance(value, str):
        return (Turn(role, value),)
    if isinstance(value, dict):
        return (_turn(value, where),)
    if not isinstance(value, list):
        raise ValueError(f"{where} needs text or messages; found {_spell(value)}")
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
        raise ValueError(f"{where} needs a finite number; found {_spell(value)}")
    return result


def pair(row: Row, prompt: Turns, chosen: Turns, rejected: Turns) -> Pair:
    """Return the pair, with the margin of the columns `margin` or `score_chosen`, `_rejected`."""
    margin, weight = row.number("margin"), row.number("weight")
    facts = row.rest()
    if weight is not None and weight < 0:  # would train against the labels
        raise ValueError(f"{row.origin}: 'weight' must be at least 0; found {weight:g}")
    if margin is None and "score_chosen" in row and "score_rejected" in row:
        margin = (row.number("score_chosen") or 0.0) - (row.number("score_rejected") or 0.0)
    return Pair(
        prompt,
        chosen,
        rejected,
        margin=margin or 0.0,
        weight=1.0 if weight is None else weight,
        facts=facts,
        origin=row.origin,
    )


def one(row: Row, prompt: Turns, response: Turns, score: float | None) -> Group:
    """Return a group of one candidate."""
    return Group(prompt, (Candidate(response, score),), row.rest(), row.origin)


def split_conversations(first: Turns, second: Turns) -> tuple[Turns, Turns, Turns]:
    """Return the common beginning as prompt, and the two answers: what is left.

    Both keep at least a turn, and the prompt ends before the assistant speaks.
    """
    shared = 0
    limit = min(len(first), len(second)) - 1
    while shared < limit and first[shared] == second[shared]:
        shared += 1
    while shared and first[shared - 1].role == "assistant":
        shared -= 1
    return first[:shared], first[shared:], second[shared:]


def dialogue(text: str) -> Turns:
    r"""Return the turns of `\n\nHuman: ...\n\nAssistant: ...`, or none for other text."""
    if not text.startswith("\n\nHuman:"):
        return ()
    parts = re.split(r"\n\n(Human|Assistant):", text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(
        Turn(roles[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True)
    )


def _turn(value: object, where: str) -> Turn:
    if not isinstance(value, dict):
        raise ValueError(f"{where} needs 'role' and 'content'; found {_spell(value)}")
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
        raise ValueError(f"{where}: 'content' needs text; found {_spell(content)}")
    return Turn(ROLES.get(role, role) if names[0] == "from" else role, content, extra)


def _part(part: object, where: str) -> str:
    if isinstance(part, str):
        return part
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return str(part["text"])
    found = part.get("type") if isinstance(part, dict) else part
    raise ValueError(f"{where}: 'content' needs parts of type 'text'; found {_spell(found)}")


def _spell(value: object) -> str:
    """Say what was found, briefly and in the words of JSON."""
    if value is None or value == []:
        return "null" if value is None else "an empty list"
    names = {bool: "", str: "", int: "the number ", float: "the number ", dict: "an object "}
    text = repr(value).lower() if isinstance(value, bool) else repr(value)
    return names.get(type(value), "") + (text if len(text) <= 60 else text[:57] + "...")


def _explicit(row: Row) -> Pair:
    """`prompt`, `chosen`, `rejected`; the answers may repeat the prompt."""
    prompt = row.turns("prompt", "user")
    chosen, rejected = row.turns("chosen", "assistant"), row.turns("rejected", "assistant")
    spoken = dialogue(row.fields["prompt"]) if isinstance(row.fields["prompt"], str) else ()
    if spoken:
        prompt = spoken[:-1] if spoken[-1] == Turn("assistant", "") else spoken
        chosen, rejected = _spoken(chosen), _spoken(rejected)
    start, *answers = split_conversations(chosen, rejected)
    if start and start[0].role != "assistant" and _said(prompt) <= _said(start):
        return pair(row, start, *answers)
    return pair(row, prompt, chosen, rejected)


def _said(turns: Turns) -> set[tuple[str, str]]:
    return {(turn.role, turn.content.strip()) for turn in turns}


def _spoken(answer: Turns) -> Turns:
    """Read an answer to a dialogue in plain text: a whole dialogue again, or what is said next."""
    return dialogue(answer[0].content) or tuple(
        Turn(turn.role, turn.content.strip(), turn.extra) for turn in answer
    )


def _implicit(row: Row) -> Pair:
    """`chosen`, `rejected`: conversations or plain texts whose common beginning is the prompt."""
    chosen, rejected = row.turns("chosen", "assistant"), row.turns("rejected", "assistant")
    both = row.fields["chosen"], row.fields["rejected"]
    if not all(isinstance(text, str) for text in both):
        return pair(row, *split_conversations(chosen, rejected))
    dialogues = dialogue(both[0]), dialogue(both[1])
    if all(dialogues):
        return pair(row, *split_conversations(*dialogues))
    cut = _word_boundary(*both)
    prompt = (Turn("user", both[0][:cut]),) if cut else ()
    answers = ((Turn("assistant", text[cut:]),) for text in both)
    return pair(row, prompt, *answers)


def _word_boundary(first: str, second: str) -> int:
    """Return how long the common beginning of two texts is, in whole words; both keep a rest."""
    apart = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    cut = next(apart, min(len(first), len(second)) - 1)
    while cut > 0 and (_is_inside(first, cut) or _is_inside(second, cut)):
        cut -= 1
    while cut > 0 and first[cut - 1].isspace():
        cut -= 1
    return max(cut, 0)


def _is_inside(text: str, cut: int) -> bool:
    """Say whether a cut parts a word; scripts from U+2E80 on put no space between words."""
    return all(letter.isalnum() and letter < "\u2e80" for letter in text[cut - 1 : cut + 1])


def _group(row: Row) -> Group:
    """`prompt`, `candidates`: what we write."""
    prompt = row.turns("prompt", "user")
    listed = row.list("candidates")
    found = tuple(_candidate(row, i, value) for i, value in enumerate(listed, 1))
    return Group(prompt, found, row.rest(), row.origin)


def _candidate(row: Row, index: int, value: object) -> Candidate:
    where = f"{row.origin}: candidate {index}"
    if isinstance(value, str):
        return Candidate((Turn("assistant", value),))
    if not isinstance(value, dict):
        raise ValueError(f"{where} needs 'response'; found {_spell(value)}")
    own = Row(where, value, "it")
    response, score = own.turns("response", "assistant"), own.number("score")
    aspects, facts = own.optional("aspects") or {}, own.optional("facts") or {}
    for part in (aspects, facts):
        if not isinstance(part, dict):
            raise ValueError(f"{where}: 'aspects' and 'facts' need objects; found {_spell(part)}")
    steps = own.optional("steps") or []
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise ValueError(f"{where}: 'steps' needs a list of texts; found {_spell(steps)}")
    kept = facts | {**own.rest()}
    return Candidate(response, score, ratings(aspects, where), tuple(steps), kept)


def ratings(values: Mapping[str, object], where: str) -> Facts:
    """Return named ratings as numbers; a gap (null, nan, N/A) is left out."""
    present = {
        name: value
        for name, value in values.items()
        if value not in GAPS and not (isinstance(value, float) and math.isnan(value))
    }
    return {name: number(value, f"{where}: {name!r}") for name, value in present.items()}


def _completion(row: Row) -> Group:
    """`prompt`, `completion`: one candidate, unscored."""
    return one(row, row.turns("prompt", "user"), row.turns("completion", "assistant"), None)


def _unpaired(row: Row) -> Group:
    """`prompt`, `completion`, `label`: one candidate of score 1 or 0."""
    score = row.label("label")
    return one(row, row.turns("prompt", "user"), row.turns("completion", "assistant"), score)


def _stepwise(row: Row) -> Group:
    """`prompt`, `completions`, `labels`: one candidate cut into steps."""
    prompt = row.turns("prompt", "user")
    steps = tuple(str(step) for step in row.list("completions"))
    facts = {"labels": row.list("labels")}
    candidate = Candidate((Turn("assistant", "\n".join(steps)),), steps=steps, facts=facts)
    return Group(prompt, (candidate,), row.rest(), row.origin)


def _ranked_answers(row: Row) -> Group:
    """`prompt` and several answers each in `chosen` and `rejected` (RewardBench 2)."""
    prompt = row.turns("prompt", "user")
    found = tuple(
        Candidate(turns(answer, "assistant", f"{row.origin}: {name!r}"), score)
        for name, score in (("chosen", 1.0), ("rejected", 0.0))
        for answer in row.list(name)
    )
    return Group(prompt, found, row.rest(), row.origin)


def _sampled(row: Row) -> Group:
    """`prompt`, `all_generated_responses`, `all_rm_scores`: on-policy candidates (SimPO)."""
    prompt = row.turns("prompt", "user")
    answers, scores = row.list("all_generated_responses"), row.list("all_rm_scores")
    if len(answers) != len(scores):
        raise ValueError(
            f"{row.origin}: needs a score for each response; "
            f"found {len(answers)} responses and {len(scores)} scores"
        )
    found = tuple(
        Candidate(turns(answer, "assistant", row.origin), number(score, f"{row.origin}: score"))
        for answer, score in zip(answers, scores, strict=True)
    )
    return Group(prompt, found, row.rest(), row.origin)


def _prompt(row: Row) -> Group:
    """`prompt` alone, to sample from."""
    return Group(row.turns("prompt", "user"), (), row.rest(), row.origin)


def _are_lists_of_texts(fields: Fields) -> bool:
    answers: Sequence[object] = [fields["chosen"], fields["rejected"]]
    return all(isinstance(a, list) and a and isinstance(a[0], str) for a in answers)


PAIRS = (
    Layout(
        "a pair",
        "trl",
        ("prompt", "chosen", "rejected"),
        _explicit,
        # Of Step-DPO's records these columns are one step of each answer.
        lambda f: not (_are_lists_of_texts(f) or "initial_reason_steps" in f),
    ),
)
IMPLICIT = Layout("a pair", "trl", ("chosen", "rejected"), _implicit)
GROUPS = (
    Layout("a group", "melior", ("prompt", "candidates"), _group),
    Layout("a group", "simpo", ("prompt", "all_generated_responses", "all_rm_scores"), _sampled),
    Layout(
        "a group",
        "rewardbench",
        ("prompt", "chosen", "rejected"),
        _ranked_answers,
        _are_lists_of_texts,
    ),
    Layout("a stepwise row", "trl", ("prompt", "completions", "labels"), _stepwise),
    Layout("an unpaired row", "trl", ("prompt", "completion", "label"), _unpaired),
    Layout("a prompt with its completion", "trl", ("prompt", "completion"), _completion),
)
PROMPT = Layout("a prompt", "trl", ("prompt",), _prompt)
