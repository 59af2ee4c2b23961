"""File formats, row by row: JSON, JSON lines, CSV, Parquet and Arrow, plain or compressed.

No reader holds its file: a row is parsed when it is asked for, and damage is told in one
sentence with file and line.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import importlib
import json
import re
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Fields = Mapping[str, Any]
"""One row as its file says it, by column: a JSON edge."""
Records = Iterator[tuple[str, Fields]]
"""Rows with their origin, `file:line`."""

KINDS = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".ndjson")
"""Suffixes of data files; the text ones may be compressed (`.gz`, `.zst`)."""
_CHUNK = 1 << 20
_TABLE_ROWS = 256


def kind(path: Path) -> str:
    """Return a data file's suffix, without that of a compression.

    Raises:
        ValueError: when it is no data file.
    """
    suffix = path.with_suffix("").suffix if path.suffix in (".gz", ".zst") else path.suffix
    if suffix not in KINDS:
        raise ValueError(
            f"{path}: needs one of {', '.join(KINDS)} (text also .gz, .zst); found {suffix!r}"
        )
    return suffix


def is_data(path: Path) -> bool:
    """Say whether a path bears a data file's suffix and is not hidden."""
    suffix = path.with_suffix("").suffix if path.suffix in (".gz", ".zst") else path.suffix
    return suffix in KINDS and not path.name.startswith(".")


def read_file(path: Path) -> Records:
    """Yield the rows of one file."""
    suffix = kind(path)
    if suffix in (".parquet", ".arrow"):
        rows = _parquet(path) if suffix == ".parquet" else _arrow(path)
        return ((f"{path}:{number}", row) for number, row in enumerate(rows, 1))
    if suffix in (".csv", ".tsv"):
        return _csv(path, "\t" if suffix == ".tsv" else ",")
    return _json(path) if suffix == ".json" or _begins_a_list(path) else _json_lines(path)


def read_stdin() -> Records:
    """Yield the rows of JSON lines on standard input, each as soon as it is there."""
    return _parse_lines("stdin", enumerate(sys.stdin.buffer, 1))


