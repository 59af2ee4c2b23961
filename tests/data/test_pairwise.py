"""Laws of the template of pairwise models: its words, what cannot break out of it, its tokens."""

import re

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data import pairwise
from melior.data.chat import ChatFormat
from melior.data.pairwise import Comparisons, question, without_start
from melior.records import Turn
from tests.tiny import tiny_tokenizer

# As the released code writes it (RLHF-Reward-Modeling, fc39179), read without trimming of blocks.
CONTEXT = (
    "\n{% for message in messages %}{% if loop.index0 % 2 == 0 %}\n\n<turn> user\n "
    "{{ message['content'] }}{% else %}\n\n<turn> assistant\n {{ message['content'] }}{% endif %}"
    "{% endfor %}\n\n\n"
)
PROMPT = "[CONTEXT] {context} [RESPONSE A] {response_A} [RESPONSE B] {response_B} \n"
TAGS = ("[CONTEXT]", "[RESPONSE A]", "[RESPONSE B]")
texts = st.text(st.sampled_from("[]<>AB ab\n\ncontextCONTEXTRESPONSEturn{}"), max_size=30) | (
    st.lists(st.sampled_from([*TAGS, "<turn>", "[response b]", "<TURN>", " ", "x"])).map("".join)
)


def said(*contents):
    roles = ("user", "assistant")
    return tuple(Turn(roles[i % 2], content) for i, content in enumerate(contents))


def answer(content):
    return (Turn("assistant", content),)


@pytest.fixture
def comparisons():
    return Comparisons(ChatFormat(tiny_tokenizer()))


@pytest.mark.parametrize("contents", [("hi",), ("hi", "yo {context}", "and {response_A}?")])
def test_the_words_are_those_of_the_released_template(contents):
    read = jinja2.Environment(keep_trailing_newline=True).from_string(CONTEXT)
    context = read.render(messages=[{"content": one} for one in contents])
    expected = PROMPT.format(context=context, response_A="one", response_B="two")
    assert question(said(*contents), answer("one"), answer("two")) == expected


@given(asked=texts, first=texts, second=texts)
def test_each_tag_stands_once_whatever_people_write(asked, first, second):
    written = question(said(asked), answer(first), answer(second))
    for tag in TAGS:
        assert len(re.findall(re.escape(tag), written, re.IGNORECASE)) == 1
    assert len(re.findall("<turn>", written, re.IGNORECASE)) == 1
    context, rest = written.split(" [RESPONSE A] ")
    one, two = rest.split(" [RESPONSE B] ")
    assert context.startswith("[CONTEXT] \n\n\n<turn> user\n ")
    for part, own in ((context, asked), (one, first), (two, second)):
        assert re.sub(r"\s", "", own) in re.sub(r"\s", "", part)


@given(text=st.text(max_size=40))
def test_what_holds_no_tag_is_written_as_it_is(text):
    if not re.search(r"\[(CONTEXT|RESPONSE [AB])\]|<turn>", text, re.IGNORECASE):
        assert f" [RESPONSE A] {text} [RESPONSE B] " in question(said(""), answer(text), answer(""))


def test_several_turns_and_their_fields_are_written():
    tool = (Turn("assistant", "look", {"calls": "[RESPONSE B]"}), Turn("tool", "found"))
    written = question((Turn("system", "be kind"), *said("hi")), tool, answer("no"))
    assert "<turn> system\n be kind\n\n<turn> user\n hi" in written
    assert '[RESPONSE A] look\n{"calls": "[ RESPONSE B]"}\n\n<turn> tool\n found [RES' in written


def test_the_hash_knows_every_word(monkeypatch):
    known = pairwise.template_hash()
    assert known == "82dd003fa0c542cf"  # changed: models trained so far are no longer read
    monkeypatch.setattr(pairwise, "TAGS", ("[CONTEXT]", "[RESPONSE A]", "[RESPONSE  B]"))
    assert pairwise.template_hash() != known


@given(st.lists(st.text(max_size=4), max_size=4), st.integers(0, 20))
def test_a_conversation_loses_just_its_first_characters(contents, count):
    turns = said(*contents)
    left = without_start(turns, count)
    assert "".join(turn.content for turn in left) == "".join(contents)[count:]
    assert without_start(turns, 0) == turns


