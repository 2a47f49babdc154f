"""Workers by SSH, on a real server of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import asyncssh
import psutil
import pytest
from distributed import Client

from apflow.cluster.request import ClusterRequest
from apflow.cluster.workers import worker_spec
from apflow.operate.night.connect import connect
from tests.cluster.holding import alive, holder, refused, until


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ClusterRequest]:
    """A server, as one compute and one gather worker on it are asked for."""
    process = subprocess.Popen([sys.executable, "-m", "tests.cluster.ssh_server", str(tmp_path)])
    try:
        assert until((tmp_path / "port").exists, 20)
        connect_options = {
            "port": int((tmp_path / "port").read_text()),
            "username": "someone",
            "client_keys": [str(tmp_path / "user")],
            "known_hosts": str(tmp_path / "known_hosts"),
        }
        yield ClusterRequest(
            "ssh",
            1,
            "1GiB",
            tls=True,
            host="127.0.0.1",
            folder=str(tmp_path),
            options={"hosts": ["127.0.0.1"], "connect": connect_options},
        )
    finally:
        process.kill()
        process.wait()


def pids_of(client: Client, role: str) -> list[int]:
    """Processes of a worker: itself and the nanny that minds it."""
    future = client.submit(lambda: [os.getpid(), os.getppid()], resources={role: 1}, pure=False)
    return list(future.result(timeout=60))


def test_workers_by_ssh(server: ClusterRequest, tmp_path: Path):
    """Both roles, with TLS; who loses its nanny too comes back, and none stays."""
    with holder(tmp_path, server):
        with connect(tmp_path) as client:
            first = {role: pids_of(client, role) for role in ("compute", "gather")}
            for pid in first["compute"]:
                os.kill(pid, signal.SIGKILL)
            again = pids_of(client, "compute")
            assert not set(again) & {*first["compute"], *first["gather"]}
        processes = [psutil.Process(pid) for pid in (*first["gather"], *again)]
    assert until(lambda: not alive(processes), 10)


def test_a_stranger_is_not_let_in(server: ClusterRequest, tmp_path: Path):
    asyncssh.generate_private_key("ssh-ed25519").write_private_key(tmp_path / "other")
    other = server.options["connect"] | {"client_keys": [str(tmp_path / "other")]}
    told = refused(tmp_path, ClusterRequest("ssh", options=dict(server.options) | {"connect": other}))
    assert told.startswith("error: the cluster ssh did not start: Permission denied")


def test_hosts_take_turns():
    asked = ClusterRequest("ssh", 3, gather_workers=1, options={"hosts": ["a", "b"], "connect": {"port": 22}})
    specs = worker_spec(asked, None)
    assert [spec["options"]["address"] for spec in specs.values()] == ["a", "b", "a", "b"]
    for name, spec in specs.items():
        options = spec["options"]
        assert options["connect_options"]["port"] == 22
        assert options["kwargs"]["name"] == name
        assert options["kwargs"]["resources"] == {"gather" if name == "gather-0" else "compute": 1}
