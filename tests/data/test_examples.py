"""What rows teach: pairs, lists with steps, answers judged alone; and what they must hold."""

import json
import math

import pytest

from melior.cli import main
from melior.data.batches import tokenise
from melior.data.chat import Encoded
from melior.data.examples import Example, read_examples, with_strangers
from melior.data.files import as_group, duel, read_any, read_groups, read_pairs, read_prompts
from melior.records import Turn, text

STEPS = ["Step 1: 2 + 3 = 5.", "Step 2: 5 * 4 = 20."]
TREE = {
    "index": 7,
    "prompt": "What is (2 + 3) * 4?",
    "response_list": [
        {"response": STEPS, "score": 95, "reasoning": "right"},
        {"response": ["Step 1: 3 * 4 = 12."], "score": -60.5},
        {"response": "Let us see. Step 1: 2 + 3 = 6. step 2: 24", "score": 0},
        {"response": "It is 20.", "score": -10},
    ],
    "dataset": "sums",
    "answer": "20",
    "score_lo": -100,
    "score_hi": 100,
}
STEP_DPO = {
    "dataset": "sums",
    "prompt": "What is (2 + 3) * 4?",
    "initial_reason_steps": "Let's think step by step.\nStep 1: 2 + 3 = 5.\nStep 2:",
    "chosen": " 5 * 4 = 20.",
    "rejected": " 5 * 4 = 25.",
    "full_chosen": " 5 * 4 = 20.\nStep 3: The answer is 20.",
    "full_rejected": " 5 * 4 = 25.",
    "answer": "20",
}


def written(tmp_path, *rows, name="a.jsonl"):
    path = tmp_path / name
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(path)


def lists(tmp_path, *rows):
    return list(read_examples("lists", [written(tmp_path, *rows)]))


def ask(i: int = 0) -> str:
    return f"question {i}"


def candidates(*scores, **more):
    found = [{"response": f"answer {i}", "score": score} for i, score in enumerate(scores)]
    return {"prompt": ask(), "candidates": found} | more


def test_tpos_records_are_lists_in_steps(tmp_path):
    (group,) = read_groups(written(tmp_path, TREE))
    assert group.prompt == (Turn("user", TREE["prompt"]),)
    assert [one.score for one in group.candidates] == [95, -60.5, 0, -10]
    assert text(group.candidates[0].response) == "Step 1: 2 + 3 = 5.\nStep 2: 5 * 4 = 20."
    assert [one.steps for one in group.candidates] == [
        tuple(STEPS),
        ("Step 1: 3 * 4 = 12.",),
        ("Let us see. Step 1: 2 + 3 = 6.", "step 2: 24"),
        (),
    ]
    assert group.candidates[0].facts == {"reasoning": "right"}
    assert group.facts["answer"] == "20" and group.facts["score_lo"] == -100
    (example,) = lists(tmp_path, TREE)
    found = dict(zip(example.scores, example.steps, strict=True))
    assert found == {one.score: one.steps for one in group.candidates}


def test_step_dpos_records_are_two_answers_that_share_their_first_steps(tmp_path):
    (group,) = read_groups(written(tmp_path, STEP_DPO))
    good, bad = group.candidates
    assert (good.score, bad.score) == (1, 0)
    start = STEP_DPO["initial_reason_steps"]
    assert text(good.response) == start + STEP_DPO["full_chosen"]
    assert text(bad.response) == start + STEP_DPO["full_rejected"]
    first = "Let's think step by step.\nStep 1: 2 + 3 = 5."
    assert good.steps == (first, "Step 2: 5 * 4 = 20.", "Step 3: The answer is 20.")
    assert bad.steps == (first, "Step 2: 5 * 4 = 25.")
    (pair,) = read_pairs(written(tmp_path, STEP_DPO))
    assert text(pair.chosen) == text(good.response)
    (bare,) = read_groups(written(tmp_path, STEP_DPO | {"initial_reason_steps": ""}))
    assert text(bare.candidates[1].response) == " 5 * 4 = 25."
    spaced = STEP_DPO | {"full_chosen": "20.", "full_rejected": "25."}
    (joined,) = read_groups(written(tmp_path, spaced))
    assert text(joined.candidates[0].response).endswith("Step 2: 20.")


