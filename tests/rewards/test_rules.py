import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.records import Candidate, Group, Turn
from melior.rewards import rules

NO_COMMAS = {"name": "no_commas"}
SHORT = {"name": "words", "n": 4, "at": "at most"}


def group(*answers, **facts):
    candidates = tuple(Candidate((Turn("assistant", answer),)) for answer in answers)
    return Group((Turn("user", "Say it."),), candidates, facts, origin="g.jsonl:7")


def scores(*groups, **options):
    return [[c.score for c in g.candidates] for g in rules.score_groups(groups, **options)]


def test_score_is_the_share_of_constraints_met():
    given = group("So it is", "So, it is", "So it is, I think", constraints=[NO_COMMAS, SHORT])
    assert scores(given) == [[1.0, 0.5, 0.0]]


def test_loops_and_empty_answers_lose_against_any_answer():
    loop = "I like the sea. " * 20
    given = group("So, it is", loop, "ha" * 60, "  ", constraints=[NO_COMMAS])
    assert scores(given) == [[0.0, -1.0, -1.0, -1.0]]
    assert rules.share_met(loop, [NO_COMMAS]) == 1.0


def test_aspects_say_what_was_met_and_keep_what_was_there():
    twice = [{"name": "keyword", "word": "sea"}, {"name": "keyword", "word": "sky"}]
    given = group("The sea is so deep", constraints=twice, topic="the sea")
    (scored,) = rules.score_groups([given])
    assert scored.candidates[0].aspects == {
        "keyword": 1.0,
        "keyword 2": 0.0,
        "share_met": 0.5,
        "length": 5.0,
        "repetition": 0.0,
        "on_topic": 1.0,
    }
    assert scored.facts == given.facts
    assert given.candidates[0].score is None


def test_constraints_for_every_group_come_on_top():
    given = group("So, it is here now", "So it is", constraints=[NO_COMMAS])
    assert scores(given, always=[SHORT]) == [[0.0, 1.0]]
    assert scores(group("So it is"), always=[SHORT]) == [[1.0]]


def test_groups_are_scored_as_they_come():
    def endless():
        while True:
            yield group("So it is", constraints=[NO_COMMAS])

    assert next(rules.score_groups(endless())).candidates[0].score == 1.0


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({}, "g.jsonl:7: scoring by rules needs 'constraints'.*found \\[\\]"),
        ({"constraint": []}, "found \\['constraint'\\]"),
        ({"constraints": "no_commas"}, "found 'no_commas'"),
        ({"constraints": [{"name": "no_comas"}]}, "g.jsonl:7.*did you mean 'no_commas'"),
    ],
)
def test_groups_without_right_constraints_are_named(facts, message):
    with pytest.raises(ValueError, match=message):
        list(rules.score_groups([group("a", **facts)]))


@given(st.lists(st.text("ab ,.", max_size=20), min_size=1, max_size=4))
def test_scores_do_not_depend_on_the_other_candidates(answers):
    together = scores(group(*answers, constraints=[NO_COMMAS, SHORT]))[0]
    alone = [scores(group(answer, constraints=[NO_COMMAS, SHORT]))[0][0] for answer in answers]
    assert together == alone


@given(st.text(max_size=100), st.integers(2, 5))
def test_repetition_grows_with_each_copy(text, copies):
    once, more = rules.repetition(text), rules.repetition(f"{text} " * copies)
    assert 0 <= once <= 1
    if len(" ".join(text.split())) >= 12:
        assert more > once


def test_ordinary_lists_do_not_count_as_loops():
    listed = "\n".join(
        f"{i}. **{name}**: {what}"
        for i, (name, what) in enumerate(
            [
                ("Water", "Give the plant a little water when the soil is dry."),
                ("Light", "Put the plant near a window that faces south or east."),
                ("Soil", "Change the soil once a year, in early spring."),
            ],
            1,
        )
    )
    assert rules.repetition(listed) < 0.1


def test_topic_is_found_by_the_beginning_of_its_words():
    assert rules.is_on_topic("Volcanic ash is everywhere.", "volcanoes")
    assert rules.is_on_topic("THE MOON!", "the moon")
    assert not rules.is_on_topic("I like cheese.", "volcanoes")
