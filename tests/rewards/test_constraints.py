import string
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.rewards import rules
from melior.rewards.constraints import CONSTRAINTS, checked, split_words

CASES = {
    "bullets": [
        ({"n": 2}, "- one\n- two", "- one\n- two\n- three"),
        ({"n": 2}, "Here:\n* one\n\n  • two\nBye", "1. one\n2. two"),
        ({"n": 2}, "- one\n- two", "- same\n- same"),
        ({"n": 1}, "– one", "**one**\n---\n***\n-\n- !"),
        ({"n": 2, "at": "at most"}, "- one", "one"),
        ({"n": 2, "at": "at least"}, "- one\n- two\n- two", "- one\n- one\n- ONE"),
    ],
    "numbered": [
        ({"n": 2}, "1. one\n2. two", "1. one\n1. two"),
        ({"n": 2}, "So:\n\n1) one\n\n2) two", "1. one\n3. two"),
        ({"n": 2, "at": "at least"}, "1. one\n2. two\n3. three", "- one\n- two"),
    ],
    "sentences": [
        ({"n": 2}, "Dr. Who paid 3.50 at 5 p.m. sharp. I like J. Smith", "One. Two. Three."),
        ({"n": 2}, "Is it? It is!", "Is it"),
        ({"n": 2}, 'She said "Go." Then she went...', "Same. Same."),
        ({"n": 3}, "A head:\n\n- one\n- two", "one two three"),
        ({"n": 2}, "雨です。雪です。", "雨です。"),
        ({"n": 2, "at": "at most"}, "So am I. Are you?", "I am. I was. I will be."),
        ({"n": 2, "at": "at least"}, "One. Two. Two.", "One. One. One."),
    ],
    "words": [
        ({"n": 3}, "It's well-known - 3.5!", "one two three four"),
        ({"n": 3, "at": "exactly"}, "1. one\n2. two\n- three", "one two"),
        ({"n": 3, "at": "at least"}, "one two three four", "one - - two"),
    ],
    "lines": [({"n": 2}, "one\n\n---\ntwo\n", "one two"), ({"n": 2}, "a\nb", "a\na")],
    "paragraphs": [
        ({"n": 2}, "one\n\nmore\n***\ntwo", "one\n\ntwo"),
        ({"n": 2}, "***\none\n ***\ntwo\n***", "one *** two"),
        ({"n": 2}, "one\n***\ntwo", "one\n***\n***"),
    ],
    "keyword": [
        ({"word": "art"}, "All Art is quite useless.", "The party was useless here."),
        ({"word": "art"}, "It is 'ART', he said.", "art art art"),
        ({"word": "cafe\u0301"}, "The caf\u00e9 is full today.", "The cafe is full today."),
        ({"word": "ice cream", "n": 2}, "Ice\ncream is ice cream for me.", "Ice cream for me."),
        ({"word": "no", "n": 1, "at": "exactly"}, "No one was there.", "No one said no today."),
    ],
    "forbidden": [
        ({"words": ["you", "can"]}, "Your candle burns.", "Can it burn?"),
        ({"words": ["don't"]}, "Do it.", "Don’t do it."),
    ],
    "no_commas": [({}, "One and two.", "One, two."), ({}, "一二", "一，二"), ({}, "1000", "1,000")],
    "no_digits": [({}, "One and two.", "1 and two."), ({}, "three", "٣")],
    "lower_case": [({}, "so it is: 3 é", "So it is"), ({}, "ok", "123")],
    "upper_case": [({}, "SO IT IS: 3 É", "SO IT Is"), ({}, "OK", "123")],
    "capital_words": [
        ({"n": 1}, "This is VERY good.", "I am A good one."),
        ({"n": 2}, "NASA and ESA met.", "ALL OF THIS IS LOUD."),
    ],
    "letter": [({"letter": "z", "n": 2}, "Zigzag", "zero"), ({"letter": "e", "n": 1}, "E", "é")],
    "json_only": [
        ({}, '{"a": 1}', "a: 1"),
        ({}, '```json\n{"a": 1}\n```', 'Here:\n```json\n{"a": 1}\n```'),
        ({}, "[1]", "[]"),
        ({"keys": ["a"]}, '{"a": 0, "b": null}', '{"b": 1}'),
        ({"keys": ["a"]}, '{"a": false}', '{"a": ""}'),
        ({"keys": ["a"]}, '{"a": "x"}', '["a"]'),
        ({"keys": ["a"]}, '{"a": [1]}', '{"a": "..."}'),
        ({}, "[0]", "[NaN]"),
        ({}, "[[0]]", "[" * 100_000),
    ],
    "starts_with": [
        ({"phrase": "Of course"}, "of  course, I will do it.", "Of coursework there is much."),
        ({"phrase": "Well"}, '**"Well**, I will do it."', "I will do it well."),
        ({"phrase": "Well"}, "Well, I will do it.", "Well."),
    ],
    "ends_with": [
        ({"phrase": "Good luck!"}, "Do it like this. *Good luck*.", "Good luck with doing it."),
        ({"phrase": "the end"}, "It was fun, and so THE END", "The end!"),
        ({"phrase": "end"}, "So this is the end", "So this will not bend"),
    ],
    "quoted": [
        ({}, ' "So be it." ', 'He said "so be it."'),
        ({}, "“So be it.”", '""'),
        ({}, '"So"', "'So'"),
    ],
    "title": [
        ({}, "<<My day>>\nIt was fun today.", "<My day>\nIt was fun today."),
        ({}, "It was fun today. <<End>>", "<<It was fun today.>>"),
        ({}, "<<Day>> It was fun.", "<< >> It was fun."),
    ],
    "highlights": [
        ({"n": 1}, "This is **very** good now.", "* This is very good now."),
        ({"n": 2}, "*Some* of it *was* good and new.", "*Some* of it *some* good and new."),
        ({"n": 1}, "A *b* c d e.", "*All of it is high*"),
        ({"n": 1}, "Two *by two* is four now.", "2 * 3 is less than 3 * 4 here"),
    ],
    "postscript": [
        ({}, "Dear Ann.\n\nP.S. Come soon", "P.S. Come soon"),
        ({}, "Dear Ann.\n**PS:** Come soon", "Dear Ann. P.S. Come soon"),
        ({"marker": "P.P.S."}, "Dear Ann.\nP.P.S. Come", "Dear Ann.\nP.S. Come"),
        ({}, "Dear Ann.\np.s. come", "Dear Ann.\nPsychology is next"),
        ({}, "Dear Ann.\nP.S. Come", "Dear Ann.\nP.S."),
        ({}, "Dear Ann.\nP.S.\nCome", "***\nP.S. Come"),
    ],
    "placeholders": [
        ({"n": 2}, "Dear [name], come to [place].", "Dear [name], dear [name]."),
        ({"n": 1}, "At [time]", "At [time](http://t.org) [x] [ ]"),
    ],
    "question": [({}, "How so?", "So."), ({}, 'He said "how?"', "???"), ({}, "何？", "何")],
    "choice": [
        ({"options": ["yes", "no"]}, " **Yes.** ", "Yes, I think so."),
        ({"options": ["A b", "c"]}, "a b", "a"),
    ],
}
FLAT = [(name, *case) for name, cases in CASES.items() for case in cases]