@pytest.mark.parametrize("end", [None, "", 20])
def test_step_dpos_records_need_both_ways_to_go_on(tmp_path, end):
    with pytest.raises(ValueError, match=r"a\.jsonl:1: 'full_rejected' needs text; found"):
        list(read_groups(written(tmp_path, STEP_DPO | {"full_rejected": end})))


@pytest.mark.parametrize(("row", "family"), [(TREE, "tpo"), (STEP_DPO, "step-dpo")])
def test_steps_survive_conversion(tmp_path, row, family):
    source, out = written(tmp_path, row), str(tmp_path / "b.jsonl")
    main(["data", "convert", source, out, "--from", family])
    (before,), (after,) = read_any(source), read_any(out)
    assert after.candidates == before.candidates
    assert after.facts == before.facts
    again = lists(tmp_path, row)
    assert next(read_examples("lists", [out])).steps == again[0].steps


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"score": 101}, "response 1: 'score' must lie from score_lo -100.0 to score_hi 100.0"),
        ({"score": -101}, "found -101"),
        ({"response": []}, "response 1: 'response' needs steps, each a text; found []"),
        ({"response": [1]}, "response 1: 'response' needs steps, each a text; found [1]"),
        ({"response": None}, "needs steps, each a text; found None"),
        ({"score": "much"}, "response 1: 'score' needs a finite number; found 'much'"),
    ],
)
def test_a_wrong_answer_of_a_tree_is_named(tmp_path, change, said):
    row = TREE | {"response_list": [TREE["response_list"][0] | change]}
    with pytest.raises(ValueError, match=r"a\.jsonl:1") as error:
        list(read_groups(written(tmp_path, row)))
    assert said in str(error.value)


def test_objects_are_asked_for_by_name(tmp_path):
    with pytest.raises(ValueError, match=r"a\.jsonl:1: response 2 needs an object; found 'no'"):
        list(read_groups(written(tmp_path, TREE | {"response_list": [{"response": "a"}, "no"]})))
    with pytest.raises(ValueError, match="completion 1 needs an object; found 'no'"):
        list(read_groups(written(tmp_path, {"context": ask(), "completions": ["no"]})))
    with pytest.raises(ValueError, match="candidate 1: 'steps' needs a list of texts"):
        found = [{"response": "a", "steps": "a"}]
        list(read_groups(written(tmp_path, {"prompt": ask(), "candidates": found})))


def test_ranks_are_scores_the_other_way_round(tmp_path):
    said = [{"rank": rank, "completion": [{"role": "assistant", "content": f"{rank}"}]}
            for rank in (2, 0, 1)]  # fmt: skip
    row = {"context": [{"role": "user", "content": "hi"}], "completions": said}
    (example,) = lists(tmp_path, row)
    found = {text(answer): score for answer, score in zip(example.answers, example.scores,
                                                          strict=True)}  # fmt: skip
    assert found == {"0": 0, "1": -1, "2": -2}


def test_lists_are_shuffled_by_the_seed_alone(tmp_path):
    path = written(tmp_path, *[candidates(*range(6)) for _ in range(4)])
    first, again, other = (
        [example.scores for example in read_examples("lists", [path], seed=seed)]
        for seed in (0, 0, 1)
    )
    assert first == again != other
    assert len(set(first)) > 1  # not one order for all lists
    assert all(sorted(scores) == list(range(6)) for scores in first)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (candidates(1), "found 1, 0 without"),
        (candidates(), "found 0, 0 without"),
        (candidates(1, None), "found 2, 1 without; score them with `melior score`"),
        (candidates(1, math.nan), "candidate 2: 'score' needs a finite number; found"),
        (candidates(1, math.inf), "candidate 2: 'score' needs a finite number; found"),
        ({"prompt": ask(), "completion": "b", "label": True}, "found 1, 0 without"),
        (candidates(1, 2, weight=-1), "'weight' must be at least 0; found -1"),
    ],
)
def test_what_is_no_scored_list_is_refused(tmp_path, row, said):
    with pytest.raises(ValueError, match=r"a\.jsonl:1") as error:
        lists(tmp_path, row)
    assert said in str(error.value)


