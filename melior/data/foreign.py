"""Layouts of other tools and data sets, for reading and for `melior data convert`."""

from __future__ import annotations

import re
from collections.abc import Sequence

from melior.data.formats import Fields
from melior.data.layouts import Layout, one, pair, split_conversations
from melior.data.rows import Row, number, ratings
from melior.data.steps import marked_steps
from melior.records import Candidate, Group, Pair, Turn, Turns

ATTRIBUTES = (
    "helpfulness",
    "correctness",
    "coherence",
    "complexity",
    "verbosity",
    "honesty",
    "truthfulness",
    "instruction_following",
    "safety",
)
"""Columns of ratings (HelpSteer, UltraFeedback) that are read as aspects of a response."""


def _alpaca_prompt(row: Row, name: str = "instruction") -> Turns:
    """`system`, `history`, `instruction` and `input`, as LLaMA-Factory joins them."""
    past: list[Turn] = []
    for exchange in row.optional("history") or ():
        if not (isinstance(exchange, Sequence) and len(exchange) == 2):
            raise ValueError(f"{row.origin}: 'history' needs [question, answer] pairs")
        past += [Turn("user", str(exchange[0])), Turn("assistant", str(exchange[1]))]
    asked = "\n".join(part for part in (row.text(name), row.text("input")) if part)
    return (*_system(row), *past, Turn("user", asked))


def _system(row: Row) -> Turns:
    text = row.text("system")
    return (Turn("system", text),) if text else ()


def _alpaca_pair(row: Row) -> Pair:
    prompt = _alpaca_prompt(row)
    return pair(row, prompt, row.turns("chosen", "assistant"), row.turns("rejected", "assistant"))


def _alpaca_answer(row: Row) -> Group:
    prompt, response = _alpaca_prompt(row), row.turns("output", "assistant")
    return one(row, prompt, response, row.label("kto_tag") if "kto_tag" in row else None)


def _alpaca_ask(row: Row) -> Group:
    return Group(_alpaca_prompt(row), (), row.rest(), row.origin)


def _question_pair(row: Row) -> Pair:
    """`question`, `chosen`, `rejected` and perhaps `system` (Orca pairs)."""
    prompt = _alpaca_prompt(row, "question")
    return pair(row, prompt, row.turns("chosen", "assistant"), row.turns("rejected", "assistant"))


def _question_ask(row: Row) -> Group:
    return Group(_alpaca_prompt(row, "question"), (), row.rest(), row.origin)


def _sharegpt_pair(row: Row) -> Pair:
    prompt = _system(row) + row.turns("conversations", "user")
    return pair(row, prompt, row.turns("chosen", "assistant"), row.turns("rejected", "assistant"))


def _conversation(column: str, label: str) -> Layout:
    """Lay out a conversation whose last answer is the candidate, with or without a label."""

    def parse(row: Row) -> Group:
        said = _system(row) + row.turns(column, "user")
        if said[-1:] and said[-1].role == "assistant":
            score = row.label(label) if label in row else None
            return one(row, said[:-1], said[-1:], score)
        return Group(said, (), row.rest(), row.origin)

    family = "sharegpt" if column == "conversations" else "swift"
    return Layout("a conversation", family, (column,), parse)


def _arena_answer(row: Row) -> Group:
    """Take `messages` whose last one holds its text under `answer` (Arena-Hard)."""
    said = list(row.objects("messages", "message"))
    answer = said[-1].fields["content"]["answer"] if said else None
    if not isinstance(answer, str):
        raise ValueError(f"{row.origin}: 'answer' needs text; found {answer!r:.60}")
    asked = tuple(Turn(one.text("role"), one.text("content")) for one in said[:-1])
    facts = {**row.rest(), "generator": row.text("model")}
    return Group(asked, (Candidate((Turn("assistant", answer),)),), facts, row.origin)


def _is_answered(fields: Fields) -> bool:
    said = fields["messages"]
    last = said[-1] if isinstance(said, list) and said else None
    content = last.get("content") if isinstance(last, dict) else None
    return isinstance(content, dict) and "answer" in content


def _bench_question(row: Row) -> Group:
    """Take the first of `turns`; all of them stay a fact (MT-Bench)."""
    turns = row.fields["turns"]
    if not isinstance(turns, list) or not turns or not all(isinstance(one, str) for one in turns):
        raise ValueError(f"{row.origin}: 'turns' needs texts; found {turns!r:.60}")
    return Group((Turn("user", turns[0]),), (), row.rest(), row.origin)


def _swift_response(row: Row) -> Pair:
    """`messages` end with the better answer; `rejected_response` is the worse one."""
    said = row.turns("messages", "user")
    return pair(row, said[:-1], said[-1:], row.turns("rejected_response", "assistant"))


def _swift_messages(row: Row) -> Pair:
    said = row.turns("messages", "user")
    return pair(row, *split_conversations(said, row.turns("rejected_messages", "assistant")))


def _ultrafeedback(row: Row) -> Group:
    """`completions` with `overall_score`, or else the mean of its annotations' ratings."""
    prompt = (Turn("user", row.text("instruction")),)
    found = tuple(map(_rated, row.objects("completions", "completion")))
    return Group(prompt, found, row.rest(), row.origin)


def _rated(row: Row) -> Candidate:
    response = row.turns("response", "assistant")
    said = row.fields.get("annotations") or {}
    given = {name: about["Rating"] for name, about in said.items() if "Rating" in (about or {})}
    aspects = ratings(given, row.origin)
    score = row.number("overall_score")
    if score is None and aspects:
        score = sum(aspects.values()) / len(aspects)
    return Candidate(response, score, aspects, facts=row.rest())


