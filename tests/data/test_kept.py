"""Values on disk by key: there the next time, shared by programs, refused where they cannot be."""

import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from melior.data.kept import Kept


def test_what_is_put_is_there_the_next_time_and_in_other_hands(tmp_path):
    path = tmp_path / "new" / "values.sqlite"
    one, other = Kept(path), Kept(path)
    assert one.get("a") is None
    one.put("a", {"x": [1, None, "é"]})
    assert other.get("a") == {"x": [1, None, "é"]}
    other.put("a", 2)
    one.close()
    assert Kept(path).get("a") == 2


def test_programs_that_write_at_once_lose_nothing(tmp_path):
    path = tmp_path / "values.sqlite"
    script = (
        "import sys; from pathlib import Path; from melior.data.kept import Kept\n"
        "kept = Kept(Path(sys.argv[1]))\n"
        "for i in range(200): kept.put(f'{sys.argv[2]} {i}', i)\n"
    )
    words = [sys.executable, "-c", script, str(path)]
    running = [subprocess.Popen([*words, name]) for name in "ab"]
    assert [one.wait() for one in running] == [0, 0]
    kept = Kept(path)
    assert all(kept.get(f"{name} {i}") == i for name in "ab" for i in range(200))


def test_a_program_that_begins_waits_for_one_that_holds_the_file(tmp_path):
    holder = sqlite3.connect(tmp_path / "values.sqlite", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    holder.execute("CREATE TABLE other (x)")
    with ThreadPoolExecutor(1) as pool:
        begun = pool.submit(lambda: Kept(tmp_path / "values.sqlite").path)
        time.sleep(0.3)
        assert not begun.done()
        holder.execute("COMMIT")
        assert begun.result(timeout=60).exists()


def test_a_place_that_cannot_be_used_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/values\.sqlite: needs a place that can be written"):
        Kept(tmp_path / "file" / "values.sqlite")
    with pytest.raises(OSError, match="MELIOR_CACHE"):
        Kept(tmp_path)
    (tmp_path / "damaged").write_bytes(
        b"no database at all, but long enough to be read as one" * 30
    )
    with pytest.raises(ValueError, match=r"damaged.*delete it"):
        Kept(tmp_path / "damaged")
