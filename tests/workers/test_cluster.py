"""A real Ray cluster, started here: it does what processes do, whoever is killed on the way."""

import json
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest

from melior.options import WorkerOptions
from melior.workers.cluster import _share
from melior.workers.deal import dealt
from melior.workers.work import chunked
from tests.workers.test_processes import until
from tests.workers.works import Doubling, numbered

ROOT = Path(__file__).parents[2]


def told(name, *given):
    """Run one of the functions below in a process of its own, since Ray lives as long as one."""
    code = f"from tests.workers.test_cluster import {name}; {name}(*{[*map(str, given)]})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def doubled(folder, kinds, address="local"):
    chunks, found = chunked(numbered(kinds), 3), []
    options = WorkerOptions(processes=2, cluster=address)
    with dealt(options, partial(Doubling, folder), chunks, device="cpu") as deal:
        try:
            found.extend(group.facts["twice"] for group in deal.groups())
        except Exception as error:  # the test looks at it
            return found, f"{type(error).__name__}: {error}"
        return found, deal.costs()["numbers"]


def happens(folder, *kinds):
    print(json.dumps(doubled(Path(folder), kinds)))


def machine_gone(folder):
    """Two machines of one core each, as Ray sees it; one of them goes while both are at work."""
    from ray.cluster_utils import Cluster

    folder, results = Path(folder), []
    machines = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **SMALL})
    other = machines.add_node(num_cpus=1, **SMALL)
    kinds = [*["meets 2"] * 6, "waits", "fine", "fine", "waits", "fine"]
    run = threading.Thread(target=lambda: results.append(doubled(folder, kinds, machines.address)))
    run.start()
    until(lambda: (folder / "mark6").exists() and (folder / "mark9").exists())
    machines.remove_node(other, allow_graceful=False)
    (folder / "go on").touch()
    run.join(200)
    machines.shutdown()
    print(json.dumps(results[0]))


SMALL = {"object_store_memory": 10**8}


def test_who_is_killed_on_a_cluster_is_replaced_and_its_chunk_done_by_another(tmp_path):
    found, cost = told("happens", tmp_path, "meets 2", "kills once", "fine", "fine", "fine")
    assert (found, cost) == ([0, 2, 4, 6, 8], 5)


@pytest.mark.slow
def test_whatever_else_happens_on_a_cluster_is_what_happens_in_processes(tmp_path):
    kinds = ["lacks memory once", "fine", "fine", "fine", "kills", "fine", "fine"]
    found, error = told("happens", tmp_path, *kinds)
    assert found == [0, 2, 4]
    assert error.startswith("ChildProcessError: rows 4 to 6, from file:4 on: lost 3 workers")


@pytest.mark.slow
def test_an_error_on_a_cluster_is_heard(tmp_path):
    found, error = told("happens", tmp_path, *["fine"] * 4, "is wrong", "fine")
    assert (found, error) == ([0, 2, 4, 6], "ValueError: file:5: needs sense; found none")


@pytest.mark.slow
def test_who_is_left_does_the_work_of_a_machine_that_is_gone(tmp_path):
    assert told("machine_gone", tmp_path)[0] == [2 * i for i in range(11)]


def test_without_ray_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"needs Ray, .* run pip install 'melior\[cluster\]'"):
        doubled(Path(), ["fine"])


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "somewhere", "a:b"])
def test_an_address_where_nothing_answers_is_known_before_ray_is_asked(address):
    told = f"--cluster must be the address of a Ray cluster that runs, .*; found {address}: "
    with pytest.raises(ConnectionError, match=told):
        doubled(Path(), ["fine"], address)
    assert "ray" not in sys.modules


@pytest.mark.parametrize(
    ("cpus", "gpus", "n", "expected"),
    [
        ([8.0, 8.0], 0, 2, {"num_cpus": 8}),
        ([8.0, 8.0], 0, 1, {"num_cpus": 8}),  # no machine has 16
        ([8.0, 8.0], 0, 5, {"num_cpus": 2}),  # of 3 there is room for four
        ([64.0, 2.0], 0, 2, {"num_cpus": 32}),
        ([16.0, 4.0, 4.0], 0, 3, {"num_cpus": 5}),
        ([2.0], 0, 9, {"num_cpus": 1}),
        ([64.0], 8, 8, {"num_gpus": 1, "num_cpus": 1}),
        ([64.0], 8, 3, {"num_gpus": 1, "num_cpus": 1}),
        ([64.0], 2, 3, {"num_gpus": 0.5, "num_cpus": 1}),
    ],
)
def test_actors_ask_for_what_some_machine_has(cpus, gpus, n, expected):
    assert _share(cpus, gpus, n) == expected