def _nemo(row: Row) -> Group:
    """`context`, `completions` with `rank`: 0 is the best, so the score is minus the rank."""
    prompt = row.turns("context", "user")
    found: list[Candidate] = []
    for own in row.objects("completions", "completion"):
        rank = number(own.get("rank"), f"{own.origin}: 'rank'")
        response = own.turns("completion", "assistant")
        found.append(Candidate(response, None if rank is None else -rank, facts=own.rest()))
    return Group(prompt, tuple(found), row.rest(), row.origin)


def _tree(row: Row) -> Group:
    """`prompt`, `response_list` of `response` and `score`, within `score_lo` and `_hi` (TPO)."""
    prompt = row.turns("prompt", "user")
    low, high = (number(row.fields.get(name), f"{row.origin}: {name!r}")
                 for name in ("score_lo", "score_hi"))  # fmt: skip
    found = []
    for own in row.objects("response_list", "response"):
        (whole, steps), score = _in_steps(own), own.number("score")
        is_low = low is not None and score is not None and score < low
        if is_low or (high is not None and score is not None and score > high):
            raise ValueError(
                f"{own.origin}: 'score' must lie from score_lo {low} to score_hi {high};"
                f" found {score}"
            )
        found.append(Candidate((Turn("assistant", whole),), score, steps=steps, facts=own.rest()))
    return Group(prompt, tuple(found), row.rest(), row.origin)


def _in_steps(row: Row) -> tuple[str, tuple[str, ...]]:
    """Return the text of a `response` and its steps: as they are listed, or by their marks."""
    said = row.get("response")
    if isinstance(said, str):
        return said, marked_steps(said)
    if not isinstance(said, list) or not said or not all(isinstance(step, str) for step in said):
        raise ValueError(f"{row.origin}: 'response' needs steps, each a text; found {said!r:.60}")
    return "\n".join(step.rstrip() for step in said), tuple(said)


def _step_dpo(row: Row) -> Group:
    """`initial_reason_steps` and how they go on, right and wrong, in `full_chosen`, `_rejected`."""
    prompt, start = row.turns("prompt", "user"), row.text("initial_reason_steps")
    for name in ("chosen", "rejected"):  # the first step after these: the whole answers hold it
        row.optional(name)
    found = []
    for name, score in (("full_chosen", 1.0), ("full_rejected", 0.0)):
        end = row.get(name)
        if not isinstance(end, str) or not end.strip():
            raise ValueError(f"{row.origin}: {name!r} needs text; found {end!r:.60}")
        gap = " " if start and not (start[-1].isspace() or end[:1].isspace()) else ""
        whole = start + gap + end
        found.append(Candidate((Turn("assistant", whole),), score, steps=marked_steps(whole)))
    return Group(prompt, tuple(found), row.rest(), row.origin)


def _ratings(row: Row) -> Group:
    """`prompt`, `response` and ratings, one to a column (HelpSteer)."""
    prompt, response = row.turns("prompt", "user"), row.turns("response", "assistant")
    if len(prompt) == 1:
        prompt = _marked_turns(prompt[0].content)
    given = {name: row.get(name) for name in ATTRIBUTES if name in row.fields}
    candidate = Candidate(response, row.number("score"), ratings(given, row.origin))
    return Group(prompt, (candidate,), row.rest(), row.origin)


def _marked_turns(text: str) -> Turns:
    """Return the turns that HelpSteer parts by `<extra_id_1>User` and `<extra_id_1>Assistant`."""
    first, *parts = re.split(r"\n?<extra_id_1>(User|Assistant)\n", text)
    said = zip(parts[::2], parts[1::2], strict=True)
    return (Turn("user", first), *(Turn(who.lower(), what) for who, what in said))


def _is_scored(fields: Fields) -> bool:
    completions = fields["completions"]
    return isinstance(completions, list) and all("response" in one for one in completions)


PAIRS = (
    Layout("an alpaca pair", "alpaca", ("instruction", "chosen", "rejected"), _alpaca_pair),
    Layout("a pair", "orca", ("question", "chosen", "rejected"), _question_pair),
    Layout("a sharegpt pair", "sharegpt", ("conversations", "chosen", "rejected"), _sharegpt_pair),
    Layout("a pair", "swift", ("messages", "rejected_response"), _swift_response),
    Layout("a pair", "swift", ("messages", "rejected_messages"), _swift_messages),
    Layout("a pair in steps", "step-dpo", ("prompt", "initial_reason_steps"), _step_dpo),
)
GROUPS = (
    Layout("a group", "ultrafeedback", ("instruction", "completions"), _ultrafeedback, _is_scored),
    Layout("a ranked list", "nemo-rl", ("context", "completions"), _nemo),
    Layout("a scored list", "tpo", ("prompt", "response_list"), _tree),
    Layout("a rating", "helpsteer", ("prompt", "response"), _ratings),
    Layout("an answer", "alpaca", ("instruction", "output"), _alpaca_answer),
    Layout("an answer", "arena-hard", ("uid", "messages", "model"), _arena_answer, _is_answered),
)
CONVERSATIONS = (_conversation("conversations", "kto_tag"), _conversation("messages", "label"))
"""Looked for last: layouts of pairs have these columns, too."""
PROMPTS = (
    Layout("a prompt", "alpaca", ("instruction",), _alpaca_ask),
    Layout("a prompt", "orca", ("question",), _question_ask),
    Layout("a question", "mt-bench", ("question_id", "turns"), _bench_question),
)
