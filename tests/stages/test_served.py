"""Rounds whose answers come from a server: fresh, stale, dying; a real one, in another process."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from melior.cli import main
from melior.models import endpoint
from melior.models.endpoint import Server
from melior.models.loading import load
from melior.options import ModelOptions
from melior.records import Candidate, Group, Turn
from melior.stages.online.options import ServingOptions
from melior.stages.online.served import Proof, _known, _proof, prove, refresh
from tests.recipes.test_online import manifests, read, rows, words, write_prompts
from tests.servers import serving as serving_by

RELOAD = (
    f'{sys.executable} -c "import json, sys, urllib.request as u; folder = sys.argv[1];'
    " u.urlopen(u.Request('{url}/load', json.dumps(dict(folder=folder)).encode()))\" {{folder}}"
)
"""What a user would write with curl."""


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)


class Serving:
    """A server process that may be started again at its port."""

    def __init__(self, place, folder):
        self.place, self.folder, self.port = place, str(folder), 0

    def start(self, **environment):
        self.place.unlink(missing_ok=True)
        given = {**os.environ, **environment, "PORT": str(self.port)}
        command = [sys.executable, "-m", "tests.serving_folder", str(self.place), self.folder]
        self.process = subprocess.Popen(command, env=given)
        while not (self.place.exists() and self.place.read_text()):
            assert self.process.poll() is None
            time.sleep(0.05)
        self.port = int(self.place.read_text())
        return f"http://127.0.0.1:{self.port}"

    def stop(self):
        self.process.kill()
        self.process.wait()


@pytest.fixture
def serving(model_folder, tmp_path):
    one = Serving(tmp_path / "port", model_folder)
    yield one
    one.stop()


def line(model_folder, prompts, out, url, *more):
    return words(model_folder, prompts, out, "--server", url, "--temperatures", "1.0",
                 "--keep", "last", *more)  # fmt: skip


@pytest.fixture
def prompts(tmp_path):
    return write_prompts(tmp_path / "prompts.jsonl")


def test_a_server_is_given_each_rounds_weights_and_proves_that_it_has_them(
    serving, model_folder, prompts, tmp_path
):
    url, out = serving.start(), tmp_path / "run"
    main(line(model_folder, prompts, out, url, "--refresh-command", RELOAD.format(url=url)))
    assert len(manifests(out)) == 3
    for number in (1, 2):
        proof = read(out / f"round-{number}" / "proof.json")
        assert proof["is_fresh"]
        assert proof["off"] < 1e-4  # both compute in float32
    assert proof["off_last"] > 0.01
    groups = rows(out / "round-2" / "candidates.jsonl")
    assert all(one["facts"]["log_prob"] < 0 for group in groups for one in group["candidates"])


def test_a_stale_server_stops_the_run_and_it_goes_on_once_that_is_mended(
    serving, model_folder, prompts, tmp_path, capsys
):
    url, out = serving.start(), tmp_path / "run"
    asked = line(model_folder, prompts, out, url)
    with pytest.raises(SystemExit) as stopped:
        main([*asked, "--refresh-command", "true {folder}"])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert "must serve the weights in" in said
    assert "round-1/learn/model" in said
    assert "those of the round before: it has not loaded them" in said
    assert read(out / "run.json")["status"] == "failed"
    assert not (out / "round-2" / "candidates.jsonl").exists()
    proof = read(out / "round-2" / "proof.json")
    assert proof["likeness"] > 0.999
    mended = ["--refresh-command", RELOAD.format(url=url), "--resume", "--allow-changes"]
    main([*asked, *mended])
    assert len(manifests(out)) == 3


def test_a_server_that_dies_in_a_round_leaves_what_it_answered_and_the_run_goes_on(
    serving, model_folder, prompts, tmp_path, capsys
):
    url, out = serving.start(DIES_AFTER="20"), tmp_path / "run"  # 16 of them are the proof
    asked = [*line(model_folder, prompts, out, url), "--refresh-command", "true {folder}"]
    asked += ["--rounds", "1"]
    with pytest.raises(SystemExit) as stopped:
        main(asked)
    assert stopped.value.code == 2
    assert "needs a server that answers" in capsys.readouterr().err
    kept = rows(out / "round-1" / "candidates.jsonl")
    assert 0 < len(kept) < 8
    serving.stop()
    serving.start()
    main([*asked, "--resume"])
    assert rows(out / "round-1" / "candidates.jsonl")[: len(kept)] == kept
    main([*line(model_folder, prompts, tmp_path / "whole", url), "--refresh-command",
          "true {folder}", "--rounds", "1"])  # fmt: skip
    cut, whole = (manifests(tmp_path / n)[1]["files"] for n in ("run", "whole"))
    assert cut["candidates.jsonl"] == whole["candidates.jsonl"]
    assert cut["held_out.jsonl"] == whole["held_out.jsonl"]


def test_a_command_that_fails_and_one_without_a_folder_are_said(
    serving, model_folder, prompts, tmp_path, capsys
):
    url = serving.start()
    for command, said in (
        ("echo no such model >&2; exit 3 # {folder}", "ended with 3: no such model"),
        ("true", "refresh_command must hold {folder}"),
    ):
        with pytest.raises(SystemExit):
            main([*line(model_folder, prompts, tmp_path / "run", url), "--overwrite",
                  "--refresh-command", command])  # fmt: skip
        assert said in capsys.readouterr().err


def test_what_a_refresh_leaves_running_is_not_waited_for(model_folder, tmp_path):
    """A server that a command starts holds its output open as long as it lives."""
    left = tmp_path / "pid"
    command = f"sleep 60 & echo $! > {left}; echo started {{folder}}"
    serving, began = ServingOptions("http://localhost:1", refresh_command=command), time.monotonic()
    try:
        refresh(serving, ModelOptions(str(model_folder)))
        assert time.monotonic() - began < 30
    finally:
        os.kill(int(left.read_text()), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("curl"), reason="the documented script calls curl")
def test_the_documented_script_exchanges_the_process(
    serving, model_folder, prompts, tmp_path, monkeypatch
):
    """The page's `reload.sh`, with another server under vLLM's name."""
    url = serving.start()
    serving.stop()  # its port is free
    page = Path("docs/online.md").read_text(encoding="utf-8")
    script = re.search(r"For \*\*vLLM.*?```\n(.*?)```", page, re.DOTALL)[1]
    place = tmp_path / "bin"
    place.mkdir()
    (place / "reload.sh").write_text(script.replace("8000", str(serving.port)))
    (place / "vllm").write_text(
        f"#!/bin/sh\ncd {Path.cwd()} && PORT={serving.port} exec {sys.executable}"
        f' -m tests.serving_folder {tmp_path / "port"} "$2"\n'
    )
    (place / "vllm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    refresh = f"cd {place} && sh reload.sh {{folder}}"
    try:
        main(line(model_folder, prompts, tmp_path / "run", url, "--refresh-command", refresh))
        proofs = [read(tmp_path / "run" / f"round-{n}" / "proof.json") for n in (1, 2)]
        assert [proof["is_fresh"] for proof in proofs] == [True, True]
    finally:
        os.kill(int((place / "vllm.pid").read_text()), signal.SIGKILL)


def test_an_answer_without_a_token_proves_nothing_and_spoils_nothing(model_folder, tmp_path):
    """It has no log-probabilities; a server that never reports any is another matter."""
    policy = ModelOptions(str(model_folder), dtype="fp32")
    prompts = [Group((Turn("user", "hello"),), ()), Group((Turn("user", "what?"),), ())]
    said = Candidate((Turn("assistant", "x"),), facts={"n_tokens": 1})
    known = {
        group.prompt[0].content: value
        for group in prompts
        if (value := _known(load(policy, trainable=False), [replace(group, candidates=(said,))])[0])
    }
    assert len(known) == 2

    def answer(body, number):
        choice = {"message": {"content": ""}, "finish_reason": "stop"}
        if number > empty:
            own = known[body["messages"][0]["content"]]
            choice = {"message": {"content": "x"}, "finish_reason": "length",
                      "logprobs": {"content": [{"token": "x", "logprob": own}]}}  # fmt: skip
        return 200, {"choices": [choice]}

    how = {"prompts": prompts, "policies": [policy], "tolerance": 0.1, "seed": 0}
    with serving_by(answer) as (url, _):
        empty = 1
        found = prove(tmp_path, Server(url), **how)
    assert found.answers == 15
    assert found.off < 1e-4
    with serving_by(answer) as (url, _):
        empty = 99
        with pytest.raises(ValueError, match="must report log-probabilities"):
            prove(tmp_path, Server(url), **how)


def proof(shift, noise, stale, *, seed=0, n=16, tolerance=0.1):
    """What is found where new and last weights differ by `shift`, and a server by its own noise."""
    draw = torch.Generator().manual_seed(seed)
    last = shift * torch.randn(n, generator=draw)
    own = noise * torch.randn(n, generator=draw)
    return _proof(own + stale * last, last, tolerance)


def test_a_stale_server_is_known_below_the_tolerance_too_and_rounding_is_no_alarm():
    """Weights that moved by twice the server's own noise tell; weights that did not, do not."""
    known = [proof(0.05, 0.02, stale=True, seed=s).is_fresh for s in range(200)]
    alarms = [proof(0.05, 0.05, stale=False, seed=s).is_fresh for s in range(200)]
    assert sum(known) <= 10  # missed
    assert alarms.count(False) <= 4
    assert not proof(0.0, 0.3, stale=False).is_fresh
    assert proof(0.0, 0.01, stale=False).is_fresh


def test_a_proof_is_kept_as_numbers():
    found = proof(0.1, 0.001, stale=False)
    assert isinstance(found, Proof)
    assert found.off < 0.002
    assert found.off_last > 0.03
    assert json.dumps(vars(found))
