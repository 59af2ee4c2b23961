"""Logged transitions: each kind of bad input has its sentence, and good input comes back as is."""

import dataclasses
import warnings

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.control import lint_transitions, transitions
from melior.data.control_files import (
    About,
    Logged,
    Reference,
    _range,
    read_logged,
    write_logged,
)


def columns(lengths=(3, 4, 2), terminals=(True, False, True), *, seed=0):
    """Episodes of a random walk; those that are not terminal end by a time-out."""
    rng = np.random.default_rng(seed)
    walks = [rng.normal(size=(length + 1, 2)).astype(np.float32) for length in lengths]
    ends = [np.arange(length) == length - 1 for length in lengths]
    n = sum(lengths)
    return {
        "observations": np.concatenate([walk[:-1] for walk in walks]),
        "actions": rng.uniform(-1, 1, size=(n, 1)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "next_observations": np.concatenate([walk[1:] for walk in walks]),
        "terminals": np.concatenate([e & t for e, t in zip(ends, terminals, strict=True)]),
        "timeouts": np.concatenate([e & (not t) for e, t in zip(ends, terminals, strict=True)]),
    }


def changed(name, place, value, **options):
    table = columns(**options)
    table[name] = table[name].copy()
    table[name][place] = value
    return table


def codes(table, **options):
    return [finding.code for finding in lint_transitions(transitions(table, where="f"), **options)]


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        (
            changed("observations", (4, 1), np.nan),
            r"f:5: 'observations'\[1\] must be finite; found nan",
        ),
        (
            changed("next_observations", (0, 0), np.inf),
            r"f:1: 'next_observations'\[0\] must be finite; found inf",
        ),
        (
            changed("actions", (slice(2, 4), 0), -np.inf),
            r"f:3: 'actions'\[0\] must be finite; found -inf, and 1 more",
        ),
        (changed("rewards", 8, np.nan), r"f:9: 'rewards' must be finite; found nan"),
        (
            columns() | {"rewards": np.full(9, 1e300)},
            r"f:1: 'rewards' must be finite in float32; found 1e\+300, and 8 more",
        ),
        (
            columns() | {"actions": np.zeros((8, 1), np.float32)},
            r"'actions' must have the shape \[9, width\]; found \[8, 1\]",
        ),
        (
            columns() | {"actions": np.zeros(9, np.float32)},
            r"'actions' must have the shape \[9, width\]; found \[9\]",
        ),
        (
            columns() | {"actions": np.zeros((9, 1), int)},
            r"'actions' must hold real numbers .*; found int64",
        ),
        (
            columns() | {"rewards": np.zeros((9, 2))},
            r"'rewards' must have the shape \[9\]; found \[9, 2\]",
        ),
        (
            columns() | {"next_observations": np.zeros((9, 3))},
            r"as wide as 'observations', 2; found 3",
        ),
        (
            columns() | {"terminals": np.full(9, 0.5)},
            r"f:1: 'terminals' must be true or false; found 0.5",
        ),
        (
            columns() | {"terminals": np.full(9, np.nan)},
            r"f:1: 'terminals' must be true or false; found nan",
        ),
        (
            {**columns(), "timeouts": None, "episodes": np.array([0.0] * 4 + [np.nan] * 5)},
            r"f:5: 'episodes' must be finite; found nan, and 4 more",
        ),
        (
            {**columns(), "timeouts": None, "episodes": np.zeros(5)},
            r"'episodes' must have the shape \[9\]; found \[5\]",
        ),
        (columns() | {"rewards": np.array(["a"] * 9)}, r"'rewards' must hold numbers; found <U1"),
        (
            {name: column[:0] for name, column in columns().items()},
            r"f: needs one transition or more",
        ),
    ],
)
def test_a_wrong_column_is_told_with_its_row(table, sentence):
    with pytest.raises(ValueError, match=sentence):
        transitions(table, where="f")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("terminals", "f: transitions need 'terminals' .*beyond the end of the task"),
        ("timeouts", "f: transitions need 'timeouts' .*which episode each row is of"),
        ("next_observations", "f: transitions need 'next_observations' .*what step"),
    ],
)
def test_a_missing_column_is_told_with_what_it_is_for(name, sentence):
    table = columns()
    del table[name]
    with pytest.raises(ValueError, match=sentence):
        transitions(table, where="f")


