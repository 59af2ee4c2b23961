"""Steps are found in an answer's text, and each token belongs to one of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.chat import ChatFormat
from melior.data.steps import marked_steps, step_starts, token_steps
from tests.tiny import tiny_tokenizer

CHAT = ChatFormat(tiny_tokenizer())
LETTERS = st.text(alphabet="ab é\n", min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("Step 1: add.\nStep 2: done.", ("Step 1: add.", "Step 2: done.")),
        ("Let us see. step 1: add STEP 12: done", ("Let us see. step 1: add", "STEP 12: done")),
        ("no mark at all", ()),
        ("Step one: add", ()),
        ("footstep 1: no step", ()),
        ("", ()),
    ],
)
def test_steps_are_marked_in_any_case(text, found):
    assert marked_steps(text) == found


@given(st.lists(LETTERS, min_size=1, max_size=5))
def test_marked_steps_stand_in_their_text(contents):
    text = "\n".join(f"Step {i}:{content}" for i, content in enumerate(contents, 1))
    steps = marked_steps(text)
    assert len(steps) == len(contents)
    assert "".join("".join(steps).split()) == "".join(text.split())
    assert step_starts(text, steps) == sorted(step_starts(text, steps))


def test_a_step_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"step 2 must stand in the answer, .* found no 'c d'"):
        step_starts("a b", ["a", "c d"])


def test_steps_stand_in_their_order():
    assert step_starts("one two one", ["one", "two", "one"]) == [0, 4, 8]
    with pytest.raises(ValueError, match=r"step 2 must stand .* follows character 7"):
        step_starts("one two", ["two", "one"])


def test_a_token_belongs_to_the_step_of_its_last_character():
    pieces = ["so ", "one", " two", " thr", "ee", "<end>"]
    assert token_steps(pieces, ["one", "two", "three"]) == [0, 0, 1, 2, 2, 2]
    assert token_steps(pieces, ["one two", "three"]) == [0, 0, 0, 1, 1, 1]


def test_an_answer_without_steps_is_one():
    assert token_steps(["a", " b"], []) == [0, 0]


def test_an_empty_step_has_no_token_but_keeps_its_place():
    assert token_steps(["one", " two"], ["one", "", "two"]) == [0, 2]


@given(st.lists(LETTERS, min_size=1, max_size=5))
def test_every_token_has_one_step_and_steps_never_go_back(contents):
    """Also where a character is several tokens, each of which is a part of one."""
    text = "\n".join(f"Step {i}:{content}" for i, content in enumerate(contents, 1))
    tokens = CHAT.tokenizer.encode(text, add_special_tokens=False)
    found = token_steps(CHAT.pieces(tokens), marked_steps(text))
    assert len(found) == len(tokens)
    assert found == sorted(found)
    assert set(found) == set(range(len(contents)))
