"""Where rows come from: files of every usual kind, folders and `datasets` names, streamed.

A source is written `path[:split[:rows]][*weight]`. Every row comes with its origin, `file:line`
(in Parquet and Arrow, the row's number stands for the line).
"""

from __future__ import annotations

import difflib
import glob
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from melior.data.formats import KINDS, Records, is_data, kind, need, read_file, read_stdin

PATIENCE = 5.0
"""Seconds until a hub that does not answer is left alone."""


@dataclass(frozen=True)
class Source:
    """Rows of a file, a folder or a `datasets` name."""

    path: str
    split: str = ""
    """Empty takes `train` where there are several."""
    rows: int | None = None
    """The first so many rows only."""
    weight: float = 1.0
    """How often the rows are used: 2 takes each twice, 0.5 half of them, drawn at random."""


def parse_source(text: str) -> Source:
    """Take `path[:split[:rows]][*weight]` apart; the longest part that is a path wins.

    Raises:
        FileNotFoundError: for what looks like a path, and is none.
        ValueError: for what can be neither a path nor a name.
    """
    if _exists(text):
        return Source(text)
    if not text or "://" in text:
        raise ValueError(f"a source must be a path here or a `datasets` name; found {text!r}")
    rest, weight = _weight(text)
    parts = rest.split(":")
    for length in range(len(parts), max(len(parts) - 3, 0), -1):
        path = ":".join(parts[:length])
        if _exists(path):
            return Source(path, *_split_and_rows(text, parts[length:]), weight)
    has_drive = re.match(r"[A-Za-z]:[\\/]", rest) is not None
    path = ":".join(parts[: 1 + has_drive])
    split, rows = _split_and_rows(text, parts[1 + has_drive :])
    if has_drive or _looks_like_path(path):
        raise FileNotFoundError(_no_such_path(path))
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise ValueError(
            f"{text!r}: a source is path[:split[:rows]][*weight] or a `datasets` name; "
            f"found no path {path!r}"
        )
    return Source(path, split, rows, weight)


def read_records(source: str | Source) -> Records:
    """Yield the origin and the columns of each row, holding no more than a part of the file."""
    source = parse_source(source) if isinstance(source, str) else source
    return itertools.islice(_records(source), source.rows)