def need(module: str, where: str) -> Any:
    """Import an optional package, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(
            f"{where}: reading or writing this needs the package {module!r}, which is not "
            "installed; pip install 'melior[data]'"
        ) from error


def _chunks(path: Path) -> Iterator[bytes]:
    """Yield a file's bytes, unpacked."""
    if path.suffix == ".zst":
        yield from _unpack_zst(path)
        return
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def _unpack_zst(path: Path) -> Iterator[bytes]:
    zstandard = need("zstandard", str(path))
    with path.open("rb") as stream:
        part = zstandard.ZstdDecompressor().decompressobj()
        packed = stream.read(_CHUNK // 8)
        while packed:
            try:
                yield part.decompress(packed)
            except zstandard.ZstdError as error:
                raise zlib.error(str(error)) from error
            packed = part.unused_data or stream.read(_CHUNK // 8)
            if part.eof and packed:
                part = zstandard.ZstdDecompressor().decompressobj()
        if not part.eof:
            raise EOFError("the last frame is not complete")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines with their numbers, each with its line feed."""
    number = 1
    begun: list[bytes] = []  # joined once, so that a long line costs no more than its length
    try:
        for chunk in _chunks(path):
            *whole, rest = chunk.split(b"\n")
            for line in whole:
                yield number, b"".join([*begun, line, b"\n"])
                number, begun = number + 1, []
            begun.append(rest)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _cut_off(path, number, error) from error
    if last := b"".join(begun):
        yield number, last


def _cut_off(path: Path, line: int, error: Exception) -> ValueError:
    return ValueError(
        f"{path}:{line}: needs whole {path.suffix} data; found it cut off or damaged ({error}); "
        "fetch or pack the file again"
    )


def not_utf8(where: str, error: UnicodeDecodeError) -> ValueError:
    """Return the error of text that is none."""
    damage = error.object[error.start]
    hint = "; it seems to be UTF-16" if damage in (0xFF, 0xFE) and error.start == 0 else ""
    return ValueError(f"{where}: needs UTF-8; found the byte 0x{damage:02x}{hint}; save as UTF-8")


def _decode(where: str, number: int, line: bytes) -> str:
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise not_utf8(f"{where}:{number}", error) from error


def _json_lines(path: Path) -> Records:
    return _parse_lines(str(path), _lines(path))


def _parse_lines(where: str, lines: Iterable[tuple[int, bytes]]) -> Records:
    for number, line in lines:
        text = _decode(where, number, line).strip()
        if not text:
            continue
        try:
            row = json.loads(text)
        except (ValueError, RecursionError) as error:  # also of numbers that are too long
            raise ValueError(
                f"{where}:{number}: needs one JSON object per line; "
                f"found {_excerpt(text)} ({error})"
            ) from error
        yield f"{where}:{number}", _fields(f"{where}:{number}", row)


def _fields(origin: str, row: object) -> Fields:
    if not isinstance(row, dict):
        raise ValueError(f"{origin}: a row must be an object with named fields; found {row!r:.60}")
    return row


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:40]} ... {text[-15:]}")


def _begins_a_list(path: Path) -> bool:
    """Say whether a file named `.jsonl` is one JSON list all the same."""
    for _, line in _lines(path):
        if begin := line.removeprefix(codecs.BOM_UTF8).strip():
            return begin.startswith(b"[")
    return False


def _text(path: Path) -> Iterator[str]:
    """Yield a file's text in chunks."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line = 1
    try:
        for chunk in _chunks(path):
            text = decoder.decode(chunk)
            yield text
            line += text.count("\n")
        yield decoder.decode(b"", final=True)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _cut_off(path, line, error) from error
    except UnicodeDecodeError as error:
        line += error.object[: error.start].count(b"\n")
        raise not_utf8(f"{path}:{line}", error) from error


_BETWEEN = re.compile(r"[\s,]*")


def _json(path: Path) -> Records:
    """Yield the objects of a JSON list, or objects that follow one another."""
    decode = json.JSONDecoder().raw_decode
    chunks = _text(path)
    buffer, at, line = "", 0, 1
    is_list = is_closed = False
    while True:
        start = _BETWEEN.match(buffer, at).end()  # type: ignore[union-attr]  # matches always
        line += buffer.count("\n", at, start)
        at = start
        mark = buffer[at : at + 1]
        if mark == "[" and not is_list:
            is_list, at = True, at + 1
            continue
        if mark == "]" and is_list:
            is_closed, at = True, at + 1
            continue
        try:
            row, end = decode(buffer, at)
        except json.JSONDecodeError as error:
            more = _more(chunks, len(buffer) - at) if _may_go_on(error, buffer) else ""
            if more:
                buffer, at = buffer[at:] + more, 0
                continue
            if mark or (is_list and not is_closed):
                raise _bad_json(path, line + buffer.count("\n", at, error.pos), error) from error
            return
        except (ValueError, RecursionError) as error:  # a number too long, or lists too deep
            raise ValueError(f"{path}:{line}: needs a JSON list of objects; {error}") from error
        yield f"{path}:{line}", _fields(f"{path}:{line}", row)
        line += buffer.count("\n", at, end)
        at = end


def _may_go_on(error: json.JSONDecodeError, buffer: str) -> bool:
    """Say whether the error may only be that the text read so far ends inside of a value."""
    return error.msg.startswith("Unterminated string") or error.pos >= len(buffer) - 16


def _more(chunks: Iterator[str], least: int) -> str:
    """Read on, at least as much as is there: so a long value is parsed again a few times only."""
    found: list[str] = []
    size = 0
    while size <= least and (chunk := next(chunks, None)) is not None:
        found.append(chunk)
        size += len(chunk)
    return "".join(found)


def _bad_json(path: Path, line: int, error: json.JSONDecodeError) -> ValueError:
    is_end = error.pos >= len(error.doc) - 1 or error.msg.startswith("Unterminated")
    found = "the end of the file in the middle of it" if is_end else f"an error ({error.msg})"
    return ValueError(f"{path}:{line}: needs a whole JSON list of objects; found {found}")


def _csv(path: Path, delimiter: str) -> Records:
    csv.field_size_limit(1 << 30)
    texts = (_decode(str(path), number, line) for number, line in _lines(path))
    rows = csv.DictReader(texts, delimiter=delimiter, strict=True, restkey="", restval=None)
    line = 0
    try:
        twice = [name for name, count in Counter(rows.fieldnames or ()).items() if count > 1]
        if twice:
            raise ValueError(f"{path}:1: needs each column once; found {twice} again")
        line = rows.line_num
        for row in rows:
            origin, line = f"{path}:{line + 1}", rows.line_num
            if "" in row or None in row.values():
                columns = len(rows.fieldnames or ())
                raise ValueError(f"{origin}: needs {columns} fields as in the header; found others")
            yield origin, {name: _cell(value) for name, value in row.items()}
    except csv.Error as error:
        raise ValueError(f"{path}:{line + 1}: needs whole CSV; found {error}") from error


def _cell(value: str) -> object:
    """Return a cell's text, or the messages that it spells as JSON."""
    if value.startswith("[{"):
        try:
            return json.loads(value)
        except json.JSONDecodeError:
            return value
    return value


def _parquet(path: Path) -> Iterator[Fields]:
    parquet = need("pyarrow.parquet", str(path))
    try:
        for batch in parquet.ParquetFile(path).iter_batches(batch_size=_TABLE_ROWS):
            yield from batch.to_pylist()
    except (OSError, need("pyarrow", str(path)).ArrowException) as error:
        raise _bad_table(path, error) from error


def _arrow(path: Path) -> Iterator[Fields]:
    arrow = need("pyarrow", str(path))
    try:
        with arrow.memory_map(str(path)) as stream:
            try:
                batches = iter(arrow.ipc.open_stream(stream))
            except arrow.ArrowInvalid:
                file = arrow.ipc.open_file(stream)
                batches = (file.get_batch(i) for i in range(file.num_record_batches))
            for batch in batches:
                for start in range(0, batch.num_rows, _TABLE_ROWS):
                    yield from batch.slice(start, _TABLE_ROWS).to_pylist()
    except (OSError, arrow.ArrowException) as error:
        raise _bad_table(path, error) from error


def _bad_table(path: Path, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(f"{path}: needs a whole {path.suffix} file; found: {reason}")
