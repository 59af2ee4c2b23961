"""Environments of flows: both directions agree, and as many states as one can count."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import one_hot

from melior import ops
from melior.data.flow import NO_ACTION, FlowEnvironment, KnowsReach
from melior.envs.flow import LARGEST_TABLE, Fillings, Growing, HyperGrid, Strings, _eye
from melior.envs.flow_graph import check_environment, check_paths, enumerated

environments = st.one_of(
    st.builds(HyperGrid, st.integers(1, 4), st.integers(2, 6)),
    st.builds(Strings, st.integers(1, 6), st.integers(2, 5)),
    st.builds(Growing, st.integers(1, 6), st.integers(2, 5)),
    st.builds(Fillings, st.integers(1, 5), st.integers(2, 4)),
)
small = st.sampled_from(
    [
        HyperGrid(1, 2),
        HyperGrid(2, 4),
        HyperGrid(3, 3),
        Strings(3, 2),
        Growing(3, 2),
        Fillings(3, 2),
    ]
)


def wandered(env: FlowEnvironment, seed: int, n: int = 8) -> torch.Tensor:
    """States met on random ways, from the start to where only the stop is left."""
    states, met, generator = env.start.expand(n, -1), [], ops.generator(seed)
    for _ in range(env.longest):
        met.append(states)
        allowed = env.allowed(states)[:, :-1]
        going = allowed.any(-1)
        if not going.any():
            break
        actions = allowed[going].double().multinomial(1, generator=generator)[:, 0]
        states = env.step(states[going], actions)
    return torch.cat(met)


@given(environments, st.integers(0, 1000))
def test_what_goes_on_can_be_undone_and_back(env, seed):
    assert isinstance(env, FlowEnvironment) and isinstance(env, KnowsReach)
    check_environment(env, wandered(env, seed))


@given(environments, st.integers(0, 1000))
def test_every_way_ends_in_time(env, seed):
    states = env.start[None]
    for length in range(1, env.longest + 1):
        allowed = env.allowed(states)
        if not allowed[0, :-1].any():
            break
        pick = ops.generator(seed + length)
        states = env.step(states, allowed[:, :-1].double().multinomial(1, generator=pick)[:, 0])
    assert allowed[0].tolist() == [False] * env.n_actions + [True]
    assert length == env.longest


@pytest.mark.parametrize(
    ("env", "n_states", "n_final"),
    [
        (HyperGrid(2, 8), 64, 64),
        (HyperGrid(3, 3), 27, 27),
        (Strings(3, 2), 1 + 2 + 4 + 8, 8),
        (Growing(3, 2), 1 + 2 + 4 + 8, 2 + 4 + 8),
        (Fillings(3, 2), 27, 8),
    ],
)
def test_all_states_are_found_once_parents_first(env, n_states, n_final):
    graph = enumerated(env)
    assert len(graph.states) == len(graph.states.unique(dim=0)) == n_states
    assert int(graph.can_stop.sum()) == n_final
    assert graph.levels[0] == 0 and graph.levels[-1] == n_states
    level = torch.bucketize(torch.arange(n_states), torch.tensor(graph.levels[1:-1]), right=True)
    row, action = (graph.children != NO_ACTION).nonzero(as_tuple=True)
    child = graph.children[row, action]
    assert (level[child] > level[row]).all()
    assert torch.equal(env.step(graph.states[row], action), graph.states[child])
    assert torch.equal(graph.children != NO_ACTION, env.allowed(graph.states)[:, :-1])
    check_environment(env, graph.states)


@given(small)
def test_reach_is_what_a_search_finds(env):
    graph = enumerated(env)
    n = len(graph.states)
    found = torch.eye(n, dtype=torch.bool)
    for row in reversed(range(n)):
        for child in graph.children[row].tolist():
            if child != NO_ACTION:
                found[row] |= found[child]
    states = graph.states.repeat_interleave(n, 0)
    assert torch.equal(env.reachable(states, graph.states.repeat(n, 1)).view(n, n), found)


@pytest.mark.parametrize("height", [LARGEST_TABLE, LARGEST_TABLE + 1])
def test_cells_are_one_hot_axis_by_axis_and_no_large_table_is_kept(height):
    cells, before = torch.tensor([[0, height - 1], [1, 2]]), _eye.cache_info().currsize
    found = HyperGrid(2, height).features(cells)
    assert torch.equal(found, one_hot(cells, height).flatten(1).float())
    assert (_eye.cache_info().currsize > before) == (height <= LARGEST_TABLE)


def test_features_tell_all_states_apart():
    for env in (HyperGrid(2, 4), Strings(3, 3), Growing(3, 3), Fillings(3, 2)):
        states = enumerated(env).states
        assert len(env.features(states).unique(dim=0)) == len(states)


def test_a_state_stands_where_its_longest_path_ends():
    """A step of two beside two steps of one: the same place, reached by paths of two lengths."""
    graph = enumerated(Leaps())
    assert graph.states[:, 0].tolist() == [0, 1, 2, 3]
    assert graph.levels == (0, 1, 2, 3, 4)
    assert graph.children.tolist() == [[1, 2], [2, 3], [3, -1], [-1, -1]]


@dataclass(frozen=True)
class Leaps:
    """A line of four places, on which one goes by one or by two: an environment of one's own."""

    undoable_from: int = 1
    longest: int = 4
    n_actions: int = 2
    back: int = 0

    @property
    def start(self):
        return torch.tensor([0])

    def allowed(self, states):
        return torch.cat([states < 3, states < 2, states == 3], -1)

    def undoable(self, states):
        return torch.cat([states >= self.undoable_from, states > 1], -1)

    def step(self, states, actions):
        return states + actions[:, None] + 1

    def undo(self, states, actions):
        return states - actions[:, None] - 1 + self.back

    def features(self, states):
        return states.float()


