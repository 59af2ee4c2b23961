"""Groups as the files of AlpacaEval, Arena-Hard and MT-Bench: answers, and judgments of two.

A group of one candidate is an answer. A group of two that a judge has compared is a judgment: the
baseline's candidate stands first, as `against` puts it. Who answered is a fact `generator` of the
candidate, or of the group.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from melior.data.judgements import (
    Annotation,
    ArenaAnswer,
    ArenaJudgement,
    BenchAnswer,
    BenchPair,
    Choice,
    Game,
    ModelOutput,
    write_lines,
    write_list,
)
from melior.records import Candidate, Facts, Group, Turn, text

NEVER: Final = 0.0
"""The time that is written: when an answer was given is not known."""


def named(groups: Iterable[Group], generator: str) -> Iterator[Group]:
    """Yield groups whose candidates say who answered; where neither they nor it do, `generator`."""
    for group in groups:
        facts = {name: value for name, value in group.facts.items() if name != "generator"}
        own = str(group.facts.get("generator") or generator)
        yield replace(
            group,
            candidates=tuple(
                replace(one, facts={"generator": own, **one.facts}) for one in group.candidates
            ),
            facts=facts,
        )


def against(groups: Iterable[Group], baseline: Iterable[Group]) -> Iterator[Group]:
    """Put a baseline's answer to the same prompt before each answer.

    Raises:
        ValueError: the baseline has no answer to a prompt, or there are several to one.
    """
    answers = {group.prompt: _single(group) for group in baseline}
    for group in groups:
        if group.prompt not in answers:
            raise ValueError(
                f"{group.origin}: needs an answer of the baseline to the same prompt; found none"
            )
        yield replace(group, candidates=(answers[group.prompt], _single(group)))


def next_turn(groups: Iterable[Group]) -> Iterator[Group]:
    """Yield answered prompts with what their fact `turns` asks next; those with no more are done.

    `turns` lists all that the user says, as MT-Bench's questions do.
    """
    for group in groups:
        turns, said = group.facts.get("turns"), sum(turn.role == "user" for turn in group.prompt)
        if not isinstance(turns, list):
            raise ValueError(f"{group.origin}: needs 'turns', a list; found {turns!r:.60}")
        if said < len(turns):
            asked = (*group.prompt, *_single(group).response, Turn("user", str(turns[said])))
            yield replace(group, prompt=asked, candidates=())


def write(kind: str, out: Path, groups: Iterable[Group]) -> int:
    """Write answers, or judgments where there are two to a prompt; return how many.

    Args:
        kind: one of `KINDS`.
        out: the file: a JSON list for AlpacaEval, JSON lines for the others.
        groups: named ones.

    Raises:
        ValueError: a group has another number of candidates, or lacks what the file needs.
    """
    answer, judgment, put = KINDS[kind]
    records = [(judgment if len(one.candidates) == 2 else answer)(one) for one in groups]
    if len({type(one) for one in records}) > 1:
        raise ValueError(f"{out}: needs answers or judgments; found both, 1 and 2 to a prompt")
    put(out, records)
    return len(records)


def _single(group: Group) -> Candidate:
    if len(group.candidates) != 1:
        raise ValueError(
            f"{group.origin}: needs one answer to each prompt; found {len(group.candidates)};"
            " choose with melior select top"
        )
    return group.candidates[0]


def _alpaca_answer(group: Group) -> ModelOutput:
    answer = _single(group)
    return ModelOutput(
        str(group.facts.get("dataset", "")), text(group.prompt), text(answer.response), _by(answer)
    )


def _alpaca_judgment(group: Group) -> Annotation:
    baseline, answer = group.candidates
    win = _win(group)
    return Annotation(
        instruction=text(group.prompt),
        output_1=text(baseline.response),
        generator_1=_by(baseline),
        output_2=text(answer.response),
        generator_2=_by(answer),
        preference=None if win is None else 1 + win,
        dataset=str(group.facts.get("dataset", "")),
        annotator=_judge(group),
    )


def _arena_answer(group: Group) -> ArenaAnswer:
    answer = _single(group)
    said = text(answer.response)
    messages: list[Facts] = [{"role": turn.role, "content": turn.content} for turn in group.prompt]
    return ArenaAnswer(
        uid=_uid(group),
        ans_id=_digest(group, said),
        model=_by(answer),
        messages=(*messages, {"role": "assistant", "content": {"answer": said}}),
        tstamp=NEVER,
        metadata={"token_len": _tokens(answer), **markdown_counts(said)},
    )


def _arena_judgment(group: Group) -> ArenaJudgement:
    """Game 1 shows the baseline first, game 2 the model."""
    baseline, answer = group.candidates
    shown = _orders(group)
    games = tuple(Game({None: None, 1: "A>B", 0: "A=B", -1: "B>A"}[_sign(one)]) for one in shown)
    return ArenaJudgement(
        uid=_uid(group),
        category=str(group.facts.get("category", "")),
        judge=_judge(group),
        model=_by(answer),
        baseline=_by(baseline),
        games=games,
    )


def _bench_answer(group: Group) -> BenchAnswer:
    """The answers to all turns: those in the prompt, and the candidate."""
    answer = _single(group)
    earlier = [turn.content for turn in group.prompt if turn.role == "assistant"]
    turns = (*earlier, text(answer.response))
    return BenchAnswer(
        _question(group), _digest(group, turns), _by(answer), (Choice(0, turns),), NEVER
    )


def _bench_judgment(group: Group) -> BenchPair:
    """Model 1 is judged, model 2 the baseline; model 1 stands first in game 1."""
    baseline, answer = group.candidates
    second, first = _orders(group)
    words = {None: "error", 0: "tie"}
    turn = 1 + sum(turn.role == "assistant" for turn in group.prompt)
    return BenchPair(
        question_id=_question(group),
        model_1=_by(answer),
        model_2=_by(baseline),
        g1_winner={**words, 1: "model_1", -1: "model_2"}[_sign(first)],
        g2_winner={**words, 1: "model_2", -1: "model_1"}[_sign(second)],
        judge=(_judge(group), str(_scorer(group).get("wording", ""))),
        g1_user_prompt="",
        g1_judgment="",
        g2_user_prompt="",
        g2_judgment="",
        turn=turn,
        tstamp=NEVER,
    )


KINDS: Final[dict[str, tuple[Callable[[Group], Any], Callable[[Group], Any], Any]]] = {
    "alpaca-eval": (_alpaca_answer, _alpaca_judgment, write_list),
    "arena-hard": (_arena_answer, _arena_judgment, write_lines),
    "mt-bench": (_bench_answer, _bench_judgment, write_lines),
}
"""Of each tool: its answers, its judgments, and how both are written."""


def markdown_counts(answer: str) -> dict[str, Any]:
    """Count headers, list items and bold words outside of code, as Arena-Hard's style control."""
    prose = re.sub(r"```.*?```", "", answer, flags=re.DOTALL)
    headers = {f"h{n}": len(re.findall(rf"^#{{{n}}}\s", prose, re.MULTILINE)) for n in range(1, 7)}
    ordered = len(re.findall(r"^\s*\d+\.\s", prose, re.MULTILINE))
    unordered = len(re.findall(r"^\s*[-*+]\s", prose, re.MULTILINE))
    bold = {"**": r"\*\*[^*\n]+\*\*", "__": r"__[^_\n]+__"}
    return {
        "header_count": headers,
        "list_count": {"ordered": ordered, "unordered": unordered},
        "bold_count": {mark: len(re.findall(found, prose)) for mark, found in bold.items()},
    }


