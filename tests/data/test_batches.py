"""Portions under a budget, orders that a seed decides, and what truncation keeps."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.batches import (
    GroupBatches,
    TokenGroup,
    Tokens,
    TokenValues,
    ends,
    portions,
    tokenise,
)
from melior.data.chat import Encoded
from melior.data.examples import Example, of_pair
from melior.data.forest import size
from melior.records import Pair, Turn


def encoded(n_prompt: int, n_answer: int, first: int = 0) -> Encoded:
    tokens = tuple(range(first, first + n_prompt)) + tuple(range(900, 900 + n_answer))
    return Encoded(tokens, (False,) * n_prompt + (True,) * n_answer, n_prompt)


def a_pair(origin: str = "f:1") -> Example:
    turn = (Turn("assistant", "x"),)
    return of_pair(Pair((Turn("user", "q"),), turn, turn, origin=origin))


def token_pair(n_prompt: int, n_chosen: int, n_rejected: int, first: int = 0) -> TokenGroup:
    sides = (encoded(n_prompt, n, first) for n in (n_chosen, n_rejected))
    return TokenGroup(tuple(Tokens.of(side, slice(0, None)) for side in sides), (1.0, 0.0))


def batches(groups, **changes) -> GroupBatches:
    options = {"batch_size": 4, "max_tokens": 60, "seed": 1} | changes
    return GroupBatches(groups, TokenValues.zeros(groups), **options)


@given(
    st.lists(st.tuples(*[st.integers(1, 30)] * 3), min_size=1, max_size=12), st.integers(20, 200)
)
def test_portions_hold_every_pair_once_within_the_budget(shapes, budget):
    pairs = [token_pair(*shape, first=40 * i) for i, shape in enumerate(shapes)]
    parts = portions([pair.answers for pair in pairs], budget)
    assert sorted(i for part in parts for i in part) == list(range(len(pairs)))
    for part in parts:
        needed = sum(size(pairs[i].answers) for i in part)
        assert needed <= budget or len(part) == 1


@given(st.integers(1, 20), st.integers(1, 7), st.integers(0, 9))
def test_an_epoch_holds_every_pair_once_and_goes_on_anywhere(n, batch_size, start):
    pairs = [token_pair(5, 3, 4, first=10 * i) for i in range(n)]
    loader = batches(pairs, batch_size=batch_size)
    total = 2 * loader.steps_per_epoch
    whole = [seen(step) for step in loader.iterate(total)]
    for epoch in (whole[: loader.steps_per_epoch], whole[loader.steps_per_epoch :]):
        assert sorted(first for step in epoch for first in step) == [10 * i for i in range(n)]
    assert [seen(step) for step in loader.iterate(total, start=start)] == whole[start:]


def seen(step) -> list[int]:
    """First tokens of the pairs in an optimizer batch."""
    firsts = []
    for part in step:
        firsts += [int(part.forest.tokens[part.forest.rows(int(i))[0]]) for i in part.members[:, 0]]
    return sorted(firsts)


@given(st.integers(1, 9), st.integers(1, 7), st.integers(2, 4), st.integers(20, 90))
def test_processes_share_each_batch_in_as_many_portions(n, batch_size, processes, budget):
    pairs = [token_pair(5, 3 + i % 3, 4, first=10 * i) for i in range(n)]
    options = {"batch_size": batch_size, "max_tokens": budget}
    alone = batches(pairs, **options)
    shared = [
        batches(pairs, **options, process=process, processes=processes)
        for process in range(processes)
    ]
    total = alone.steps_per_epoch
    for whole, *steps in zip(
        alone.iterate(total), *(s.iterate(total) for s in shared), strict=True
    ):
        assert len({len(step) for step in steps}) == 1
        real = [part for step in steps for part in step if not part.is_idle]
        assert seen(real) == seen(whole)
        assert {part.totals for step in steps for part in step} == {whole[0].totals}
        order = [place for part in real for place in part.order]
        assert sorted(order) == [place for part in whole for place in part.order]
        first_of = {place: one for part in whole for place, one in firsts(part)}
        assert all(first_of[place] == one for part in real for place, one in firsts(part))


def firsts(part) -> list[tuple[int, int]]:
    """Where each group of a portion stands in its batch, and its first token."""
    tokens = [int(part.forest.tokens[part.forest.rows(int(i))[0]]) for i in part.members[:, 0]]
    return list(zip(part.order, tokens, strict=True))


def test_portions_know_the_totals_of_their_batch():
    pairs = [token_pair(5, 3 + i, 4, first=40 * i) for i in range(4)]
    (step,) = batches(pairs, max_tokens=16).iterate(1)
    assert len(step) > 1
    assert {part.totals.groups for part in step} == {4}
    assert {part.totals.better_tokens for part in step} == {3 + 4 + 5 + 6}


@pytest.mark.parametrize(
    ("mode", "kept"), [("drop", []), ("keep_end", [(8, 4, 10)]), ("keep_start", [(12, 2, 10)])]
)
def test_truncation_keeps_what_its_mode_says(mode, kept):
    row = (a_pair(), [encoded(10, 2), encoded(10, 6)], [[], []])
    pairs, lengths = tokenise([row], max_length=12, truncation_mode=mode)
    if mode == "keep_start":
        assert [len(answer) for answer in pairs[0].answers] == [12, 12]
        assert pairs[0].answers[1].n_prompt == 10
    elif mode == "keep_end":
        ((chosen, rejected),) = (group.answers for group in pairs)
        assert list(rejected.tokens)[:6] == list(range(4, 10))
        assert list(rejected.tokens)[6:] == list(range(900, 906))
        assert chosen.n_prompt == rejected.n_prompt == 6
        assert list(chosen.mask) == [0] * 6 + [1] * 2
    else:
        assert not pairs
    assert len(pairs) == len(kept)
    assert lengths.too_long == ([] if kept else ["f:1"])
    assert lengths.n_cut == len(kept)


@pytest.mark.parametrize("mode", ["keep_end", "keep_start"])
def test_a_row_that_would_lose_all_of_a_side_is_left_out(mode):
    rows = [
        (a_pair(), [encoded(10, 30), encoded(10, 2)], [[], []]),
        (a_pair("f:2"), [encoded(40, 2), encoded(40, 3)], [[], []]),
    ]
    pairs, lengths = tokenise(rows, max_length=12, truncation_mode=mode)
    left = {"keep_end": ["f:1"], "keep_start": ["f:2"]}[mode]
    assert lengths.too_long == left
    assert len(pairs) == 1


@pytest.mark.parametrize(
    ("scores", "found"),
    [
        ((0.0, 3.0, 1.0), (1, 0)),
        ((2.0, 2.0), (0, 0)),
        ((1.0,), (0, -1)),
        ((0.0,), (-1, 0)),
        ((1.0, math.nan), (0, -1)),
        ((0.0, math.nan), (-1, 0)),
    ],
)
def test_the_ends_of_a_group(scores, found):
    assert ends(scores) == found


def test_no_group_is_an_error():
    with pytest.raises(ValueError, match="at least one row"):
        batches([])