def test_an_environment_of_ones_own_passes_the_check():
    env = Leaps()
    check_environment(env, enumerated(env).states)


@pytest.mark.parametrize(
    ("env", "sentence"),
    [
        (
            Leaps(undoable_from=2),
            r"action 0 between \[0\] and \[1\], where only the way on is allowed",
        ),
        (Leaps(undoable_from=0), r"nothing can be undone at the start"),
        (Leaps(back=1), r"between \[0\] and \[1\], where the states do not match"),
        (Leaps(n_actions=3), r"masks of \(4, 4\) allowed and \(4, 3\) undoable"),
    ],
)
def test_an_environment_whose_masks_disagree_gets_a_sentence(env, sentence):
    with pytest.raises(ValueError, match=sentence):
        check_environment(env, torch.tensor([[0], [1], [2], [3]]))


def test_paths_longer_than_said_and_too_many_states_get_a_sentence():
    with pytest.raises(ValueError, match="end within 3 actions"):
        enumerated(Leaps(longest=3))
    with pytest.raises(ValueError, match="at most 100 states can be enumerated; found"):
        enumerated(HyperGrid(4, 8), most=100)


@pytest.mark.parametrize("env", [HyperGrid(2, 4), Strings(30, 4), Fillings(20, 2), HyperGrid(6, 8)])
def test_paths_of_sound_environments_pass(env):
    check_paths(env)


@dataclass(frozen=True)
class Lone(Leaps):
    """A line of one place."""

    def allowed(self, states):
        return torch.tensor([[False, False, True]]).expand(len(states), -1)


@dataclass(frozen=True)
class Halves(Leaps):
    """A line whose places are no whole numbers, from the start or after a step."""

    begins: object = None

    @property
    def start(self):
        return super().start if self.begins is None else self.begins

    def step(self, states, actions):
        return states + actions[:, None] + 1.0


def test_states_that_are_no_whole_numbers_get_a_sentence():
    with pytest.raises(ValueError, match=r"'start' must give int64 \[d\]; found torch.float32 of"):
        check_paths(Halves(begins=torch.zeros(1)))
    with pytest.raises(ValueError, match=r"'start' must give int64 \[d\]; found list"):
        check_paths(Halves(begins=[0]))
    with pytest.raises(ValueError, match=r"'step' must give int64 \[n d\]; found torch.float32"):
        check_paths(Halves())


def test_paths_that_do_not_end_or_lead_to_one_object_get_a_sentence():
    with pytest.raises(ValueError, match=r"within 3 actions.*found one that goes on at \[3\]"):
        check_paths(Leaps(longest=3))
    with pytest.raises(ValueError, match=r"at least two objects are needed.*found 1"):
        check_paths(Lone())
    with pytest.raises(ValueError, match=r"at least two objects are needed.*found 1"):
        check_paths(Leaps())  # its one object, the last place, stands at two levels
    with pytest.raises(ValueError, match="only the way on is allowed"):
        check_paths(Leaps(undoable_from=2))


def test_sizes_that_are_no_world_are_refused():
    with pytest.raises(ValueError, match="height must be at least 2; found 1"):
        HyperGrid(2, 1)
    with pytest.raises(ValueError, match="n_letters must be at least 2; found 1"):
        Strings(4, 1)