def test_episodes_that_end_without_a_terminal_end_by_a_time_out():
    table = columns()
    wanted = table.pop("timeouts")
    table["episode"] = np.repeat([7, 3, 9], [3, 4, 2])
    assert (transitions(table, where="f").timeouts == wanted).all()
    table["episode"] = table["episode"][:, None]
    assert (transitions(table, where="f").timeouts == wanted).all()


def test_columns_of_one_number_and_other_names_are_as_good():
    table = columns()
    plain = transitions(table, where="f")
    other = {
        "obs": table["observations"].astype(np.float64),
        "action": table["actions"],
        "reward": table["rewards"][:, None],
        "next_obs": table["next_observations"],
        "done": table["terminals"].astype(int)[:, None],
        "truncated": table["timeouts"],
    }
    for name, column in vars(transitions(other, where="f")).items():
        assert (column == getattr(plain, name)).all()


@given(st.lists(st.integers(1, 6), min_size=1, max_size=6), st.data())
def test_episodes_are_cut_where_they_end(lengths, data):
    kinds = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    logged = transitions(columns(lengths, kinds), where="f")
    assert [rows.stop - rows.start for rows in logged.episodes()] == lengths
    assert logged.returns().sum() == pytest.approx(float(logged.rewards.sum()), abs=1e-4)


def test_sound_episodes_have_nothing_wrong():
    assert codes(columns()) == []


@pytest.mark.parametrize("name", ["observations", "next_observations", "rewards"])
def test_numbers_whose_squares_float32_does_not_hold_are_told(name):
    place = (8, 1) if name != "rewards" else 8
    assert "too-large" not in codes(changed(name, place, 1e14))
    found = lint_transitions(transitions(changed(name, place, -1e25), where="f"))
    assert [(one.code, one.examples) for one in found if one.code == "too-large"] == [
        ("too-large", ("row 9",))
    ]


def test_time_outs_taken_for_terminals_are_told():
    table = columns((5, 5, 2, 5, 3), (True,) * 5)
    assert codes(table) == ["timeouts-as-terminals"]
    found = lint_transitions(transitions(table, where="f"))[0]
    assert (found.level, found.examples) == ("error", ("row 5", "row 10", "row 17"))


def test_ends_of_either_kind_logged_as_terminals_are_told():
    """`done = terminated or truncated` beside `truncated`, and no two lengths that tell."""
    table = columns((5, 4, 2, 5, 3), (False, False, True, False, False))
    table["terminals"] = table["terminals"] | table["timeouts"]
    assert codes(table) == ["timeouts-as-terminals"]
    found = lint_transitions(transitions(table, where="f"))[0]
    assert (found.level, found.examples) == ("error", ("row 5", "row 9", "row 16", "row 19"))
    table["terminals"][4] = False  # one time-out is none: the others may have fallen together
    assert codes(table) == []


def test_a_log_that_breaks_off_hides_no_time_outs_taken_for_terminals():
    """Its last row is a time-out, whatever was logged of the others."""
    table = columns((5, 5, 2, 5, 3), (True, True, True, True, False))
    assert codes(table) == ["timeouts-as-terminals"]
    del table["timeouts"]
    table["episode_id"] = np.repeat(np.arange(5), (5, 5, 2, 5, 3))
    assert codes(table) == ["timeouts-as-terminals"]
    table = columns((5, 4, 2, 6, 3), (False,) * 5)
    table["terminals"] = table["timeouts"] & (np.arange(20) < 19)
    assert codes(table) == ["timeouts-as-terminals"]
    found = lint_transitions(transitions(table, where="f"))[0]
    assert found.examples == ("row 5", "row 9", "row 11", "row 17")