def test_a_step_that_its_answer_lacks_is_named_by_row_candidate_and_step(tmp_path):
    good = {"response": "one two", "score": 1, "steps": ["one", "two"]}
    bad = {"response": "one two", "score": 0, "steps": ["one", "three"]}
    row = {"prompt": ask(), "candidates": [good, good | {"score": 2}, bad]}
    with pytest.raises(ValueError, match=r"a\.jsonl:2: candidate 3: step 2 must stand in the ans"):
        lists(tmp_path, candidates(1, 2), row)


def test_pairs_are_lists_of_two(tmp_path):
    (example,) = lists(tmp_path, {"prompt": ask(), "chosen": "a", "rejected": "b", "margin": 3})
    assert sorted(zip(map(text, example.answers), example.scores, strict=True)) == [
        ("a", 3.0), ("b", 0.0),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": ask(), "completion": "b"}, "needs 'label', true or false; found no score"),
        (candidates(3), "needs 'label', true or false; found the score 3"),
        (candidates(0.5, 1), "needs 'label', true or false; found the score 0.5"),
        (candidates(), "an answer needs 'completion'; found a prompt alone"),
        (
            {"prompt": ask(), "completion": "b", "label": "good"},
            "'label' needs true or false; found 'good'",
        ),
        (
            {"prompt": ask(), "completion": "b", "label": 2},
            "'label' needs true or false; found the number 2",
        ),
    ],
)
def test_what_has_no_label_is_no_answer_to_judge_alone(tmp_path, row, said):
    with pytest.raises(ValueError, match=r"a\.jsonl:1") as error:
        list(read_examples("answers", [written(tmp_path, row)]))
    assert said in str(error.value)


def test_pairs_are_two_answers_judged_alone(tmp_path):
    row = {"prompt": ask(), "chosen": "a", "rejected": "b", "margin": -2, "weight": 0.5}
    good, bad = read_examples("answers", [written(tmp_path, row)])
    assert (text(good.answers[0]), good.scores, good.weight) == ("a", (1.0,), 0.5)
    assert (text(bad.answers[0]), bad.scores, bad.weight) == ("b", (0.0,), 0.5)


@pytest.mark.parametrize("data", ["lists", "answers"])
def test_rows_of_any_kind_have_weights(tmp_path, data):
    path = written(tmp_path, candidates(1, 0, weight=0.25), candidates(0, 1))
    found = [example.weight for example in read_examples(data, [path])]
    assert sorted(set(found)) == [0.25, 1.0]


@pytest.mark.parametrize("data", ["pairs", "lists", "answers"])
def test_a_pair_keeps_its_weight_whatever_it_is_read_as(tmp_path, data):
    row = {"prompt": ask(), "chosen": "a", "rejected": "b", "weight": 0.5}
    path = written(tmp_path, row)
    assert {example.weight for example in read_examples(data, [path])} == {0.5}


def test_two_candidates_keep_their_weight_as_a_pair(tmp_path):
    path = written(tmp_path, candidates(3, 1, weight=0.25))
    (pair,) = read_pairs([path])
    assert pair.weight == 0.25
    assert "weight" not in pair.facts
    bad = written(tmp_path, candidates(3, 1, weight=-1), name="b.jsonl")
    with pytest.raises(ValueError, match=r"b\.jsonl:1: 'weight' must be at least 0; found -1"):
        list(read_pairs([bad]))


@pytest.mark.parametrize("data", ["pairs", "lists", "answers"])
def test_an_answer_that_was_cut_off_stays_marked_whatever_it_is_read_as(tmp_path, data):
    two = candidates(1, 0)
    two["candidates"][1]["facts"] = {"is_finished": False}
    pair = {"prompt": ask(), "chosen": "answer 0", "rejected": "answer 1"}
    for row in (two, pair | {"is_finished_rejected": False}):
        read = read_examples(data, [written(tmp_path, row)])
        marks = {
            text(a): cut for one in read for a, cut in zip(one.answers, one.cut_off, strict=True)
        }
        assert marks == {"answer 0": False, "answer 1": True}


@pytest.mark.parametrize("value", [None, "", True])
def test_a_mark_that_says_nothing_cuts_nothing_off(tmp_path, value):
    row = {"prompt": ask(), "chosen": "a", "rejected": "b", "is_finished_chosen": value}
    (one,) = read_examples("pairs", [written(tmp_path, row)])
    assert one.cut_off == (False, False)


