"""Whoever works, and whoever is lost on the way: the results are those of one, in order, once."""

import random
import weakref
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.records import Group
from melior.workers.deal import AHEAD, TRIES, Deal, Workers
from melior.workers.work import Done, Lost, Ready, chunked
from tests.workers.works import numbered


class Shuffled:
    """Workers without processes: things happen in any order, and some are lost, as drawn."""

    def __init__(self, n, seed, losses):
        self.n = n
        self.draw = random.Random(seed)
        self.losses = losses
        self.going = {}
        self.n_done = {}

    def begin(self, worker):
        self.n_done[worker] = 0
        self.going[worker] = Ready(worker, {})

    def give(self, worker, chunk):
        assert worker not in self.going
        costs = {"groups": self.n_done[worker] + len(chunk.groups)}
        self.going[worker] = Done(worker, list(chunk.groups), costs=costs)

    def event(self):
        worker = self.draw.choice(sorted(self.going))
        event = self.going.pop(worker)
        is_lost = self.losses > 0 and self.draw.random() < 0.5 and isinstance(event, Done)
        self.losses -= is_lost
        if isinstance(event, Done) and not is_lost:
            self.n_done[worker] = event.costs["groups"]
        return Lost(worker, "by chance") if is_lost else event

    def close(self):
        pass


@given(
    n=st.integers(0, 60),
    size=st.integers(1, 7),
    workers=st.integers(1, 9),
    losses=st.integers(0, TRIES - 1),
    seed=st.integers(0, 10**6),
)
def test_results_come_whole_once_and_in_order(n, size, workers, losses, seed):
    groups = numbered(["fine"] * n)
    places = Shuffled(workers, seed, losses)
    assert isinstance(places, Workers)
    deal = Deal(places, chunked(groups, size))
    assert list(deal.groups()) == groups
    assert deal.costs()["groups"] == n


def test_chunks_are_the_same_wherever_one_goes_on():
    groups = numbered(["fine"] * 20)
    whole = list(chunked(groups, 6))
    assert [len(one.groups) for one in whole] == [6, 6, 6, 2]
    assert list(chunked(groups[12:], 6, first=12)) == whole[2:]
    assert whole[2].where == "rows 13 to 18, from file:13 on"


@pytest.mark.parametrize("workers", [1, 4])
def test_no_more_is_read_ahead_than_is_of_use(workers):
    read = []
    groups = (read.append(one) or one for one in numbered(["fine"] * 1000))
    results = Deal(Shuffled(workers, 0, 0), chunked(groups, 5)).groups()
    for done in range(1, 901):
        next(results)
        assert len(read) <= done + 5 * (AHEAD * workers + 1)


def test_what_was_given_on_is_let_go():
    groups = (Group((), (), {"n": n}) for n in range(500))
    results = Deal(Shuffled(2, 0, 0), chunked(groups, 5)).groups()
    seen = [weakref.ref(one) for one in islice(results, 400)]
    assert sum(ref() is not None for ref in seen) <= 5 * AHEAD * 2


def test_what_was_read_before_a_broken_row_is_given_on():
    def broken():
        yield from numbered(["fine"] * 57)
        raise ValueError("file:58: needs sense; found none")

    results, found = Deal(Shuffled(2, 0, 1), chunked(broken(), 5)).groups(), []
    with pytest.raises(ValueError, match="file:58"):
        found.extend(results)
    assert len(found) == 57


def test_machines_with_other_files_are_refused():
    places = Shuffled(2, 0, 0)
    deal = Deal(places, chunked(numbered(["fine"] * 9), 1))
    places.going = {0: Ready(0, {"hash": "a"}), 1: Ready(1, {"hash": "b"})}
    with pytest.raises(ValueError, match=r"worker \d holds .*must be the same on all machines"):
        list(deal.groups())
