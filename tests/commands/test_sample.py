import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from melior.commands.sample import Config, run
from melior.options import Sampling
from tests.sampling.test_server import fine, serving

TEXTS = ["hello", "what is the capital", "fox", "you"]


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"prompt": t, "subset": t[0]}) + "\n" for t in TEXTS))
    return path


def config(model_folder, prompts, **options):
    sampling = Sampling(k=2, max_new_tokens=6)
    options = {"sampling": sampling, "max_tokens": 150, "dtype": "fp32"} | options
    return Config((str(prompts),), str(model_folder), **options)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_groups_are_written_in_order_with_the_facts_of_their_prompts(
    model_folder, prompts, tmp_path, capsys
):
    out = tmp_path / "g.jsonl"
    metrics = run(config(model_folder, prompts, out=str(out)))
    found = rows(out)
    assert [row["prompt"] for row in found] == [[{"role": "user", "content": t}] for t in TEXTS]
    assert [row["subset"] for row in found] == ["h", "w", "f", "y"]
    assert all(len(row["candidates"]) == 2 for row in found)
    assert metrics["sample/groups"] == 4 and metrics["sample/answers"] == 8
    assert "drew 8 answers to 4 prompts" in capsys.readouterr().err
    run(config(model_folder, prompts))
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == found


@pytest.mark.parametrize("n", [0, 1, 2, 3, 4])
def test_resuming_gives_the_file_of_an_undisturbed_run(model_folder, prompts, tmp_path, n):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "g.jsonl"
    run(config(model_folder, prompts, out=str(whole)))
    lines = whole.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:n]) + b"".join(lines[n : n + 1])[:20])
    with pytest.raises(FileExistsError, match=r"needs to be new; found \d rows; --resume"):
        run(config(model_folder, prompts, out=str(out)))
    run(config(model_folder, prompts, out=str(out), resume=True))
    assert out.read_bytes().splitlines()[:n] == whole.read_bytes().splitlines()[:n]
    for one, other in zip(rows(out), rows(whole), strict=True):
        for left, right in zip(one.pop("candidates"), other.pop("candidates"), strict=True):
            log_prob = left["facts"].pop("log_prob")
            assert log_prob == pytest.approx(right["facts"].pop("log_prob"), abs=1e-3)
            assert left == right
        assert one == other


def test_resuming_another_run_is_refused(model_folder, prompts, tmp_path):
    out = tmp_path / "g.jsonl"
    run(config(model_folder, prompts, out=str(out)))
    other = config(model_folder, prompts, out=str(out), resume=True, sampling=Sampling(k=3))
    with pytest.raises(ValueError, match=r"g.jsonl:1: --resume needs 3 answers.*found 2 answers"):
        run(other)
    prompts.write_text('{"prompt": "other"}\n')
    with pytest.raises(ValueError, match=r"g.jsonl:1: --resume needs .*other --out"):
        run(config(model_folder, prompts, out=str(out), resume=True))


def test_a_server_answers_instead_of_a_model(prompts, tmp_path, monkeypatch):
    out = tmp_path / "g.jsonl"
    monkeypatch.setenv("MY_KEY", "secret")
    with serving(fine) as (url, seen):
        run(config("", prompts, out=str(out), server=url, api_key_env="MY_KEY"))
    assert seen[0]["key"] == "Bearer secret"
    assert rows(out)[2]["candidates"][1]["response"][0]["content"] == "fox 1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": ""}, "--model must name what answers"),
        ({"resume": True}, "--resume needs the file"),
        ({"out": "g.csv"}, r"--out must end in \.jsonl"),
        ({"out": "nowhere/g.jsonl"}, r"--out: the folder of nowhere/g\.jsonl does not exist"),
        ({"api_key_env": "NO_SUCH_KEY"}, "NO_SUCH_KEY must hold the server's key"),
        ({"max_tokens": 1}, "max_tokens must be at least 16"),
    ],
)
def test_wrong_options_are_refused_before_anything_loads(options, message):
    with pytest.raises(ValueError, match=message):
        Config(("p.jsonl",), **({"model": "smollm2"} | options))


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_was_done(sent, code, prompts, tmp_path):
    out, is_stopped = tmp_path / "g.jsonl", threading.Event()

    def slow(body, number):
        if number > 1:
            is_stopped.wait(60)  # however long the other side takes to look and to interrupt
        return fine(body, number)

    with serving(slow) as (url, _):
        options = ["--server", url, "--concurrency", "1", "--out", str(out), "--k", "1"]
        process = subprocess.Popen(
            [sys.executable, "-m", "melior", "sample", "--prompts", str(prompts), *options],
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            # A suite that runs in the background has interrupts ignored, which is inherited.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        while not (out.exists() and out.read_bytes()):
            time.sleep(0.02)
            assert process.poll() is None
        process.send_signal(sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)  # for the question in flight, if need be
        is_stopped.set()
        said = process.communicate(timeout=60)[1]
        assert process.returncode == code
        n = len(rows(out))
        assert 0 < n < 4 and f"{n} of 4 prompts are done; --resume goes on" in said
        run(config("", prompts, out=str(out), server=url, sampling=Sampling(k=1), resume=True))
    assert len(rows(out)) == 4
