"""Rows from files: characters and their numbers, and the sentence of each file that is none."""

import numpy as np
import pytest

from melior.data.marginal_files import read_rows


def test_lines_are_filled_up_and_cut(tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text("ab\n\nbbab\nabbab\n")
    rows, alphabet = read_rows(file, length=3)
    assert alphabet == "\nab"
    end, a, b = 1, 2, 3
    assert rows.tolist() == [
        [a, b, end], [b, b, a], [b, end, end], [a, b, b], [a, b, end],
    ]  # fmt: skip
    assert read_rows(file)[0].shape == (3, 5)


def test_lines_of_one_length_need_no_end(tmp_path):
    (tmp_path / "rows.txt").write_text("ab\nba")
    rows, alphabet = read_rows(tmp_path / "rows.txt")
    assert alphabet == "ab" and rows.tolist() == [[1, 2], [2, 1]]


def test_an_alphabet_that_is_given_is_kept(tmp_path):
    (tmp_path / "rows.txt").write_text("b\n")
    rows, alphabet = read_rows(tmp_path / "rows.txt", length=2, alphabet="\nabc")
    assert alphabet == "\nabc" and rows.tolist() == [[3, 1]]
    with pytest.raises(ValueError, match="found 'b'"):
        read_rows(tmp_path / "rows.txt", length=1, alphabet="ac")


def test_arrays_count_from_0(tmp_path):
    np.save(tmp_path / "rows.npy", np.array([[0, 2], [1, 0]], dtype=np.int16))
    rows, alphabet = read_rows(tmp_path / "rows.npy")
    assert alphabet == "" and rows.tolist() == [[1, 3], [2, 1]]
    np.save(tmp_path / "bits.npy", np.array([[True, False]]))
    assert read_rows(tmp_path / "bits.npy")[0].tolist() == [[2, 1]]


@pytest.mark.parametrize(
    ("array", "sentence"),
    [
        (np.ones((2, 2)), "found float64 of"),
        (np.array([1, 2]), "rows and columns of integers from 0 are needed"),
        (np.array([[-1, 2]]), "integers from 0 are needed"),
        (np.zeros((0, 3), dtype=int), "integers from 0 are needed"),
        (np.zeros((2, 3), dtype=int), "at least two values are needed"),
    ],
    ids=["reals", "flat", "below", "none", "alike"],
)
def test_arrays_that_are_no_rows_get_their_sentence(array, sentence, tmp_path):
    np.save(tmp_path / "rows.npy", array)
    with pytest.raises(ValueError, match=sentence):
        read_rows(tmp_path / "rows.npy")


def test_a_file_that_is_no_array_gets_its_sentence(tmp_path):
    (tmp_path / "rows.npy").write_text("not an array")
    with pytest.raises(ValueError, match="an array of integers is needed; found that"):
        read_rows(tmp_path / "rows.npy")
