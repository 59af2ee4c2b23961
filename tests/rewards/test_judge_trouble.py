"""A judge at a real server in trouble: it stalls, drips, dies, sends nonsense, or asks to wait."""

import json
import subprocess
import sys
import threading
import time
from email.utils import formatdate
from pathlib import Path

import pytest

from melior.cli import main
from melior.models import endpoint
from melior.rewards.judge import SILENCE
from tests.rewards.referee import comparison, judge_at, referee
from tests.servers import serving

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
ASKED = [comparison(f"{i} points", "1 points") for i in (2, 3, 4)]


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    monkeypatch.setenv("MELIOR_CACHE", str(tmp_path / "cache"))


def whole(body):
    return json.dumps(referee(body, 0)[1]).encode()


def cut(body):
    return 200, whole(body)[:-7]


def announced(body):
    data = whole(body)
    return 200, lambda file: file.write(
        HEAD + b"Content-Length: %d\r\n\r\n" % len(data) + data[:-7]
    )


def hung_up(body):
    return 200, lambda file: None


def stalled(body):
    def write(file):
        file.write(HEAD + b"Content-Length: 1000\r\n\r\n" + whole(body)[:20])
        file.flush()
        time.sleep(0.6)

    return 200, write


def dripping(body):
    """Every drop is in time, the whole never."""

    def write(file):
        file.write(HEAD + b"\r\n")
        for one in whole(body)[:40]:
            file.write(bytes([one]))
            file.flush()
            time.sleep(0.02)

    return 200, write


@pytest.mark.parametrize(
    "trouble",
    [
        cut,
        announced,
        hung_up,
        stalled,
        dripping,
        lambda body: (200, b""),
        lambda body: (200, b"<html>502 Bad Gateway</html>"),
        lambda body: (500, b""),
        lambda body: (429, {"error": {"message": "slow down"}}, [("Retry-After", "0.01")]),
    ],
    ids=["cut JSON", "cut body", "hung up", "stalled", "dripping", "empty", "HTML", "500", "429"],
)  # fmt: skip
def test_trouble_that_passes_changes_no_verdict(tmp_path, trouble):
    def moody(body, number):
        return trouble(body) if number % 2 else referee(body, number)

    options = {"concurrency": 1, "retries": 1, "timeout": 0.3}
    with serving(referee) as (url, _):
        well = judge_at(url, tmp_path / "a").compare(ASKED)
    with serving(moody) as (url, seen):
        judge = judge_at(url, tmp_path / "b", **options)
        assert judge.compare(ASKED) == well
        assert len(seen) == 12
        assert judge.tally.problems == {}


def test_a_question_that_the_server_cannot_bear_is_missing_and_the_others_are_not(tmp_path):
    def poisoned(body, number):
        is_poison = "3 points" in body["messages"][0]["content"]
        return (500, b"worker died") if is_poison else referee(body, number)

    with serving(poisoned) as (url, _):
        judge = judge_at(url, tmp_path, concurrency=1)
        verdicts = judge.compare(ASKED)
    assert [one.logit is None for one in verdicts] == [False, True, False]
    ((problem, n),) = judge.tally.problems.items()
    assert "in 2 tries: HTTP 500: worker died" in problem and n == 2
    assert judge.kept.get("x") is None
    with serving(referee) as (url, _):
        assert None not in [one.logit for one in judge_at(url, tmp_path).compare(ASKED)]


def test_a_server_that_is_gone_ends_the_run_after_a_few_questions(tmp_path):
    def gone(body, number):
        return referee(body, number) if number <= 2 else (200, lambda file: None)

    many = [comparison(f"{i} points", "1 points") for i in range(2, 40)]
    with serving(gone) as (url, seen):
        with pytest.raises(ValueError, match=r"needs a server that answers; found in 2 tries"):
            judge_at(url, tmp_path, concurrency=1).compare(many)
        assert len(seen) <= 2 + 2 * (SILENCE + 2)  # those in flight are asked, too


@pytest.mark.parametrize("said", ["0.4", "date", "1e99", "-5", "soon", ""])
def test_a_server_that_asks_to_wait_is_waited_for(tmp_path, monkeypatch, said):
    monkeypatch.setattr(endpoint, "LONGEST_PAUSE", 1.0)
    times = []

    def busy(body, number):
        times.append(time.time())
        value = formatdate(time.time() + 2, usegmt=True) if said == "date" else said
        return referee(body, number) if number > 1 else (429, b"busy", [("Retry-After", value)])

    with serving(busy) as (url, _):
        judge_at(url, tmp_path, concurrency=1).compare(ASKED[:1])
    pause = times[1] - times[0]
    least = {"0.4": 0.4, "date": 0.9, "1e99": 1.0}.get(said, 0.0)
    assert least <= pause < least + 0.9


def server_process(port):
    """A referee in a process of its own, which can be killed."""
    code = (
        "import sys, time\n"
        "from tests.rewards.referee import referee\n"
        "import tests.servers as servers\n"
        "servers.PORT = int(sys.argv[1])\n"
        "def slow(body, number):\n"
        "    time.sleep(0.02)\n"
        "    return referee(body, number)\n"
        "with servers.serving(slow) as (url, _):\n"
        "    print(url, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(port)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    return process, process.stdout.readline().strip()


def test_a_server_that_is_killed_costs_no_row_and_no_question_twice(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("melior.rewards.judging.CHUNK", 8)
    groups, out = tmp_path / "groups.jsonl", tmp_path / "scored.jsonl"
    rows = [
        {"prompt": f"How many of {i}?", "id": i,
         "candidates": [{"response": f"{n} points"} for n in (1, i + 2)]}
        for i in range(60)
    ]  # fmt: skip
    groups.write_text("".join(json.dumps(row) + "\n" for row in rows))
    process, url = server_process(0)
    words = ["score", str(groups), "--with", f"judge:{url}", "--out", str(out)]

    def kill_later():
        while not (out.exists() and out.read_bytes().count(b"\n") >= 10):
            time.sleep(0.005)
        process.kill()

    threading.Thread(target=kill_later).start()
    with pytest.raises(SystemExit) as stopped:
        main(words)
    process.communicate()
    told = capsys.readouterr().err
    assert stopped.value.code == 2 and "needs a server that answers" in told
    n = len(out.read_text().splitlines())
    assert 0 < n < 60 and f"{n} groups are in {out}; --resume goes on" in told
    again, same = server_process(int(url.rpartition(":")[2]))
    assert same == url
    main([*words, "--resume"])
    again.communicate()
    assert [json.loads(line)["id"] for line in out.read_text().splitlines()] == list(range(60))
