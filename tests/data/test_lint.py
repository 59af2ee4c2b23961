"""The check finds what is planted, counts it, says where, and stays silent on clean data."""

import dataclasses
import random
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.files import as_group
from melior.data.lint import (
    Finding,
    Truncation,
    length_bias,
    lint_groups,
    lint_lengths,
    lint_pairs,
    truncation_table,
)
from melior.records import Candidate, Group, Pair, Turn


def turn(role, said):
    return (Turn(role, said),)


def words(draw, count):
    return " ".join("".join(draw.choices(string.ascii_lowercase, k=5)) for _ in range(count))


def clean(n=40, seed=0):
    """Pairs that differ in everything, of lengths that are alike."""
    draw = random.Random(seed)
    return [
        Pair(
            turn("user", words(draw, draw.randint(4, 6))),
            turn("assistant", words(draw, draw.randint(8, 12))),
            turn("assistant", words(draw, draw.randint(8, 12))),
            origin=f"a.jsonl:{i + 1}",
        )
        for i in range(n)
    ]


def planted(changes, n=40):
    """Clean pairs, some of them changed: by index, what to replace."""
    pairs = clean(n)
    for index, change in changes.items():
        pairs[index] = dataclasses.replace(pairs[index], **change)
    return pairs


def by_code(findings):
    return {finding.code: finding for finding in findings}


def test_clean_pairs_have_only_a_note_on_lengths():
    assert [(one.level, one.code) for one in lint_pairs(clean())] == [("note", "length-bias")]


def test_no_row_is_an_error():
    assert by_code(lint_pairs([]))["no-rows"].level == "error"
    assert by_code(lint_groups([]))["no-rows"].level == "error"


SAID = turn("assistant", "the very same answer")
PLANTED = {
    "equal-answers": {"chosen": SAID, "rejected": turn("assistant", " the very same answer\n")},
    "empty-answers": {"chosen": turn("assistant", " \n")},
    "wrong-answer-role": {"rejected": turn("user", "it was me all along, you see")},
    "empty-prompts": {"prompt": ()},
    "turn-order": {"prompt": (Turn("user", "do you hear me"), Turn("assistant", "well, yes"))},
    "unknown-roles": {"prompt": turn("narrator", "once upon a time")},
    "negative-margins": {"margin": -0.5},
    "zero-weights": {"weight": 0.0},
    "unread-columns": {"facts": {"tools": [{"name": "search"}], "images": []}},
    "lone-surrogates": {"chosen": turn("assistant", "half of a cat: \ud83d, you see")},
    "damaged-text": {"chosen": turn("assistant", "itâ€™s the cafÃ© where we were")},
}


@pytest.mark.parametrize("code", PLANTED)
def test_what_is_planted_is_found_where_it_is(code):
    found = by_code(lint_pairs(planted({7: PLANTED[code]})))[code]
    assert (found.count, found.share, found.examples) == (1, 1 / 40, ("a.jsonl:8",))
    assert found.level in ("warning", "error")


@pytest.mark.parametrize("code", PLANTED)
def test_what_all_rows_do_is_an_error(code):
    pairs = [dataclasses.replace(pair, **PLANTED[code]) for pair in clean()]
    found = by_code(lint_pairs(pairs))[code]
    assert (found.level, found.count, found.share) == ("error", 40, 1.0)
    assert found.examples == tuple(f"a.jsonl:{i}" for i in range(1, 6))


def test_a_group_of_weight_0_is_found_as_a_pair_is():
    asked, said = turn("user", "do you hear me"), Candidate(turn("assistant", "yes"), 1.0)
    groups = [Group(asked, (said,), {"weight": w}, f"a.jsonl:{w}") for w in (1, 0.0)]
    found = by_code(lint_groups(groups))["zero-weights"]
    assert (found.count, found.examples) == (1, ("a.jsonl:0.0",))


def test_a_share_that_is_not_read_is_said_of_pairs_also_as_groups():
    pairs = planted({7: {"facts": {"chosen_share": 0.8}}})
    for found in (lint_pairs(pairs), lint_groups(map(as_group, pairs))):
        one = by_code(found)["unread-shares"]
        assert (one.level, one.count, one.examples) == ("warning", 1, ("a.jsonl:8",))


@pytest.mark.parametrize(
    "text",
    ["Ã©tÃ©", "a\ufffdb", "donâ€™t", "ðŸ˜€", "a\x00b", "a\x08b", "\x1b[0m", "a\x9db", "Â£5"],
)
def test_damage_of_each_kind(text):
    found = lint_pairs(planted({3: {"chosen": turn("assistant", f"well, {text}, as one says")}}))
    assert "damaged-text" in by_code(found)


@pytest.mark.parametrize(
    "text", ["été à São Paulo", "don’t", "😀", "a\tb\r\nc", "ÂGE, MAÇÃ", "£5 “so”"]
)
def test_other_languages_are_no_damage(text):
    found = lint_pairs(planted({3: {"chosen": turn("assistant", f"well, {text}, as one says")}}))
    assert "damaged-text" not in by_code(found)


def test_tool_calls_are_no_empty_answers_and_make_answers_differ():
    call = Turn("assistant", "", {"tool_calls": [{"name": "a"}]})
    other = Turn("assistant", "", {"tool_calls": [{"name": "b"}]})
    found = by_code(lint_pairs(planted({0: {"chosen": (call,), "rejected": (other,)}})))
    assert not {"empty-answers", "equal-answers"} & set(found)