def test_what_was_said_of_other_answers_is_not_inherited(tmp_path):
    row = {"prompt": ask(), "chosen": "a", "rejected": "b", "is_finished_chosen": False,
           "is_finished_rejected": True, "chosen_share": 0.7, "topic": "x"}  # fmt: skip
    path = written(tmp_path, row)
    (prompt,) = read_prompts(path)
    assert prompt.facts == {"topic": "x"}
    (pair,) = read_pairs(path)
    bad, good = as_group(pair).candidates
    turned = duel(as_group(pair), good, bad, margin=1.0)
    assert (turned.facts["is_finished_chosen"], turned.facts["is_finished_rejected"]) == (
        True,
        False,
    )
    assert "chosen_share" not in turned.facts


def answers(*prompts: int) -> list[Example]:
    return [
        Example((Turn("user", ask(p)),), ((Turn("assistant", f"{i}"),),), (1.0,), origin=f"f:{i}")
        for i, p in enumerate(prompts)
    ]


@pytest.mark.parametrize(
    ("prompts", "strangers"),
    [
        ((0, 1, 2), "1 2 0"),
        ((0, 0, 1), "2 2 0"),
        ((0, 1, 1, 0), "1 3 3 0"),
    ],
)
def test_a_stranger_is_the_answer_to_the_next_other_prompt(prompts, strangers):
    given = answers(*prompts)
    if prompts[0] == prompts[-1]:  # the last ones have no other prompt after them, nor the first's
        with pytest.raises(ValueError, match="f:0: needs answers to two or more prompts"):
            list(with_strangers(given))
        return
    found = list(with_strangers(given))
    assert [one.answers[0] for one in found] == [one.answers[0] for one in given]
    assert " ".join(text(one.answers[1]) for one in found) == strangers
    assert all(one.scores[0] == 1.0 and math.isnan(one.scores[1]) for one in found)


def test_one_prompt_has_no_stranger():
    with pytest.raises(ValueError, match="f:0: needs answers to two or more prompts; found one"):
        list(with_strangers(answers(0, 0, 0)))


def encoded(n_prompt: int, n_answer: int) -> Encoded:
    tokens = tuple(range(n_prompt)) + tuple(range(900, 900 + n_answer))
    return Encoded(tokens, (False,) * n_prompt + (True,) * n_answer, n_prompt)


def a_tree() -> tuple[Example, list[Encoded], list[list[int]]]:
    turn = (Turn("assistant", "x"),)
    example = Example(
        (Turn("user", "q"),), (turn, turn), (1.0, 0.0), (("x",), ("x",)), origin="f:1"
    )
    return example, [encoded(8, 4), encoded(8, 6)], [[0, 0, 1, 1], [0, 0, 0, 1, 1, 1]]


def test_answers_in_steps_keep_their_ends():
    with pytest.raises(ValueError, match=r"f:1: .*found truncation_mode keep_start; choose drop"):
        tokenise([a_tree()], max_length=12, truncation_mode="keep_start")
    (group,), _ = tokenise([a_tree()], max_length=12, truncation_mode="keep_end")
    assert [answer.steps.tolist() for answer in group.answers] == a_tree()[2]
    assert [sum(answer.mask) for answer in group.answers] == [4, 6]
    groups, lengths = tokenise([a_tree()], max_length=12, truncation_mode="drop")
    assert not groups and lengths.too_long == ["f:1"]


@pytest.mark.parametrize("data", ["pairs", "answers", "lists"])
def test_a_share_that_is_not_read_may_not_contradict_the_label(data, tmp_path):
    def source(*shares):
        path = tmp_path / "shares.jsonl"
        row = {"prompt": "hello", "chosen": "yes", "rejected": "no"}
        lines = [json.dumps(row | {"chosen_share": share}) + "\n" for share in shares]
        path.write_text("".join(lines), encoding="utf-8")
        return [str(path)]

    assert {one.share for one in read_examples(data, source(None, 0.5, 1))} == {1.0}
    with pytest.raises(ValueError, match=r"shares.jsonl:2: 'chosen_share' .* found 0\.2; swap"):
        list(read_examples(data, source(0.8, 0.2)))
    shares = [one.share for one in read_examples("comparisons", source(0.8, 0.2))]
    assert shares == [0.8, 0.2]