def _by(candidate: Candidate) -> str:
    found = candidate.facts.get("generator")
    if not found:
        raise ValueError("needs to know who answered; found no 'generator'; give --generator NAME")
    return str(found)


def _tokens(candidate: Candidate) -> int:
    """Return how many tokens the model took, or, where that is not known, the words."""
    known = candidate.facts.get("n_tokens")
    return known if isinstance(known, int) else len(text(candidate.response).split())


def _win(group: Group) -> float | None:
    """Return the probability that the second candidate wins: compared, or by scores."""
    logit = _comparison(group, "comparisons", 1, 0)
    if logit is not None or "comparisons" in group.facts:
        return None if logit is None else 1 / (1 + math.exp(-logit))
    baseline, answer = (one.score for one in group.candidates)
    if baseline is None or answer is None:
        return None
    return 0.5 + 0.5 * ((answer > baseline) - (answer < baseline))


def _orders(group: Group) -> tuple[float | None, float | None]:
    """Return the logits that whoever is shown first wins: first the baseline, then the model."""
    if "orders" not in group.facts:
        raise ValueError(
            f"{group.origin}: a judgment in both orders needs 'orders', as a judge stores it that"
            f" compares; found {sorted(group.facts)}; score with --with judge:..."
        )
    return _comparison(group, "orders", 0, 1), _comparison(group, "orders", 1, 0)


def _comparison(group: Group, name: str, row: int, column: int) -> float | None:
    if name not in group.facts:
        return None
    try:
        found = group.facts[name][row][column]
        return None if found is None else float(found)
    except (TypeError, IndexError, KeyError, ValueError) as error:
        raise ValueError(
            f"{group.origin}: {name!r} needs 2 rows of 2 numbers or null; found"
            f" {group.facts[name]!r:.60}"
        ) from error


def _sign(logit: float | None) -> int | None:
    return None if logit is None else (logit > 0) - (logit < 0)


def _scorer(group: Group) -> Facts:
    found = group.facts.get("scorer")
    return found if isinstance(found, dict) else {}


def _judge(group: Group) -> str:
    about = _scorer(group)
    return str(about.get("model") or about.get("name") or "")


def _uid(group: Group) -> str:
    return str(group.facts.get("uid") or group.facts.get("id") or _digest(group, ""))


def _question(group: Group) -> int:
    found = group.facts.get("question_id")
    if not isinstance(found, int):
        raise ValueError(f"{group.origin}: needs 'question_id', a whole number; found {found!r}")
    return found


def _digest(group: Group, said: object) -> str:
    content = json.dumps([text(group.prompt), said])
    return hashlib.sha256(content.encode()).hexdigest()[:22]
