"""Every format gives the same rows with their lines, streamed; damage is named with its line."""

import gzip
import io
import json
import sys
import time
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from melior.data.sources import read_records

ROWS = [
    {"prompt": "Straße?", "chosen": "ja\nja", "rejected": 'no, "no"'},
    {"prompt": "猫 🐈", "chosen": "é", "rejected": "\u2028"},
]


def rows(path):
    return [dict(fields) for _, fields in read_records(str(path))]


def origins(path):
    return [origin.removeprefix(f"{path}:") for origin, _ in read_records(str(path))]


def write_jsonl(path, text=None):
    data = (text or "".join(json.dumps(row) + "\n" for row in ROWS)).encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        data = pytest.importorskip("zstandard").compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("ending", ["jsonl", "jsonl.gz", "jsonl.zst", "ndjson", "json"])
def test_json_lines(tmp_path, ending):
    path = write_jsonl(tmp_path / f"a.{ending}")
    assert rows(path) == ROWS
    assert origins(path) == ["1", "2"]


@pytest.mark.parametrize("ending", ["json", "json.gz", "jsonl"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_json_list(tmp_path, ending, indent):
    path = write_jsonl(tmp_path / f"a.{ending}", json.dumps(ROWS, indent=indent))
    assert rows(path) == ROWS
    assert origins(path) == (["1", "1"] if indent is None else ["2", "7"])


def test_blank_lines_are_no_rows_and_count_as_lines(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", '{"a": 1}\r\n\r\n  \n{"a": 2}')
    assert rows(path) == [{"a": 1}, {"a": 2}]
    assert origins(path) == ["1", "4"]


def test_csv_with_line_feeds_in_cells_and_messages_as_json(tmp_path):
    path = tmp_path / "a.csv"
    said = json.dumps([{"role": "user", "content": "hi"}]).replace('"', '""')
    path.write_text(f'prompt,chosen\r\n"{said}","a\nb"\r\nx,y\r\n', newline="")
    first = {"prompt": [{"role": "user", "content": "hi"}], "chosen": "a\nb"}
    assert rows(path) == [first, {"prompt": "x", "chosen": "y"}]
    assert origins(path) == ["2", "4"]
    (tmp_path / "a.tsv").write_text("a\tb\n1\t2\n")
    assert rows(tmp_path / "a.tsv") == [{"a": "1", "b": "2"}]


def test_parquet(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(arrow.Table.from_pylist(ROWS * 200), path, row_group_size=50)
    assert rows(path) == ROWS * 200
    assert origins(path)[-1] == "400"


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_arrow_files_of_both_kinds(tmp_path, kind):
    arrow = pytest.importorskip("pyarrow")
    path = tmp_path / "a.arrow"
    table = arrow.Table.from_pylist(ROWS)
    make = arrow.ipc.new_stream if kind == "stream" else arrow.ipc.new_file
    with make(path, table.schema) as writer:
        writer.write_table(table)
    assert rows(path) == ROWS


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv"])
def test_a_byte_order_mark_is_no_part_of_the_first_row(tmp_path, ending):
    text = "a\n1\n" if ending == "csv" else '{"a": "1"}\n'
    (tmp_path / f"a.{ending}").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert rows(tmp_path / f"a.{ending}") == [{"a": "1"}]


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "jsonl.gz", "jsonl.zst"])
def test_an_empty_file_has_no_rows(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    path.write_bytes(b"")
    if ending.endswith("zst"):
        path.write_bytes(pytest.importorskip("zstandard").compress(b""))
    assert rows(path) == []


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": 2\n', r"a\.jsonl:2: needs one JSON object per line; found"),
        ("a.jsonl", b'{"a": 1}\n3\n', r"a\.jsonl:2: a row must be an object.*found 3"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl:2: needs UTF-8; found the byte 0xff"),
        ("a.jsonl", '{"a": 1}'.encode("utf-16"), r"a\.jsonl:1: needs UTF-8.*UTF-16"),
        (
            "a.json",
            b'[{"a": 1},\n{"a": ',
            r"a\.json:2: needs a whole JSON list.*the end of the file",
        ),
        (
            "a.json",
            b'[{"a": 1},\n{"a": "xy',
            r"a\.json:2: needs a whole JSON list.*the end of the f",
        ),
        ("a.json", b'[{"a": 1},\n', r"a\.json:2: needs a whole JSON list.*the end of the file"),
        ("a.json", b'[{"a": 1},\n{"a" 2}]', r"a\.json:2: needs a whole JSON list.*Expecting ':'"),
        ("a.json", b"[1, 2]", r"a\.json:1: a row must be an object"),
        ("a.json", b'[{"a":\n "\xe9"}]', r"a\.json:2: needs UTF-8; found the byte 0xe9"),
        ("a.json", b'[{"a": 1},\n{"a": ' + b"[" * 100_000, r"a\.json:2: needs.*recursion"),
        ("a.json", b'[{"a": 1},\n{"a": ' + b"1" * 5000 + b"}]", r"a\.json:2: needs.*digits"),
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", r"a\.jsonl:1: needs one JSON object.*digits"),
        ("a.csv", b"a,b,a\n1,2,3\n", r"a\.csv:1: needs each column once; found \['a'\] again"),
        ("a.csv", b"a,b\n1,2\n3\n", r"a\.csv:3: needs 2 fields as in the header"),
        ("a.csv", b"a,b\n1,2,3\n", r"a\.csv:2: needs 2 fields as in the header"),
        ("a.csv", b'a,b\n1,"2\n', r"a\.csv:2: needs whole CSV; found unexpected end of data"),
        ("a.parquet", b"PAR1 no", r"a\.parquet: needs a whole \.parquet file"),
        ("a.arrow", b"no arrow", r"a\.arrow: needs a whole \.arrow file"),
        ("a.jsonl.gz", b'{"a": 1}\n', r"a\.jsonl\.gz:1: needs whole \.gz data"),
        ("a.jsonl.zst", b'{"a": 1}\n', r"a\.jsonl\.zst:1: needs whole \.zst data"),
        ("a.txt", b"x", r"a\.txt: needs one of \.jsonl"),
    ],
)
def test_damage_is_named_with_its_line(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ValueError, match=said) as caught:
        rows(tmp_path / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_truncated_compression_is_no_shorter_file(tmp_path, ending):
    """Cut at any place, also where the rows so far are whole."""
    path = write_jsonl(tmp_path / f"a.jsonl.{ending}")
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=rf"a\.jsonl\.{ending}:\d+: needs whole"):
            rows(path)


def test_a_line_costs_no_more_than_its_length(tmp_path, monkeypatch):
    monkeypatch.setattr("melior.data.formats._CHUNK", 64)
    path = write_jsonl(tmp_path / "a.jsonl", json.dumps({"a": "x" * 4_000_000}) + '\n{"a": 1}\n')
    started = time.process_time()
    assert len(rows(path)) == 2
    # Joined anew with each of its 62,500 parts, the line would be copied 125 GB in all.
    assert time.process_time() - started < 5


def test_members_that_follow_one_another_are_one_file(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    one, two = (json.dumps(row).encode() + b"\n" for row in ROWS)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(one) + gzip.compress(two))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(one) + zstandard.compress(two))
    assert rows(tmp_path / "a.jsonl.gz") == rows(tmp_path / "a.jsonl.zst") == ROWS


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.jsonl.zst"])
def test_an_absent_package_names_the_extra(tmp_path, monkeypatch, name):
    (tmp_path / name).write_bytes(b"x")
    for module in ("pyarrow", "pyarrow.parquet", "zstandard"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ValueError, match=r"a\.\S+: .*pip install 'melior\[data\]'"):
        rows(tmp_path / name)


def test_standard_input_is_read_as_it_comes(monkeypatch):
    class Stdin:
        buffer = io.BytesIO(b'{"a": 1}\n{"a": 2}\nnot JSON')

    monkeypatch.setattr(sys, "stdin", Stdin)
    found = read_records("-")
    assert next(found) == ("stdin:1", {"a": 1})
    assert Stdin.buffer.tell() < 10
    assert next(found) == ("stdin:2", {"a": 2})
    with pytest.raises(ValueError, match="stdin:3: needs one JSON object"):
        next(found)


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "jsonl.gz"])
def test_a_file_is_never_held(tmp_path, ending):
    """24 MB are read in less than 12 MB of memory, the whole list on one line, too."""
    row = {"prompt": "x" * 2000, "chosen": "y" * 1000, "rejected": "z" * 1000}
    n, line = 6_000, json.dumps(row)
    text = "\n".join([line] * n) if "jsonl" in ending else "[" + ", ".join([line] * n) + "]"
    if ending == "csv":
        text = "prompt,chosen,rejected\n" + "\n".join([",".join(row.values())] * n)
    path = tmp_path / f"a.{ending}"
    data = text.encode()
    path.write_bytes(gzip.compress(data, 1) if ending.endswith("gz") else data)
    del text, data
    tracemalloc.start()
    try:
        count = sum(1 for _ in read_records(str(path)))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == n
    assert peak < 12e6


@given(
    st.lists(st.dictionaries(st.text(max_size=5), st.text(max_size=60), min_size=1), max_size=8),
    st.sampled_from([None, 0, 2]),
    st.integers(1, 40),
    st.booleans(),
)
def test_a_json_list_is_read_alike_whatever_the_pieces(tmp_path_factory, listed, indent, size, raw):
    path = tmp_path_factory.mktemp("pieces") / "a.json"
    path.write_text(
        json.dumps(listed, indent=indent, ensure_ascii=not raw), "utf-8", "surrogatepass"
    )
    try:
        path.read_bytes().decode()
    except UnicodeDecodeError:
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("melior.data.formats._CHUNK", size)
        assert rows(path) == listed