def test_a_conversation_with_system_and_tools_is_in_order():
    prompt = (Turn("system", "s"), Turn("user", "u"), Turn("assistant", "a"), Turn("user", "v"))
    answer = (Turn("assistant", "b"), Turn("tool", "2"), Turn("assistant", "c"))
    found = by_code(lint_pairs(planted({0: {"prompt": prompt, "chosen": answer}})))
    assert not {"turn-order", "unknown-roles", "wrong-answer-role"} & set(found)


def test_duplicates_and_contradictions_name_the_later_row():
    pairs = clean()
    first = pairs[0]
    pairs[5] = dataclasses.replace(first, origin="a.jsonl:6")
    swapped = {"chosen": first.rejected, "rejected": first.chosen}
    pairs[9] = dataclasses.replace(first, **swapped, origin="a.jsonl:10")
    found = by_code(lint_pairs(pairs))
    assert found["duplicates"].examples == ("a.jsonl:6",)
    assert found["contradictions"].examples == ("a.jsonl:10",)
    assert found["duplicates"].level == found["contradictions"].level == "warning"


def test_rows_that_a_mixture_takes_twice_are_no_duplicates():
    assert "duplicates" not in by_code(lint_pairs(clean() * 2))
    nameless = [dataclasses.replace(pair, origin="") for pair in clean()]
    assert by_code(lint_pairs(nameless * 2))["duplicates"].count == 40


def test_overlap_with_held_out_prompts_ignores_case_and_space():
    pairs, held_out = clean(), clean(seed=1)
    assert "overlap" not in by_code(lint_pairs(pairs, held_out))
    shout = "  ".join(pairs[4].prompt[0].content.upper().split())
    held_out[0] = Group(turn("user", shout), ())
    found = by_code(lint_pairs(pairs, held_out))["overlap"]
    assert (found.level, found.count, found.share) == ("warning", 1, 1 / 40)
    assert found.examples == ("a.jsonl:5",)
    assert by_code(lint_pairs(pairs, pairs))["overlap"].level == "error"


def test_unusual_lengths_are_noted():
    long, short = "word " * 5000, "a"
    changes = {3: {"chosen": turn("assistant", long)}, 8: {"rejected": turn("assistant", short)}}
    found = by_code(lint_pairs(planted(changes, n=100)))
    assert found["long-answers"].examples == ("a.jsonl:4",)
    assert found["short-answers"].examples == ("a.jsonl:9",)
    assert found["long-answers"].level == "note"
    assert found["long-answers"].count == 1


def test_length_bias_warns_when_the_interval_is_far_from_half():
    assert length_bias(0, 0) == []
    assert [one.level for one in length_bias(500, 500)] == ["note"]
    assert [one.level for one in length_bias(9, 1)] == ["note"]  # too few to tell
    for counts in ((900, 100), (100, 900)):
        assert [one.level for one in length_bias(*counts)] == ["warning"]
    assert "88.0% to 91.7%" in length_bias(900, 100)[0].text  # Wilson's interval of 0.9 in 1000


def test_findings_come_worst_first():
    pairs = planted(dict.fromkeys(range(30), PLANTED["equal-answers"]))
    levels = [one.level for one in lint_pairs(pairs)]
    assert levels == sorted(levels, key=["error", "warning", "note"].index)
    assert len(set(levels)) == 3


def groups(*scores):
    """One group for each list of scores."""
    draw = random.Random(0)
    return [
        Group(
            turn("user", words(draw, 5)),
            tuple(Candidate(turn("assistant", words(draw, 9)), score) for score in listed),
            origin=f"g.jsonl:{i + 1}",
        )
        for i, listed in enumerate(scores)
    ]


def test_groups_without_choice_are_found():
    found = by_code(lint_groups(groups([1.0, 2.0], [1.0, 1.0], [None, 2.0], [1.0])))
    assert found["equal-scores"].examples == ("g.jsonl:2",)
    assert found["no-scores"].examples == ("g.jsonl:3",)
    assert set(found) == {"equal-scores", "no-scores"}


def test_prompts_without_candidates_are_checked_as_prompts():
    found = lint_groups([*groups([], []), Group((), (), origin="g.jsonl:3")])
    assert [one.code for one in found] == ["empty-prompts"]


@given(st.lists(st.integers(1, 3000), max_size=30), st.integers(1, 3000), st.floats(0, 1))
def test_too_long_rows_are_counted_listed_and_limited(lengths, maximum, share):
    rows = [(f"a:{i}", length) for i, length in enumerate(lengths)]
    found = lint_lengths(rows, max_length=maximum, max_long_share=share)
    long = [origin for origin, length in rows if length > maximum]
    assert bool(found) == bool(long)
    if found:
        assert found[0].count == len(long) and found[0].examples == tuple(long[:5])
        assert found[0].level == ("error" if len(long) / len(rows) > share else "warning")
    assert truncation_table(lengths, [maximum])[0].rows == len(long)


def test_the_truncation_table_falls():
    assert truncation_table([1, 5, 9, 10], (4, 9)) == [
        Truncation(4, 3, 0.75),
        Truncation(9, 1, 0.25),
    ]
    assert truncation_table([], (4,)) == [Truncation(4, 0, 0.0)]


def test_one_pass_that_keeps_no_text():
    """A generator is enough, and its rows can be forgotten: 4 MB of text, less than 1 held."""
    import tracemalloc

    def rows():
        for i in range(1000):
            yield Pair(turn("user", f"{i} " * 300), turn("assistant", f"{i}a " * 300), SAID)

    tracemalloc.start()
    try:
        found = lint_pairs(rows())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(found[0], Finding)
    assert peak < 1e6
