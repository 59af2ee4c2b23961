"""Rows from files: tokens and their numbers, and the sentence of each file that is none."""

import numpy as np
import pytest

from melior.data.marginal_files import read_rows, written
from melior.data.marginal_tokens import split


def test_lines_are_filled_up_and_cut(tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text("ab\n\nbbab\nabbab\n")
    found = read_rows(file, length=3)
    assert found.alphabet == ("\n", "a", "b")
    end, a, b = 1, 2, 3
    assert found.values.tolist() == [
        [a, b, end], [b, b, a], [b, end, end], [a, b, b], [a, b, end],
    ]  # fmt: skip
    assert [written(row, found.alphabet) for row in found.values.tolist()][2:4] == ["b", "abb"]
    assert read_rows(file).values.shape == (3, 5)


def test_lines_of_one_length_need_no_end(tmp_path):
    (tmp_path / "rows.txt").write_text("ab\nba")
    found = read_rows(tmp_path / "rows.txt")
    assert found.alphabet == ("a", "b") and found.values.tolist() == [[1, 2], [2, 1]]


def test_an_alphabet_that_is_given_is_kept(tmp_path):
    file = tmp_path / "rows.txt"
    file.write_text("ab\nb\n")
    found = read_rows(file, length=2, alphabet=("\n", "a", "b", "c"))
    assert found.alphabet == ("\n", "a", "b", "c") and found.values.tolist() == [[2, 3], [3, 1]]
    with pytest.raises(ValueError, match=r"rows.txt:1: one of 'a' 'c' is needed.*found 'b'"):
        read_rows(file, length=1, alphabet="ac")
    with pytest.raises(ValueError, match=r"rows.txt:2: 2 values are needed.*found 1"):
        read_rows(file, length=2, alphabet="ab")


@pytest.mark.parametrize(
    ("kind", "line", "tokens"),
    [
        ("characters", "a b", "a, ,b"),
        ("smiles", "CCl", "C,Cl"),
        ("smiles", "Brc1c[nH]c(=O)c1", "Br,c,1,c,[nH],c,(,=,O,),c,1"),
        ("smiles", "C[C@@H](N)C%12.[Na+]", "C,[C@@H],(,N,),C,%12,.,[Na+]"),
        ("smiles", "F/C=C\\Cl", "F,/,C,=,C,\\,Cl"),
        ("selfies", "[C][=C][Ring1]", "[C],[=C],[Ring1]"),
        ("selfies", "[C].[nop]", "[C],.,[nop]"),
    ],
)
def test_molecules_are_tokens_and_not_characters(kind, line, tokens):
    assert list(split(line, kind)) == tokens.split(",")


def test_tokens_are_filled_up_and_written_as_they_came(tmp_path):
    (tmp_path / "rows.smi").write_text("CCl\n\nc1cc[nH]c1\n")
    found = read_rows(tmp_path / "rows.smi", tokens="smiles")
    assert found.alphabet == ("\n", "1", "C", "Cl", "[nH]", "c")
    assert found.values.tolist() == [[3, 4, 1, 1, 1, 1, 1], [6, 2, 6, 6, 5, 6, 2]]
    texts = [written(row, found.alphabet) for row in found.values.tolist()]
    assert texts == ["CCl", "c1cc[nH]c1"]


@pytest.mark.parametrize(
    ("kind", "text", "length", "sentence"),
    [
        (
            "smiles",
            "CC\nCO ethanol\n",
            0,
            "rows:2: SMILES are needed, .* found ' ethanol' at cha.* 3",
        ),
        ("smiles", "CC\n\nC[nH\n", 0, r"rows:3: SMILES are needed, .* found '\[nH' at character 2"),
        ("selfies", "[C]O\n", 0, "rows:1: SELFIES are needed, .* found 'O' at character 4"),
        ("selfies", "[C]\n[C][C][O]\n", 2, "rows:2: at most 2 tokens are needed.*; found 3"),
    ],
)
def test_lines_that_are_no_tokens_get_their_sentence(kind, text, length, sentence, tmp_path):
    (tmp_path / "rows").write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_rows(tmp_path / "rows", tokens=kind, length=length)


def test_arrays_count_from_0_and_images_keep_their_shape(tmp_path):
    file = tmp_path / "rows.npy"
    np.save(file, np.array([[0, 2], [1, 0]], dtype=np.int16))
    found = read_rows(file)
    assert found.alphabet == () and found.shape == () and found.values.tolist() == [[1, 3], [2, 1]]
    np.save(file, np.array([[True, False]]))
    assert read_rows(file).values.tolist() == [[2, 1]]
    np.save(file, np.arange(12).reshape(2, 2, 3) % 2)
    found = read_rows(file)
    assert found.shape == (2, 3) and found.values.tolist() == [[1, 2] * 3] * 2


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


@pytest.mark.parametrize("held", [b"not an array", b"", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_array_gets_its_sentence(held, tmp_path):
    (tmp_path / "rows.npy").write_bytes(held)
    with pytest.raises(ValueError, match=r"rows.npy: an array of integers.* found another file"):
        read_rows(tmp_path / "rows.npy")


def test_text_of_another_encoding_gets_its_sentence_and_a_mark_of_order_is_no_value(tmp_path):
    (tmp_path / "rows.txt").write_bytes(b"a\xe9\nb\n")
    with pytest.raises(ValueError, match=r"rows.txt: needs UTF-8; found the byte 0xe9"):
        read_rows(tmp_path / "rows.txt")
    (tmp_path / "rows.txt").write_bytes("\ufeffab\r\nba\r\n".encode())
    assert read_rows(tmp_path / "rows.txt").alphabet == ("a", "b")
