"""Every layout that people have means the pair or group that it should."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.files import read_any, read_groups, read_pairs, read_prompts
from melior.data.layouts import split_conversations
from melior.records import Candidate, Pair, Turn, text

HI, WHY = Turn("user", "hi"), Turn("user", "why?")
YES, NO = Turn("assistant", "yes"), Turn("assistant", "no")


def user(said):
    return {"role": "user", "content": said}


def assistant(said):
    return {"role": "assistant", "content": said}


def put(tmp_path, *rows):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def pair_of(tmp_path, row):
    (found,) = read_pairs(put(tmp_path, row))
    return found


def group_of(tmp_path, row):
    (found,) = read_groups(put(tmp_path, row))
    return found


MEANS_HI_YES_NO = {
    "explicit, plain": {"prompt": "hi", "chosen": "yes", "rejected": "no"},
    "explicit, conversational": {
        "prompt": [user("hi")],
        "chosen": [assistant("yes")],
        "rejected": [assistant("no")],
    },
    "explicit, text parts": {
        "prompt": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"text": "i"}]}],
        "chosen": [assistant("yes")],
        "rejected": [assistant("no")],
    },
    "explicit, answers that repeat the prompt": {
        "prompt": "hi",
        "chosen": [user("hi"), assistant("yes")],
        "rejected": [user("hi"), assistant("no")],
    },
    "explicit, plain dialogue": {
        "prompt": "\n\nHuman: hi\n\nAssistant:",
        "chosen": " yes",
        "rejected": " no",
    },
    "implicit, conversational": {
        "chosen": [user("hi"), assistant("yes")],
        "rejected": [user("hi"), assistant("no")],
    },
    "implicit, plain dialogue": {
        "chosen": "\n\nHuman: hi\n\nAssistant: yes",
        "rejected": "\n\nHuman: hi\n\nAssistant: no",
    },
    "alpaca": {"instruction": "hi", "input": "", "chosen": "yes", "rejected": "no", "system": ""},
    "sharegpt": {
        "conversations": [{"from": "human", "value": "hi"}],
        "chosen": {"from": "gpt", "value": "yes"},
        "rejected": {"from": "gpt", "value": "no"},
    },
    "orca": {"question": "hi", "system": None, "chosen": "yes", "rejected": "no"},
    "swift, response": {"messages": [user("hi"), assistant("yes")], "rejected_response": "no"},
    "swift, messages": {
        "messages": [user("hi"), assistant("yes")],
        "rejected_messages": [user("hi"), assistant("no")],
    },
    "nemo-rl": {
        "context": [user("hi")],
        "completions": [
            {"rank": 1, "completion": [assistant("no")]},
            {"rank": 0, "completion": [assistant("yes")]},
        ],
    },
    "melior": {
        "prompt": "hi",
        "candidates": [{"response": "no", "score": -1}, {"response": "yes", "score": 0}],
    },
    "simpo": {
        "prompt": "hi",
        "all_generated_responses": ["yes", "no"],
        "all_rm_scores": [0.5, 0.25],
    },
}


@pytest.mark.parametrize("layout", MEANS_HI_YES_NO)
def test_layouts_of_one_pair(tmp_path, layout):
    row = MEANS_HI_YES_NO[layout] | {"id": 7, "images": []}
    found = pair_of(tmp_path, row)
    assert found == Pair((HI,), (YES,), (NO,), facts=found.facts)
    assert found.facts["id"] == 7 and found.facts["images"] == []
    assert found.origin == f"{tmp_path}/a.jsonl:1"
    (group,) = read_groups(found.origin.removesuffix(":1"))
    ranked = sorted(group.candidates, key=lambda one: -one.score)
    assert [one.response for one in ranked] == [(YES,), (NO,)]
    (prompt,) = read_prompts(found.origin.removesuffix(":1"))
    assert prompt.prompt == (HI,) and prompt.candidates == ()


def test_a_missing_system_turn_stays_missing_and_one_that_is_there_stays(tmp_path):
    said = {"role": "system", "content": "be brief"}
    row = {"chosen": [said, user("hi"), assistant("yes")]}
    row["rejected"] = [said, user("hi"), assistant("no")]
    assert pair_of(tmp_path, row).prompt == (Turn("system", "be brief"), HI)
    row = {"instruction": "hi", "chosen": "yes", "rejected": "no", "system": "be brief"}
    assert pair_of(tmp_path, row).prompt == (Turn("system", "be brief"), HI)


def test_alpaca_history_and_input_come_in_order(tmp_path):
    row = {"instruction": "why", "input": "so?", "history": [["hi", "yes"]], "output": "no"}
    found = group_of(tmp_path, row)
    assert found.prompt == (HI, YES, Turn("user", "why\nso?"))
    assert found.candidates == (Candidate((NO,)),)


def test_tool_calls_and_names_stay_with_their_turn(tmp_path):
    call = [{"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}]
    row = {
        "prompt": [{"role": "user", "content": "1+1?", "name": "Ada"}],
        "chosen": [
            {"role": "assistant", "content": None, "tool_calls": call},
            {"role": "tool", "content": "2", "tool_calls": None},
            assistant("2"),
        ],
        "rejected": [assistant("3")],
    }
    found = pair_of(tmp_path, row)
    assert found.prompt == (Turn("user", "1+1?", {"name": "Ada"}),)
    assert found.chosen[:2] == (Turn("assistant", "", {"tool_calls": call}), Turn("tool", "2"))


@pytest.mark.parametrize(
    ("columns", "margin"),
    [
        ({}, 0.0),
        ({"margin": 0.5}, 0.5),
        ({"margin": None}, 0.0),
        ({"score_chosen": 8.5, "score_rejected": 8}, 0.5),
        ({"score_chosen": 8.5, "score_rejected": 8, "margin": 2}, 2.0),
        ({"score_chosen": 1, "score_rejected": 4}, -3.0),
    ],
)
def test_margins(tmp_path, columns, margin):
    found = pair_of(tmp_path, {"prompt": "hi", "chosen": "yes", "rejected": "no"} | columns)
    assert found.margin == margin
    assert found.facts == {k: v for k, v in columns.items() if k != "margin"}


def test_a_pair_as_a_group_keeps_its_margin_between_the_scores(tmp_path):
    row = {"prompt": "hi", "chosen": "yes", "rejected": "no"}
    for margin, apart in ((0, 1.0), (0.5, 0.5)):
        best, worst = group_of(tmp_path, row | {"margin": margin}).candidates
        assert best.score - worst.score == apart


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("The sky is blue.", "The sky is green.", "The sky is"),
        ("The sky is blue.", "The sky is black.", "The sky is"),
        ("Q: a?\nA: yes", "Q: a?\nA: no", "Q: a?\nA:"),
        ("one two", "one two three", "one"),
        ("the cats", "the cat sat", "the"),
        ("你好吗？好", "你好吗？坏", "你好吗？"),
    ],
)
def test_plain_texts_part_at_a_word(tmp_path, chosen, rejected, prompt):
    found = pair_of(tmp_path, {"chosen": chosen, "rejected": rejected})
    assert text(found.prompt) == prompt
    assert prompt + text(found.chosen) == chosen
    assert prompt + text(found.rejected) == rejected


def test_texts_without_a_common_beginning_have_no_prompt(tmp_path):
    found = pair_of(tmp_path, {"chosen": "yes", "rejected": "no"})
    assert found.prompt == () and text(found.chosen) == "yes"


words = st.text(alphabet="ab \n你", max_size=8)


@given(words, words, words)
def test_nothing_of_a_plain_text_is_lost(tmp_path_factory, start, first, second):
    path = tmp_path_factory.mktemp("implicit")
    found = pair_of(path, {"chosen": start + first, "rejected": start + second})
    assert text(found.prompt) + text(found.chosen) == start + first
    assert text(found.prompt) + text(found.rejected) == start + second


turns = st.lists(
    st.builds(Turn, st.sampled_from(["user", "assistant"]), st.sampled_from("abc")), min_size=1
).map(tuple)


@given(turns, turns)
def test_conversations_part_where_the_assistant_answers(first, second):
    prompt, chosen, rejected = split_conversations(first, second)
    assert prompt + chosen == first and prompt + rejected == second
    assert chosen and rejected
    assert not prompt or prompt[-1].role != "assistant"


def test_a_dialogue_of_several_turns(tmp_path):
    start = "\n\nHuman: hi\n\nAssistant: yes\n\nHuman: why?\n\nAssistant:"
    found = pair_of(tmp_path, {"chosen": f"{start} no\n\nno", "rejected": f"{start} yes"})
    assert found.prompt == (HI, YES, WHY)
    assert found.chosen == (Turn("assistant", "no\n\nno"),) and found.rejected == (YES,)


def test_a_plain_prompt_that_only_mentions_a_human_stays_as_it_is(tmp_path):
    row = {"prompt": "A Human: what is it?", "chosen": " yes", "rejected": "no"}
    assert pair_of(tmp_path, row).prompt == (Turn("user", "A Human: what is it?"),)
    assert pair_of(tmp_path, row).chosen == (Turn("assistant", " yes"),)


@pytest.mark.parametrize(("label", "score"), [(True, 1.0), (False, 0.0), (1, 1.0), ("false", 0.0)])
def test_unpaired_rows_score_1_or_0(tmp_path, label, score):
    for row in (
        {"prompt": "hi", "completion": "yes", "label": label},
        {"instruction": "hi", "output": "yes", "kto_tag": label},
        {"messages": [user("hi"), assistant("yes")], "label": label},
        {"conversations": [user("hi"), assistant("yes")], "kto_tag": label},
    ):
        found = group_of(tmp_path, row)
        assert (found.prompt, found.candidates) == ((HI,), (Candidate((YES,), score),))


def test_ultrafeedback(tmp_path):
    rated = {
        "response": "yes",
        "overall_score": 7.5,
        "annotations": {
            "helpfulness": {"Rating": "4", "Rationale": "!"},
            "honesty": {"Rating": "N/A"},
        },
        "model": "m",
    }
    unscored = rated | {"overall_score": None, "response": "no"}
    row = {"instruction": "hi", "source": "s", "completions": [rated, unscored], "models": ["m"]}
    found = group_of(tmp_path, row)
    assert [one.score for one in found.candidates] == [7.5, 4.0]
    assert found.candidates[0].aspects == {"helpfulness": 4.0}
    assert found.candidates[0].facts["model"] == "m"
    assert found.facts == {"source": "s", "models": ["m"]}


def test_ratings_are_aspects_and_gaps_stay_gaps(tmp_path):
    marked = "hi\n<extra_id_1>Assistant\nyes\n<extra_id_1>User\nwhy?"
    row = {"prompt": marked, "response": "no", "helpfulness": 3, "coherence": 4, "safety": None}
    found = group_of(tmp_path, row | {"split": "a"})
    assert found.prompt == (HI, YES, WHY)
    assert found.candidates == (Candidate((NO,), None, {"helpfulness": 3.0, "coherence": 4.0}),)
    assert found.facts == {"split": "a"}


def test_rank_lists_of_more_than_two(tmp_path):
    row = {
        "context": [user("hi")],
        "task_name": "t",
        "completions": [{"rank": i, "completion": [assistant(str(i))]} for i in (2, 0, 1)],
    }
    found = group_of(tmp_path, row)
    assert [one.score for one in found.candidates] == [-2, 0, -1]
    assert found.facts == {"task_name": "t"}


def test_rewardbench_of_both_versions(tmp_path):
    first = {"prompt": "hi", "chosen": "yes", "rejected": "no", "subset": "math", "id": 1}
    assert pair_of(tmp_path, first).facts == {"subset": "math", "id": 1}
    second = {"prompt": "hi", "chosen": ["yes"], "rejected": ["no", "why?"], "subset": "Ties"}
    found = group_of(tmp_path, second)
    assert [one.score for one in found.candidates] == [1.0, 0.0, 0.0]
    assert found.facts == {"subset": "Ties"}


def test_stepwise_rows_keep_their_steps(tmp_path):
    row = {"prompt": "hi", "completions": ["first", "then"], "labels": [True, False]}
    (candidate,) = group_of(tmp_path, row).candidates
    assert candidate.steps == ("first", "then")
    assert candidate.facts == {"labels": [True, False]}


def test_prompts_keep_what_a_reward_needs(tmp_path):
    for row in (
        {"prompt": "hi"},
        {"question": "hi"},
        {"instruction": "hi"},
        {"prompt": [user("hi")]},
    ):
        (found,) = read_prompts(put(tmp_path, row | {"solution": "42"}))
        assert (found.prompt, found.candidates, found.facts) == ((HI,), (), {"solution": "42"})


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "hi", "chosen": "yes", "reject": "no"},
            r"needs 'rejected'; found \['prompt', 'chosen', 'reject'\]; did you mean 'reject'",
        ),
        ({"text": "hi"}, r"a pair needs 'prompt' and 'chosen' and 'rejected'; found \['text'\]"),
        (
            {"prompt": "hi", "rejected": "no"},
            r"a pair needs 'chosen'; found \['prompt', 'rejected'\]",
        ),
        (
            {"prompt": 5, "chosen": "yes", "rejected": "no"},
            "'prompt' needs text or messages; found the number 5",
        ),
        (
            {"prompt": "hi", "chosen": None, "rejected": "no"},
            "'chosen' needs text or messages; found null",
        ),
        ({"prompt": "hi", "chosen": [], "rejected": "no"}, "'chosen' needs at least one message"),
        (
            {"prompt": "hi", "chosen": [{"role": "assistant"}], "rejected": "no"},
            r"'chosen' message 1 needs 'role' and 'content'; found \['role'\]",
        ),
        (
            {"prompt": "hi", "chosen": [{"role": "assistant", "content": 5}], "rejected": "no"},
            "'chosen' message 1: 'content' needs text; found the number 5",
        ),
        (
            {
                "prompt": [{"role": "user", "content": [{"type": "image"}]}],
                "chosen": "a",
                "rejected": "b",
            },
            "'prompt' message 1: 'content' needs parts of type 'text'; found 'image'",
        ),
        (
            {"prompt": "hi", "chosen": "yes", "rejected": "no", "margin": float("nan")},
            "'margin' needs a finite number; found the number nan",
        ),
        (
            {"prompt": "hi", "chosen": "yes", "rejected": "no", "weight": "heavy"},
            "'weight' needs a finite number; found 'heavy'",
        ),
        (
            {"prompt": "hi", "chosen": "yes", "rejected": "no", "weight": -1},
            "'weight' must be at least 0; found -1",
        ),
        (
            {"prompt": "hi", "chosen": "yes", "rejected": "no", "margin": 10**400},
            "'margin' needs a finite number; found the number 1000",
        ),
        (
            {"prompt": "hi", "candidates": [{"response": "a", "score": 1}]},
            "found 1 candidates.*melior select",
        ),
        (
            {
                "prompt": "hi",
                "candidates": [{"response": "a", "score": 1}, {"response": "b", "score": 1}],
            },
            r"found 2 candidates with the scores \[1.0, 1.0\]",
        ),
        (
            {"prompt": "hi", "completion": "yes"},
            "needs 'chosen' and 'rejected'.*found 1 candidates",
        ),
    ],
)
def test_rows_that_are_no_pair(tmp_path, row, said):
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: .*{said}") as caught:
        pair_of(tmp_path, row)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (
            {"prompt": "hi", "candidates": [{"respnse": "a"}]},
            "candidate 1: it needs 'response'.*mean 'respnse'",
        ),
        ({"prompt": "hi", "candidates": "a"}, "'candidates' needs a list; found 'a'"),
        ({"prompt": "hi", "candidates": [3]}, "candidate 1 needs 'response'; found the number 3"),
        (
            {"prompt": "hi", "candidates": [{"response": "a", "score": float("inf")}]},
            "candidate 1: 'score' needs a finite number; found the number inf",
        ),
        (
            {"prompt": "hi", "candidates": [{"response": "a", "aspects": [1]}]},
            "'aspects' and 'facts' need objects",
        ),
        (
            {"prompt": "hi", "completion": "a", "label": "maybe"},
            "'label' needs true or false; found 'maybe'",
        ),
        (
            {"prompt": "hi", "all_generated_responses": ["a"], "all_rm_scores": []},
            "1 responses and 0 scores",
        ),
        (
            {"prompt": "hi", "chosn": "yes", "rejected": "no"},
            "a group needs 'chosen'.*did you mean 'chosn'",
        ),
        ({"prompt": "hi"}, r"a group needs 'candidates'; found \['prompt'\]"),
    ],
)
def test_rows_that_are_no_group(tmp_path, row, said):
    with pytest.raises(ValueError, match=rf"a\.jsonl:1: .*{said}"):
        group_of(tmp_path, row)


def test_the_first_row_decides_and_a_later_one_is_named(tmp_path):
    good = {"prompt": "hi", "chosen": "yes", "rejected": "no"}
    found = read_pairs(put(tmp_path, good, {"prompt": "hi", "chosen": "yes", "rejectd": "no"}))
    next(found)
    with pytest.raises(
        ValueError,
        match=r"a\.jsonl:2: a pair needs 'rejected'; found \[.*\]; did you mean 'rejectd'\?",
    ):
        next(found)


def test_a_pair_with_a_slip_in_a_name_is_not_taken_for_a_prompt(tmp_path):
    for row in ({"prompt": "p", "chosen": "c", "reject": "r"}, {"prompt": "p", "completon": "c"}):
        with pytest.raises(ValueError, match=r"a row needs '(rejected|completion)'.*did you mean"):
            next(read_any(put(tmp_path, row)))
    (found,) = read_any(put(tmp_path, {"prompt": "hi", "solution": "42"}))
    assert (found.prompt, found.facts) == ((HI,), {"solution": "42"})


def test_a_named_tool_reads_its_layouts_only(tmp_path):
    path = put(tmp_path, {"instruction": "hi", "chosen": "yes", "rejected": "no"})
    assert next(read_any(path, family="alpaca")) == next(read_any(path))
    with pytest.raises(ValueError, match="a row of rewardbench needs text where there are lists"):
        next(
            read_any(
                put(tmp_path, {"prompt": "a", "chosen": "b", "rejected": "c"}), family="rewardbench"
            )
        )
    path = put(tmp_path, {"instruction": "hi", "chosen": "yes", "rejected": "no"})
    with pytest.raises(ValueError, match="a row of sharegpt needs 'conversations'"):
        next(read_any(path, family="sharegpt"))
    with pytest.raises(ValueError, match=r"--from must be one of .*did you mean 'alpaca'"):
        read_any(path, family="alpca")
