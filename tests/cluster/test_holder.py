"""The cluster of a night on this machine, held by a process of its own."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import dask
import psutil
import pytest
from distributed import Client

from apflow.cluster.client import TidyClient
from apflow.cluster.request import ClusterRequest
from apflow.errors import ServiceError
from apflow.operate.night.connect import connect
from tests.cluster.holding import alive, holder, refused, until, words

SMALL = {"n_workers": 1, "memory_limit": "1GiB"}


def ran_on(client: Client, role: str) -> int:
    """The process that a task with this role ran in."""
    future = client.submit(os.getpid, resources={role: 1}, pure=False)
    return int(future.result(timeout=30))


@pytest.fixture(scope="module", params=[False, True], ids=["tcp", "tls"])
def held(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("held")
    with holder(folder, ClusterRequest(**SMALL, folder=str(folder), tls=request.param)), connect(folder):
        yield folder


def test_each_role_runs_in_its_own_worker(held: Path):
    told = json.loads((held / "cluster.json").read_text())
    with connect(held) as client:
        pids = [ran_on(client, "compute"), ran_on(client, "gather")]
    assert len(set(pids)) == 2
    assert {psutil.Process(pid).ppid() for pid in pids} == {told["pid"]}
    assert told["address"].startswith("tls://" if told["tls"] else "tcp://")
    assert told["dashboard"].startswith("http://127.0.0.1:")
    with urllib.request.urlopen(told["dashboard"]) as page:
        assert page.status == 200


def test_the_dashboard_shows_this_night(held: Path):
    with connect(held) as client:
        assert client.run_on_scheduler(dask.config.get, "apflow.night-folder") == str(held)
    told = json.loads((held / "cluster.json").read_text())
    with urllib.request.urlopen(told["dashboard"].replace("status", "apflow")) as page:
        assert page.status == 200


def test_only_loopback_is_listened_to(held: Path):
    holds = psutil.Process(json.loads((held / "cluster.json").read_text())["pid"])
    sockets = [one for p in (holds, *holds.children(recursive=True)) for one in p.net_connections()]
    assert {one.laddr.ip for one in sockets if one.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def test_a_killed_worker_comes_back(held: Path):
    with connect(held) as client:
        before = ran_on(client, "compute")
        os.kill(before, signal.SIGKILL)
        assert ran_on(client, "compute") != before


def test_more_workers_than_there_are_is_told(held: Path):
    with (
        pytest.raises(ServiceError, match=r"too few workers at .* within 0.1 s: 1 compute \(needed: 9\)"),
        connect(held, deadline_s=0.1, needed={"compute": 9}),
    ):
        pass


def test_tls_refuses_who_has_no_certificate(held: Path):
    told = json.loads((held / "cluster.json").read_text())
    if not told["tls"]:
        with TidyClient(told["address"], None, 5.0) as client:
            assert client.status == "running"
        return
    assert stat.S_IMODE(os.stat(told["tls"]["key"]).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(held / "tls").st_mode) == 0o700
    for address in (told["address"], told["address"].replace("tls://", "tcp://")):
        with pytest.raises((OSError, TypeError)):
            TidyClient(address, None, 1.0)


def test_sigterm_ends_all_of_it_and_the_next_keeps_the_certificate(tmp_path: Path):
    asked = ClusterRequest(**SMALL, folder=str(tmp_path), tls=True)
    certificates = set()
    for _ in range(2):
        with holder(tmp_path, asked) as process:
            with connect(tmp_path):
                workers = psutil.Process(process.pid).children(recursive=True)
            certificates.add((tmp_path / "tls" / "certificate.pem").read_text())
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
        assert len(workers) >= 2
        assert until(lambda all_of_it=workers: not alive(all_of_it), 10)
        assert not (tmp_path / "cluster.json").exists()
    assert len(certificates) == 1


@pytest.mark.parametrize("who", ["parent", "holder"])
def test_nothing_outlives_a_kill(tmp_path: Path, who: str):
    """Of the supervisor, which the holder sees; or of the holder, which its workers see."""
    ClusterRequest(**SMALL, folder=str(tmp_path)).save(tmp_path / "cluster-request.json")
    code = f"import subprocess, time; subprocess.Popen({words(tmp_path)!r}); time.sleep(600)"
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        with connect(tmp_path):
            processes = psutil.Process(parent.pid).children(recursive=True)
        told = json.loads((tmp_path / "cluster.json").read_text())
        psutil.Process(parent.pid if who == "parent" else told["pid"]).kill()
        assert len(processes) >= 3
        assert until(lambda: not alive(processes), 30), alive(processes)
        assert (tmp_path / "cluster.json").exists() == (who == "holder")
    finally:
        parent.kill()
        parent.wait()


def test_a_cluster_that_is_gone(tmp_path: Path):
    with (
        pytest.raises(ServiceError, match=r"no cluster within 0.1 s: there is no .*cluster.json"),
        connect(tmp_path, deadline_s=0.1),
    ):
        pass
    (tmp_path / "cluster.json").write_text(json.dumps({"address": "tcp://127.0.0.1:1", "tls": {}}))
    with (
        pytest.raises(ServiceError, match=r"no cluster within 0.1 s: scheduler tcp://127.0.0.1:1 of"),
        connect(tmp_path, deadline_s=0.1),
    ):
        pass


def test_what_cannot_start_is_told_in_one_line(tmp_path: Path):
    done = subprocess.run(words(tmp_path), capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "cluster-request.json is no request" in done.stderr
    told = refused(tmp_path, ClusterRequest("ssh", options={"hosts": ["127.0.0.1"], "connect": {"port": 1}}))
    assert told.startswith("error: the cluster ssh did not start: ") and "127.0.0.1" in told
    assert told.count("\n") == 1
    nowhere = os.environ | {"KUBECONFIG": str(tmp_path / "none"), "HOME": str(tmp_path)}
    told = refused(tmp_path, ClusterRequest("kubernetes", options={"image": "apflow"}), nowhere)
    assert told.startswith("error: the cluster kubernetes did not start: ")
    assert told.count("\n") == 1
    told = refused(tmp_path, ClusterRequest("htcondor"))
    assert told.startswith("error: cluster htcondor needs the command condor_submit, which is not on the PATH")
