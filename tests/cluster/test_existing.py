"""A scheduler that someone else runs."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from distributed import Client

from apflow.cluster.request import ClusterRequest
from apflow.operate.night.connect import connect
from tests.cluster.holding import holder, refused

DASK = (sys.executable, "-m", "dask")


@contextlib.contextmanager
def scheduler(folder: Path, *workers: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Dask's own commands: a scheduler and a worker for each of `workers`, its resources."""
    file = folder / "scheduler.json"
    where = ("--host", "127.0.0.1", "--dashboard-address", ":0", "--scheduler-file", str(file))
    started = [subprocess.Popen([*DASK, "scheduler", *where, "--port", "0"], env=environment)]
    for resources in workers:
        more = ("--no-nanny", "--nthreads", "1", *(("--resources", resources) if resources else ()))
        started.append(subprocess.Popen([*DASK, "worker", *where, *more]))
    try:
        with Client(scheduler_file=str(file), timeout=60, set_as_default=False) as client:
            if workers:
                client.wait_for_workers(len(workers), timeout=60)
            yield client.scheduler.address
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(30)


def test_one_whose_workers_have_no_roles_does_for_all(tmp_path: Path):
    with scheduler(tmp_path, "") as address, holder(tmp_path, ClusterRequest(address)), connect(tmp_path) as client:
        assert client.scheduler.address == address
        assert client.submit(os.getpid).result(timeout=30) != os.getpid()


def test_one_without_compute_workers(tmp_path: Path):
    with scheduler(tmp_path, "gather=1") as address:
        told = refused(tmp_path, ClusterRequest(address))
    assert told.startswith(f"error: scheduler {address} has 1 workers, all with the resource 'gather'; accepted: ")


@pytest.mark.filterwarnings("ignore::distributed.versions.VersionMismatchWarning")  # of this test's own client
def test_one_of_another_release(tmp_path: Path):
    (tmp_path / "cloudpickle-0.1.dist-info").mkdir()
    (tmp_path / "cloudpickle-0.1.dist-info" / "METADATA").write_text("Name: cloudpickle\nVersion: 0.1\n")
    with scheduler(tmp_path, environment=os.environ | {"PYTHONPATH": str(tmp_path)}) as address:
        told = refused(tmp_path, ClusterRequest(address))
    assert told.startswith(f"error: scheduler of {address} has cloudpickle 0.1; accepted: ")
    assert told.count("\n") == 1


def test_one_that_is_not_there(tmp_path: Path):
    told = refused(tmp_path, ClusterRequest("tcp://127.0.0.1:1"))
    assert told.startswith("error: scheduler tcp://127.0.0.1:1 could not be reached within 5 s")
    told = refused(tmp_path, ClusterRequest("tls://127.0.0.1:1", options={"ca_file": "a", "cert": "b", "key": "c"}))
    assert told == "error: TLS ca_file 'a' cannot be read; accepted: the path of a PEM file\n"