@pytest.mark.parametrize(
    ("lengths", "ends"),
    [
        ((5, 5, 2, 4, 3), (True,) * 5),  # only two at the longest
        ((5, 5, 5, 4, 3), (True, True, True, False, True)),  # somebody knows of time-outs
        ((1, 1, 1, 1), (True,) * 4),  # a task of one step
    ],
)
def test_real_terminals_are_left_alone(lengths, ends):
    assert codes(columns(lengths, ends)) == []


def test_a_reset_logged_as_successor_is_told():
    table = columns()
    table["next_observations"][6] = table["observations"][7]
    assert codes(table) == ["reset-as-successor"]


def test_an_end_that_is_not_marked_is_told():
    table = columns() | {"timeouts": np.zeros(9, bool)}
    found = lint_transitions(transitions(table, where="f"))
    assert [(f.code, f.examples) for f in found] == [("unmarked-ends", ("row 7",))]


def test_a_log_that_breaks_off_is_told():
    assert codes({name: column[:8] for name, column in columns().items()}) == ["unfinished"]


def test_a_dimension_that_never_changes_is_told():
    table = columns()
    for name in ("observations", "next_observations"):
        table[name][:, 1] = 0.25
    found = lint_transitions(transitions(table, where="f"))
    assert [f.code for f in found] == ["constant-dimensions"]
    assert found[0].text.endswith("never change: 1")
    assert (found[0].count, found[0].share) == (9, 1)  # rows, as of any other finding
    for name in ("observations", "next_observations"):
        table[name][::2, 1] = np.nextafter(np.float32(0.25), np.float32(1))
    assert "constant-dimensions" in codes(table)


def test_actions_outside_the_range_are_told_and_rounding_is_not():
    assert codes(changed("actions", 0, 1.000001)) == []
    assert codes(changed("actions", 0, 1.1)) == ["actions-out-of-range"]
    assert codes(changed("actions", 0, -1.9), low=-2, high=2) == []


ABOUT = About("Pendulum-v1", Reference(-1200.0, -150.0), {"policy": "random", "seed": 3})


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_what_is_written_is_read_again(tmp_path, suffix):
    path = tmp_path / f"walk{suffix}"
    logged = Logged(transitions(columns(), where="f"), ABOUT)
    write_logged(path, logged)
    again = read_logged(path)
    assert again.about == ABOUT
    for name, column in vars(logged.transitions).items():
        assert (getattr(again.transitions, name) == column).all()
        assert getattr(again.transitions, name).dtype == column.dtype
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_lists_of_other_writers_are_read(tmp_path):
    table = {name: column.tolist() for name, column in columns().items()}
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    found = read_logged(tmp_path / "a.parquet")
    assert found.about == About()
    assert np.allclose(found.transitions.observations, columns()["observations"])


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ([0.0], r"a.parquet:4: 'observations' must be as wide in each row, 2; found 1"),
        (None, r"a.parquet:4: 'observations' must be there in each row; found null"),
        ([0.0, float("nan")], r"a.parquet:4: 'observations'\[1\] must be finite"),
    ],
)
def test_a_row_of_another_width_is_told(tmp_path, row, sentence):
    table = {name: column.tolist() for name, column in columns().items()}
    table["observations"][3] = row
    pyarrow.parquet.write_table(pyarrow.table(table), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=sentence):
        read_logged(tmp_path / "a.parquet")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_file_without_rows_is_told(tmp_path, suffix):
    none = transitions(columns(), where="f").rows(slice(0, 0))
    write_logged(tmp_path / f"none{suffix}", Logged(none, ABOUT))
    with pytest.raises(ValueError, match=f"none{suffix}: needs one transition or more; found none"):
        read_logged(tmp_path / f"none{suffix}")


@pytest.mark.parametrize("suffix", [".npz", ".parquet"])
def test_a_damaged_file_is_told(tmp_path, suffix):
    path = tmp_path / f"walk{suffix}"
    write_logged(path, Logged(transitions(columns(), where="f"), ABOUT))
    whole = path.read_bytes()
    scribbled = whole[:60] + bytes(200) + whole[260:]
    for damaged in (whole[:-200], scribbled, b""):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=f"walk{suffix}: needs a whole"):
            read_logged(path)


