"""What a row may look like, and the pair or group that it means: our layouts and TRL's.

The columns of a source's first row decide its layout. Plain strings become one turn of the user
or the assistant; how turns are rendered, the chat template decides later. Columns that a layout
does not read are kept as facts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from melior.data.formats import Fields
from melior.data.rows import Row, number, ratings, spelled, turns
from melior.records import Candidate, Group, Pair, Turn, Turns


@dataclass(frozen=True)
class Layout:
    """Columns that mean a pair or a group."""

    name: str
    family: str
    """The tool that writes it, as in `data convert --from`."""
    needs: tuple[str, ...]
    parse: Callable[[Row], Pair | Group]
    fits: Callable[[Fields], bool] = lambda fields: True


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
        raise ValueError(f"{where} needs 'response'; found {spelled(value)}")
    own = Row(where, value, "it")
    response, score = own.turns("response", "assistant"), own.number("score")
    aspects, facts = own.optional("aspects") or {}, own.optional("facts") or {}
    for part in (aspects, facts):
        if not isinstance(part, dict):
            raise ValueError(f"{where}: 'aspects' and 'facts' need objects; found {spelled(part)}")
    steps = own.optional("steps") or []
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps):
        raise ValueError(f"{where}: 'steps' needs a list of texts; found {spelled(steps)}")
    kept = facts | {**own.rest()}
    return Candidate(response, score, ratings(aspects, where), tuple(steps), kept)


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