def content_hash(sources: str | Sequence[str]) -> str:
    """Return the sha256 of what is read; for a single whole file, that of its bytes."""
    parsed = [parse_source(text) for text in ([sources] if isinstance(sources, str) else sources)]
    digests = [_digest(source) for source in parsed]
    if len(parsed) == 1 and parsed[0] == Source(parsed[0].path):
        return digests[0]
    lines = [
        f"{digest} {source.rows} {source.weight}"
        for digest, source in zip(digests, parsed, strict=True)
    ]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def near(word: str, known: Sequence[str]) -> str:
    """Return `; did you mean ...?` for the nearest known word, or nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
    return f"; did you mean {found[0]!r}?" if found else ""


def _exists(path: str) -> bool:
    """Say whether a path is standard input or lies on the disk; too long a name does not."""
    try:
        return path == "-" or (bool(path) and Path(path).expanduser().exists())
    except OSError:
        return False


def _weight(text: str) -> tuple[str, float]:
    rest, star, number = text.rpartition("*")
    if not star or ":" in number:
        return text, 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = math.nan
    if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f"{text!r}: a weight must be a number above 0; found {number!r}")
    return rest, weight


def _split_and_rows(text: str, parts: Sequence[str]) -> tuple[str, int | None]:
    if len(parts) == 1 and parts[0].isdecimal():
        parts = ["", parts[0]]
    split, rows = [*parts, "", ""][:2]
    if len(parts) > 2 or (rows and not (rows.isdecimal() and int(rows) > 0)):
        found = ":".join(parts)
        raise ValueError(f"{text!r}: needs path[:split[:rows]] with rows above 0; found {found!r}")
    return split, int(rows) if rows else None


def _looks_like_path(path: str) -> bool:
    folder = Path(path).expanduser().parent
    is_below = folder != Path(".") and folder.exists()
    return is_data(Path(path)) or path[:1] in "./~" or "\\" in path or is_below


def _no_such_path(path: str) -> str:
    whole = Path(path).expanduser()
    if not whole.parent.is_dir():
        return f"{path}: no such file; the folder {str(whole.parent)!r} does not exist either"
    return f"{path}: no such file or folder" + near(
        whole.name, [entry.name for entry in whole.parent.iterdir()]
    )


def _with_an_ending(path: str) -> str:
    found = sorted(str(one) for one in Path().glob(f"{glob.escape(path)}.*") if is_data(one))
    return f"; did you mean {found[0]!r}?" if found else ""


def _records(source: Source) -> Records:
    if source.path == "-":
        yield from read_stdin()
        return
    path = Path(source.path).expanduser()
    if not path.exists():
        yield from _read_hub(source)
        return
    for file in _files(path, source.split):
        yield from read_file(file)


def _files(path: Path, split: str) -> list[Path]:
    """Return the data files of a path, in order."""
    if path.is_file():
        if split not in ("", "train", "all"):
            raise ValueError(f"{path}: a file has no splits; found split {split!r}")
        kind(path)
        return [path]
    if not path.is_dir():
        raise ValueError(f"{path}: needs a file or folder, to be read several times; found a pipe")
    if (path / "dataset_dict.json").exists():
        splits = json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        path = path / _choose(str(path), split, splits)
    if (path / "state.json").exists():
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return [path / entry["filename"] for entry in state["_data_files"]]
    return _loose_files(path, split)


def _loose_files(folder: Path, split: str) -> list[Path]:
    """Return the data files below a folder; a split is a word in their names."""
    about = {"dataset_info.json", "dataset_infos.json", "state.json"}
    found = sorted(file for file in folder.rglob("*") if is_data(file) and file.name not in about)
    if not found:
        inside = sorted(entry.name for entry in folder.iterdir())[:8]
        raise ValueError(f"{folder}: needs data files ({', '.join(KINDS)}); found {inside}")
    word = re.compile(rf"(?<![a-z0-9]){re.escape(split or 'train')}(?![a-z0-9])")
    named = [file for file in found if word.search(str(file.relative_to(folder)))]
    if split and not named:
        names = [str(file.relative_to(folder)) for file in found[:8]]
        raise ValueError(f"{folder}: no file bears the split's name {split!r}; found {names}")
    return named or found


def _choose(where: str, split: str, splits: Sequence[str]) -> str:
    if not split and "train" in splits:
        return "train"
    if not split and len(splits) == 1:
        return splits[0]
    if split not in splits:
        raise ValueError(
            f"{where}: needs one of the splits {list(splits)}; found {split!r}"
            + (near(split, splits) or f"; write {where}:{splits[0]}")
        )
    return split


def _read_hub(source: Source) -> Records:
    """Read a data set by name: data files only (this major of `datasets` runs no scripts)."""
    datasets = need("datasets", source.path)
    silence = ""
    try:
        with _asked_once(datasets, source.path) as silence:
            found = datasets.load_dataset(source.path)
    except (OSError, ValueError, RuntimeError) as error:
        lines = (silence or str(error)).strip().splitlines()
        reason = lines[0] if lines else type(error).__name__
        raise FileNotFoundError(
            f"{source.path}: neither a file here nor a data set that could be loaded ({reason}); "
            "check the name, or the network if HF_HUB_OFFLINE is not set"
            + _with_an_ending(source.path)
        ) from error
    split = _choose(source.path, source.split, list(found))
    for number, row in enumerate(found[split], 1):
        yield f"{source.path}:{split}:{number}", row


@contextmanager
def _asked_once(datasets: ModuleType, name: str) -> Iterator[str]:
    """Ask the hub once; where it does not answer, look inside only at what is kept, and say why.

    `datasets` itself asks six times, for half a minute.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    was_offline, silence = datasets.config.HF_HUB_OFFLINE, ""
    try:
        HfApi().dataset_info(name, timeout=PATIENCE)
    except HfHubHTTPError:
        pass  # it has answered
    except Exception as error:  # of whichever HTTP library it stands on
        silence = f"the hub does not answer: {error}"
        datasets.config.HF_HUB_OFFLINE = True
    try:
        yield silence
    finally:
        datasets.config.HF_HUB_OFFLINE = was_offline


def _digest(source: Source) -> str:
    if source.path == "-":
        raise ValueError("stdin: can be read only once, so it has no hash; give a file instead")
    path = Path(source.path).expanduser()
    if path.is_file():
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    total = hashlib.sha256()
    if path.exists():
        for file in _files(path, source.split):
            total.update(_digest(Source(str(file))).encode())
    else:
        for _, row in _read_hub(source):
            total.update(json.dumps(row, sort_keys=True, default=str).encode())
    return total.hexdigest()