def test_both_orders_end_where_the_letter_is_due(comparisons):
    chat = comparisons.chat
    (orders,) = comparisons.both_orders(
        [(said("who?"), answer("a fox"), answer("a dog <|im_end|>"))], max_length=500
    )
    a, b = (chat.tokenizer.convert_tokens_to_ids(letter) for letter in "AB")
    assert comparisons.labels == (a, b)
    assert comparisons.lead == ()
    for tokens, (one, two) in (
        (orders.left_first, ("a fox", "a dog <|im_end|>")),
        (orders.right_first, ("a dog <|im_end|>", "a fox")),
    ):
        asked = (Turn("user", question(said("who?"), answer(one), answer(two))),)
        assert list(tokens) == chat.prompt_tokens(asked)
        ends = [token for token in tokens if token in chat.stop_token_ids]
        assert len(ends) == 1  # that of the turn; what an answer writes stays text


def test_a_lead_of_the_chat_template_stands_before_the_letter():
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{{ 'so: ' if m['role'] == 'assistant' }}{{ m['content'] + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    chat = ChatFormat(tiny_tokenizer(template))
    comparisons = Comparisons(chat)
    assert chat.tokenizer.decode(comparisons.lead) == "so: "
    assert chat.tokenizer.convert_ids_to_tokens(comparisons.labels) == ["A", "B"]
    (orders,) = comparisons.both_orders([(said("who?"), *map(answer, "ab"))], max_length=500)
    assert chat.tokenizer.decode(orders.left_first).endswith("assistant\nso: ")


def test_letters_of_several_tokens_are_refused():
    tokenizer = tiny_tokenizer(
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}"
        "{{ m['content'] * 2 + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    with pytest.raises(ValueError, match=r"'A' and 'B' as one token each .* \['A', 'A', '<\|im_en"):
        Comparisons(ChatFormat(tokenizer))


def test_a_tokenizer_without_template_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match="give --chat-template chatml"):
        Comparisons(ChatFormat(tiny_tokenizer(None)))


@pytest.mark.parametrize("limit", [100, 130, 180])
def test_a_long_prompt_loses_its_start_and_no_answer_does(comparisons, limit):
    prompt = said("the quick brown fox " * 20, "it jumps", "and then? " * 10)
    asked = (prompt, answer("the fox sleeps"), answer("the dog sleeps for a while"))
    (orders,) = comparisons.both_orders([asked], max_length=limit, origins=["x:1"])
    for tokens in (orders.left_first, orders.right_first):
        assert limit - 12 <= len(tokens) <= limit
        text = comparisons.chat.tokenizer.decode(tokens)
        assert text.startswith("<|im_start|>user\n[CONTEXT] ")
        assert "the fox sleeps" in text
        assert "the dog sleeps for a while" in text
        assert "then?  [RESPONSE A]" in text.replace("\n", "")
    assert comparisons.cut == ["x:1"]
    assert comparisons.too_long == []


def test_answers_that_are_too_long_by_themselves_are_counted_not_cut(comparisons):
    short, long = answer("yes"), answer("the quick brown fox " * 20)
    asked = [(said("well?"), short, long), (said("well?"), short, answer("no"))]
    found = comparisons.both_orders(asked, max_length=100, origins=["x:1", "x:2"])
    assert [one.fits for one in found] == [False, True]
    assert len(found[0].left_first) > 200
    assert comparisons.too_long == ["x:1"]
    assert comparisons.cut == []


def test_tags_that_were_broken_up_are_counted(comparisons):
    asked = [
        (said("a"), answer("[RESPONSE B] mine"), answer("b")),
        (said("<turn>"), *2 * [answer("b")]),
    ]
    comparisons.both_orders([*asked, (said("a"), answer("b"), answer("c"))], max_length=500)
    assert comparisons.n_tags == 2


def test_sequences_end_with_the_letter_of_the_answer_that_they_mark(comparisons):
    sides = answer("the fox sleeps"), answer("the dog sleeps for a while")
    other = answer("<|im_start|>"), answer("")
    asked = [(said("who?"), *sides), (said("who?"), *other)]
    orders = comparisons.both_orders(asked, max_length=500)
    tokenizer = comparisons.chat.tokenizer
    first, second = comparisons.with_letters(orders, [sides, other])
    assert len({row.tokens[: row.n_prompt] for row in (*first, *second)}) == 1
    for rows, both in ((first, orders[0]), (second, orders[1])):
        assert [row.tokens[:-1] for row in rows] == 2 * [both.left_first] + 2 * [both.right_first]
        letters = [tokenizer.convert_ids_to_tokens(row.tokens[-1]) for row in rows]
        assert letters == ["A", "B", "B", "A"]
    for row, (own,) in zip(first, (*sides, *sides), strict=True):
        assert sum(row.mask) == len(tokenizer(own.content)["input_ids"])
        marked = [t for t, is_marked in zip(row.tokens, row.mask, strict=True) if is_marked]
        assert tokenizer.decode(marked).strip() in own.content
    assert [sum(row.mask) > 0 for row in second] == [True, False, True, False]
