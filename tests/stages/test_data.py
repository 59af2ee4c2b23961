"""Files -> tokens that are learned from: what is marked there is minded."""

from melior.data.chat import ChatFormat
from melior.data.examples import Example
from melior.records import Turn
from melior.stages.data import answer_by_answer, as_it_was_said
from tests.tiny import tiny_tokenizer


def test_no_end_is_learned_of_an_answer_that_was_cut_off():
    chat = ChatFormat(tiny_tokenizer())
    answers = tuple((Turn("assistant", said),) for said in ("one two", "one three", ""))
    example = Example(
        (Turn("user", "count"),), answers, (1.0, 0.0, 0.0), cut_off=(False, True, True)
    )
    (ended,) = answer_by_answer(chat, [example])
    (found,) = as_it_was_said(chat, [example])
    assert found[0] == ended[0]
    assert ended[1].tokens[-1] in chat.stop_token_ids
    assert found[1].tokens == ended[1].tokens[:-1]
    assert found[1].mask == ended[1].mask[:-1] and found[1].mask[-1]
    assert found[2] == ended[2], "something must be left to learn"
