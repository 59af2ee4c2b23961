"""Sources name what is meant, and say in one sentence when nothing is there."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from melior.data.files import read_pairs
from melior.data.sources import Source, content_hash, parse_source, read_records

ROW = {"prompt": "p", "chosen": "c", "rejected": "r"}


def lines(path, n=3):
    path.write_text("".join(json.dumps(ROW | {"id": i}) + "\n" for i in range(n)))
    return str(path)


def ids(source):
    return [fields["id"] for _, fields in read_records(source)]


def test_parts_of_a_source(tmp_path):
    path = lines(tmp_path / "a.jsonl")
    assert parse_source(path) == Source(path)
    assert parse_source(f"{path}:train") == Source(path, "train")
    assert parse_source(f"{path}:train:2") == Source(path, "train", 2)
    assert parse_source(f"{path}::2*0.5") == Source(path, "", 2, 0.5)
    assert parse_source(f"{path}:2") == Source(path, "", 2)
    assert parse_source(f"{path}*2") == Source(path, weight=2.0)
    assert parse_source("-") == Source("-")
    assert parse_source("org/name:test:10*3") == Source("org/name", "test", 10, 3.0)


def test_a_path_that_exists_wins_over_every_other_reading(tmp_path):
    for name in ("a:train.jsonl", "a.jsonl:train", "a.jsonl*2", "b:1:2.jsonl"):
        path = lines(tmp_path / name)
        assert parse_source(path) == Source(path)
        assert parse_source(f"{path}:train:2") == Source(path, "train", 2)


@pytest.mark.parametrize(
    "drive", ["C:\\data\\a.jsonl", "c:/data/a.jsonl", "C:\\data\\a.jsonl:train:5"]
)
def test_a_windows_drive_is_no_data_set_with_a_split(drive):
    with pytest.raises(FileNotFoundError, match=r"a\.jsonl: no such file"):
        parse_source(drive)


@pytest.mark.parametrize(
    ("ending", "said"),
    [
        (":train:x", "rows above 0; found 'train:x'"),
        (":train:0", "rows above 0; found 'train:0'"),
        (":a:b:c", r"needs path\[:split\[:rows\]\] .* found 'a:b:c'"),
        ("*-1", "a weight must be a number above 0; found '-1'"),
        ("*nan", "a weight must be a number above 0; found 'nan'"),
    ],
)
def test_wrong_parts_are_named(tmp_path, ending, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        parse_source(lines(tmp_path / "a.jsonl") + ending)


def test_a_missing_file_names_the_nearest(tmp_path):
    lines(tmp_path / "pairs.jsonl")
    with pytest.raises(FileNotFoundError, match=r"no such file.*did you mean 'pairs.jsonl'\?"):
        read_pairs(str(tmp_path / "piars.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"the folder '.*nowhere' does not exist"):
        read_pairs(str(tmp_path / "nowhere" / "pairs.jsonl"))


def test_what_is_neither_path_nor_name_is_refused(tmp_path):
    with pytest.raises(ValueError, match="a source is path"):
        parse_source("what is this")
    for other in ("", "https://example.com/pairs.jsonl"):
        with pytest.raises(ValueError, match=f"must be a path here .* found '{other}'"):
            parse_source(other)
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(ValueError, match=r"pipe\.jsonl: needs a file or folder.* found a pipe"):
        next(read_pairs(str(tmp_path / "pipe.jsonl")))


def test_a_name_that_is_not_cached_is_refused_offline():
    with pytest.raises(FileNotFoundError, match="neither a file here nor a data set"):
        next(read_pairs("nobody/nothing"))


def test_a_forgotten_ending_is_offered(tmp_path, monkeypatch):
    lines(tmp_path / "mine.jsonl")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"did you mean 'mine\.jsonl'\?"):
        next(read_pairs("mine"))


def test_a_cached_name_is_read_offline(tmp_path, monkeypatch):
    """Laid into the cache as a download leaves it."""
    datasets = pytest.importorskip("datasets")
    path = lines(tmp_path / "a.jsonl")
    made = datasets.load_dataset("json", data_files=path, cache_dir=str(tmp_path / "made"))
    folder = Path(made["train"].cache_files[0]["filename"]).parent
    cached = tmp_path / "org___name" / "default" / "0.0.0" / ("a" * 40)
    shutil.copytree(folder, cached)
    (cached / "json-train.arrow").rename(cached / "name-train.arrow")
    about = json.loads((cached / "dataset_info.json").read_text()) | {"dataset_name": "name"}
    (cached / "dataset_info.json").write_text(json.dumps(about))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path))
    assert [origin for origin, _ in read_records("org/name:train:2")] == [
        "org/name:train:1",
        "org/name:train:2",
    ]
    assert len(content_hash("org/name")) == 64
    with pytest.raises(ValueError, match=r"needs one of the splits \['train'\]; found 'tset'"):
        ids("org/name:tset")


def test_a_name_needs_the_extra(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'melior\[data\]'"):
        next(read_pairs("nobody/nothing"))


def test_rows_are_the_first_so_many(tmp_path):
    assert ids(lines(tmp_path / "a.jsonl", 5) + "::2") == [0, 1]


def test_a_folder_is_its_files_in_order_and_a_split_a_word_in_their_names(tmp_path):
    (tmp_path / "data").mkdir()
    for number, name in enumerate(["test-00000-of-00001", "train-00000", "train-00001"]):
        row = json.dumps(ROW | {"id": number})
        (tmp_path / "data" / f"{name}.jsonl").write_text(row)
    assert ids(str(tmp_path)) == [1, 2]
    assert ids(f"{tmp_path}:test") == [0]
    with pytest.raises(ValueError, match="no file bears the split's name 'dev'"):
        ids(f"{tmp_path}:dev")


def test_a_folder_without_splits_is_read_whole(tmp_path):
    (tmp_path / "dataset_info.json").write_text("{}")
    for number in range(2):
        (tmp_path / f"part{number}.jsonl").write_text(json.dumps(ROW | {"id": number}))
    assert ids(str(tmp_path)) == [0, 1]


def test_a_folder_without_data_says_what_is_there(tmp_path):
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(ValueError, match=r"needs data files .*found \['notes.md'\]"):
        ids(str(tmp_path))


def test_a_file_has_no_splits(tmp_path):
    with pytest.raises(ValueError, match="a file has no splits; found split 'test'"):
        ids(lines(tmp_path / "a.jsonl") + ":test")


def test_an_arrow_folder_reads_by_split(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [ROW | {"id": i} for i in range(600)]
    whole = datasets.DatasetDict(
        train=datasets.Dataset.from_list(rows[:500]), test=datasets.Dataset.from_list(rows[500:])
    )
    whole.save_to_disk(tmp_path / "both")
    whole["test"].save_to_disk(tmp_path / "one")
    assert ids(str(tmp_path / "both")) == list(range(500))
    assert ids(f"{tmp_path / 'both'}:test:3") == [500, 501, 502]
    assert ids(str(tmp_path / "one")) == list(range(500, 600))
    origins = [origin for origin, _ in read_records(str(tmp_path / "one"))]
    assert origins[1].endswith(".arrow:2")
    with pytest.raises(ValueError, match=r"'tset'; did you mean 'test'\?"):
        ids(f"{tmp_path / 'both'}:tset")


def test_weights_repeat_and_thin_out_by_the_seed(tmp_path):
    first, second = lines(tmp_path / "a.jsonl", 400), lines(tmp_path / "b.jsonl", 10)

    def drawn(seed):
        found = read_pairs([f"{first}*0.25", f"{second}*2"], seed=seed)
        return [pair.origin for pair in found]

    once = drawn(0)
    assert once == drawn(0) != drawn(1)
    thinned = [origin for origin in once if origin.startswith(first)]
    assert len(set(thinned)) == len(thinned) and 70 <= len(thinned) <= 130  # 3.5 sigma
    assert len(once) - len(thinned) == 20


def test_the_hash_of_one_file_is_that_of_its_bytes(tmp_path):
    path = lines(tmp_path / "a.jsonl")
    assert content_hash(path) == hashlib.sha256((tmp_path / "a.jsonl").read_bytes()).hexdigest()
    assert content_hash([path]) == content_hash(path)


def test_the_hash_tells_content_rows_weight_and_order(tmp_path):
    a, b = lines(tmp_path / "a.jsonl", 3), lines(tmp_path / "b.jsonl", 4)
    same = lines(tmp_path / "c.jsonl", 3)
    different = [[a], [b], [a, b], [b, a], [f"{a}::2"], [f"{a}*2"]]
    assert len({content_hash(sources) for sources in different}) == len(different)
    assert content_hash([a, b]) == content_hash([same, b])
    with pytest.raises(ValueError, match="stdin: can be read only once"):
        content_hash("-")