def test_every_constraint_has_cases():
    assert set(CASES) == set(CONSTRAINTS)
    assert all(check.__doc__ for check in CONSTRAINTS.values())


@pytest.mark.parametrize(("name", "parameters", "good", "bad"), FLAT)
def test_constraint_tells_good_from_bad(name, parameters, good, bad):
    constraint = checked({"name": name, **parameters}, "here")
    assert rules.is_met(good, constraint)
    assert not rules.is_met(bad, constraint)


@pytest.mark.parametrize(("name", "parameters", "good", "bad"), FLAT)
@pytest.mark.parametrize("empty", ["", " \n\t", "\u3000"])
def test_an_empty_answer_meets_nothing(name, parameters, good, bad, empty):
    assert not rules.is_met(empty, {"name": name, **parameters})


@given(st.text(max_size=80), st.sampled_from(FLAT))
def test_any_text_is_judged_and_white_space_around_it_does_not_matter(text, case):
    name, parameters, _, _ = case
    constraint = {"name": name, **parameters}
    assert rules.is_met(text, constraint) == rules.is_met(f"\n{text} \n", constraint)


@pytest.mark.parametrize("piece", ["*\n", "\n\n***", "e.g. ", "*a", "<<a", "[a", "- a\n", "?\"'"])
def test_long_answers_are_judged_in_a_moment(piece):
    answer = (piece * 50_000)[:50_000]
    begin = time.process_time()
    for name, cases in CASES.items():
        rules.is_met(answer, {"name": name, **cases[0][0]})
    assert time.process_time() - begin < 5, "a quadratic search takes a minute"


