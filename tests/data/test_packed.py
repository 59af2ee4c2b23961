"""Groups as flat tensors, and back."""

import math
from array import array

from hypothesis import given
from hypothesis import strategies as st

from melior.data.batches import TokenGroup, Tokens
from melior.data.packed import packed, unpacked

NUMBER = st.floats(allow_nan=False, width=64)
IDS = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans()), max_size=8)
ANSWER = st.tuples(IDS, st.integers(0, 8), st.lists(st.integers(0, 2**16 - 1), max_size=4), NUMBER)
GROUP = st.tuples(
    st.lists(ANSWER, min_size=1, max_size=3),
    st.tuples(NUMBER, NUMBER, st.text(), st.text(), NUMBER, st.binary(max_size=3)),
)


def tokens(ids, n_prompt, steps):
    mask = bytes(is_said for _, is_said in ids)
    return Tokens(array("i", [one for one, _ in ids]), mask, n_prompt, array("H", steps))


@given(st.lists(GROUP, max_size=4))
def test_what_is_packed_comes_back(drawn):
    groups = [
        TokenGroup(tuple(tokens(*one[:3]) for one in own), tuple(one[3] for one in own), *rest)
        for own, rest in drawn
    ]
    assert unpacked(packed(groups)) == groups


def test_a_score_that_is_none_comes_back():
    one = TokenGroup((Tokens(array("i", [1]), b"\1", 0),) * 2, (1.0, math.nan))
    (found,) = unpacked(packed([one]))
    assert found.scores[0] == 1.0 and math.isnan(found.scores[1])
