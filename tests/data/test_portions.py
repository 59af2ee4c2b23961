"""A batch is divided over processes evenly, and nothing of it is lost or doubled."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from melior.data.forest import size
from melior.data.portions import even_portions


@dataclass(frozen=True)
class Sequence:
    tokens: tuple[int, ...]
    mask: tuple[bool, ...]


def group(length: int, other: int) -> list[Sequence]:
    return [
        Sequence(tuple(range(first, first + n)), (True,) * n)
        for first, n in ((0, length), (1000, other))
    ]


groups = st.lists(st.builds(group, st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=20)


@given(groups, st.integers(1, 200), st.integers(1, 5))
def test_each_group_is_in_one_portion_and_all_have_as_many(found, max_tokens, processes):
    shares = even_portions(found, max_tokens, processes)
    assert len(shares) == processes
    assert len({len(share) for share in shares}) == 1
    assert sorted(i for share in shares for part in share for i in part) == list(range(len(found)))


@given(groups, st.integers(1, 200), st.integers(1, 5))
def test_a_portion_keeps_to_the_tokens_unless_it_is_one_group(found, max_tokens, processes):
    for share in even_portions(found, max_tokens, processes):
        for part in share:
            assert len(part) < 2 or sum(size(found[i]) for i in part) <= max_tokens


@given(groups, st.integers(2, 5))
def test_no_process_computes_more_than_one_group_beyond_another(found, processes):
    """As long as one portion each is enough: the largest first, each to whom has least."""
    sizes = [size(one) for one in found]
    shares = even_portions(found, sum(sizes), processes)
    filled = [sum(sizes[i] for i in share[0]) for share in shares]
    assert max(filled) - min(filled) <= max(sizes)
    assert filled == sorted(filled, reverse=True), "the first process is never idle"


def test_one_long_group_leaves_the_others_together():
    (first, second) = even_portions([group(90, 90), *[group(5, 5)] * 6], 60, processes=2)
    assert [first, second] == [[[0]], [[1, 2, 3, 4, 5, 6]]]
