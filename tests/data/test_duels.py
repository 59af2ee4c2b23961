"""Pairs within groups: every two answers once, the better one first, ties told apart."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.batches import GroupBatches, TokenGroup, Tokens, TokenValues
from melior.data.chat import Encoded
from melior.data.duels import duels


def group(scores, share=1.0, first=0) -> TokenGroup:
    """Answers of one token each, another one for each, behind a prompt of two."""
    sides = [Encoded((first, 1, 10 + i), (False, False, True), 2) for i in range(len(scores))]
    answers = tuple(Tokens.of(side, slice(0, None)) for side in sides)
    return TokenGroup(answers, tuple(map(float, scores)), share=share)


def batch_of(groups):
    loader = GroupBatches(
        groups, TokenValues.zeros(groups), batch_size=len(groups), max_tokens=10**6, seed=0
    )
    (batch,) = loader.portions(range(len(groups)))
    return batch


@given(st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=5), min_size=1, max_size=4))
def test_every_two_answers_meet_once_and_groups_count_alike(scores):
    groups = [group(own, first=100 + i) for i, own in enumerate(scores)]
    batch = batch_of(groups)
    found = duels(batch)
    place = {int(seq): (row, i) for row, own in enumerate(batch.members.tolist())
             for i, seq in enumerate(own) if seq >= 0}  # fmt: skip
    met = []
    order = {g.answers[0].tokens[0]: list(g.scores) for g in groups}
    rows = [int(batch.forest.tokens[batch.prompts[i]]) for i in range(len(groups))]
    assert rows == [1] * len(groups)
    firsts = [order[int(batch.forest.tokens[batch.prompts[i] - 1])] for i in range(len(groups))]
    for better, worse, row, share, decided in zip(
        found.better.tolist(), found.worse.tolist(), found.groups.tolist(),
        found.shares.tolist(), found.decided.tolist(), strict=True,
    ):  # fmt: skip
        (one, i), (other, j) = place[better], place[worse]
        assert one == other == row
        met.append((row, *sorted((i, j))))
        high, low = firsts[row][i], firsts[row][j]
        assert (high > low, share, decided > 0) in [(True, 1.0, True), (False, 0.5, False)]
        assert high >= low
    wanted = [(row, i, j) for row, own in enumerate(firsts)
              for i, j in combinations(range(len(own)), 2)]  # fmt: skip
    assert sorted(met) == wanted
    for row in range(len(groups)):
        own = found.groups == row
        assert float(found.each[own].sum()) == pytest.approx(1)
        assert float(found.decided[own].sum()) == pytest.approx(float(len(set(firsts[row])) > 1))


@pytest.mark.parametrize(
    ("share", "better", "found", "decided"),
    [(1.0, 0, 1.0, 1.0), (0.7, 0, 0.7, 1.0), (0.2, 1, 0.8, 1.0), (0.5, 0, 0.5, 0.0)],
)
def test_raters_that_mostly_say_the_contrary_turn_a_pair_round(share, better, found, decided):
    batch = batch_of([group((1, 0), share)])
    pairs = duels(batch)
    assert int(pairs.better) == int(batch.members[0, better])
    assert float(pairs.shares) == pytest.approx(found)
    assert float(pairs.decided) == decided
    assert batch.totals.ordered == decided