WORDS = st.lists(st.text(string.ascii_lowercase, min_size=2, max_size=6), min_size=1, max_size=9)


@given(WORDS)
def test_counts_of_what_was_joined_are_found_again(parts):
    distinct = list(dict.fromkeys(parts))
    n = len(distinct)
    joined = {
        "bullets": "\n".join(f"- {part}" for part in distinct),
        "numbered": "\n".join(f"{i}. {part}" for i, part in enumerate(distinct, 1)),
        "sentences": " ".join(f"Look at {part}." for part in distinct),
        "lines": "\n".join(distinct),
        "paragraphs": "\n***\n".join(distinct),
        "words": " ".join(distinct),
    }
    for name, text in joined.items():
        for at, holds in (("exactly", True), ("at least", True), ("at most", True)):
            assert rules.is_met(text, {"name": name, "n": n, "at": at}) == holds, text
        assert not rules.is_met(text, {"name": name, "n": n + 1, "at": "exactly"})
        assert not rules.is_met(text, {"name": name, "n": n + 1, "at": "at least"})
        assert rules.is_met(text, {"name": name, "n": n + 1, "at": "at most"})


@given(st.text(max_size=60))
def test_words_are_what_white_space_separates(text):
    assert len(split_words(text)) <= len(text.split())
    assert split_words(" ".join(split_words(text))) == split_words(text) or any(
        mark in text for mark in "-*•–.)"
    )


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        ({"name": "bulets", "n": 3}, "f.jsonl:3: .*'bulets'; did you mean 'bullets'"),
        ({"name": "bullets"}, "f.jsonl:3: constraint 'bullets' needs 'n'"),
        ({"name": "bullets", "m": 3}, "f.jsonl:3: a parameter of 'bullets' must be one of n, at"),
        ({"name": "keyword", "wrod": "a"}, "found 'wrod'; did you mean 'word'"),
        ({"name": "bullets", "n": "3"}, "'n' of 'bullets' must be a whole number .* found '3'"),
        ({"name": "bullets", "n": True}, "whole number"),
        ({"name": "bullets", "n": 0}, "at least 1; found 0"),
        ({"name": "bullets", "n": 3, "at": "exact"}, "did you mean 'exactly'"),
        ({"name": "no_commas", "n": 3}, "takes no parameters; found 'n'"),
        ({"name": "forbidden", "words": "you"}, "must be a list of texts; found 'you'"),
        ({"name": "forbidden", "words": []}, "must be a list of texts"),
        ({"name": "keyword", "word": " "}, "must be a text"),
        ({"n": 3}, "needs a 'name'"),
        ("bullets", "needs a 'name'"),
    ],
)
def test_wrong_constraints_are_named_with_the_way_out(constraint, message):
    with pytest.raises(ValueError, match=message):
        checked(constraint, "f.jsonl:3")