def test_what_is_no_file_of_transitions_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        read_logged(tmp_path / "a.npz")
    with pytest.raises(ValueError, match=r"read from .npz, .parquet and minari:NAME; found '.csv'"):
        read_logged(tmp_path / "a.csv")
    np.savez(tmp_path / "b.npz", **columns(), melior=np.array("[1]"))
    with pytest.raises(ValueError, match="'melior' must say what the transitions are"):
        read_logged(tmp_path / "b.npz")


@pytest.mark.parametrize("pair", [(1.0, 1.0), (2.0, 1.0), (np.nan, 1.0)])
def test_a_reference_needs_room_between(pair):
    with pytest.raises(ValueError, match="'random' must be below 'expert'"):
        Reference(*pair)


def test_rows_are_rows_of_every_column():
    logged = transitions(columns(), where="f")
    chosen = logged.rows(np.array([8, 0]))
    for field in dataclasses.fields(logged):
        whole = getattr(logged, field.name)
        assert (getattr(chosen, field.name) == whole[[8, 0]]).all()


@pytest.fixture
def minari_set(tmp_path, monkeypatch):
    """Two episodes of Pendulum, whose actions lie between -2 and 2, as Minari keeps them."""
    minari = pytest.importorskip("minari")
    gymnasium = pytest.importorskip("gymnasium")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    env = gymnasium.make("Pendulum-v1", max_episode_steps=5)
    rng = np.random.default_rng(0)
    episodes = []
    for number in range(2):
        seen, acted, earned = [env.reset(seed=number)[0]], [], []
        for _ in range(5):
            acted.append(rng.uniform(-2, 2, size=1).astype(np.float32))
            observation, reward, *_ = env.step(acted[-1])
            seen.append(observation)
            earned.append(float(reward))
        ends = np.arange(5) == 4
        buffer = minari.data_collector.EpisodeBuffer(
            id=number,
            observations=np.stack(seen),
            actions=np.stack(acted),
            rewards=earned,
            terminations=np.zeros(5, bool),
            truncations=ends,
        )
        episodes.append(buffer)
    with warnings.catch_warnings():  # of authors and reference scores that it would like to know
        warnings.simplefilter("ignore")
        minari.create_dataset_from_buffers("pendulum/test-v0", buffer=list(episodes), env=env)
    return episodes


def test_a_set_of_minaris_is_read(minari_set):
    found = read_logged("minari:pendulum/test-v0")
    columns = vars(found.transitions)
    for place, episode in enumerate(minari_set):
        rows = slice(5 * place, 5 * place + 5)
        assert (columns["observations"][rows] == episode.observations[:-1]).all()
        assert (columns["next_observations"][rows] == episode.observations[1:]).all()
        assert np.allclose(columns["rewards"][rows], episode.rewards)
    assert np.flatnonzero(found.transitions.timeouts).tolist() == [4, 9]
    assert not found.transitions.terminals.any()
    assert found.about.task == "Pendulum-v1"
    with pytest.raises(FileNotFoundError, match="there is no such set"):
        read_logged("minari:pendulum/other-v0")


def test_actions_of_minaris_are_brought_to_the_range_in_which_policies_act(minari_set):
    """What a policy does there, the task is given as 2 of it: the log's own action."""
    found = read_logged("minari:pendulum/test-v0").transitions
    stretched = -2 + 0.5 * (found.actions + 1) * 4
    assert np.allclose(stretched, np.concatenate([e.actions for e in minari_set]), atol=1e-6)
    assert 0.9 < np.abs(found.actions).max() <= 1
    assert lint_transitions(found) == []


@pytest.mark.parametrize("bounds", [(-np.inf, 1.0), (-1.0, np.inf), (0.5, 0.5)])
def test_actions_without_bounds_are_refused(bounds):
    gymnasium = pytest.importorskip("gymnasium")
    low, high = (np.full(2, bound, np.float32) for bound in bounds)
    for space in (gymnasium.spaces.Box(low, high), gymnasium.spaces.Discrete(3)):
        with pytest.raises(ValueError, match="f: actions must be vectors within bounds; found"):
            _range(space, "f")
