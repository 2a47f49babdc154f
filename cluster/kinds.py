"""Clusters of every kind: local, SSH, SLURM, HTCondor, Kubernetes, or a scheduler that runs already.

All have compute workers (one process, one thread, resource ``compute``) and
gather workers (resource ``gather``), which the runner tells apart by their
resources; the scheduler is in this process, except in Kubernetes and where it
runs already. The settings are those of `dask.yaml`, also in workers elsewhere.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from logging import WARNING
from pathlib import Path
from typing import Any, NamedTuple

import dask
from distributed import Scheduler, SpecCluster
from distributed.core import Status
from distributed.security import Security

from apflow.errors import ServiceError

from . import tls
from .lost import lost
from .request import ClusterRequest
from .settings import settings
from .workers import require_commands, worker_spec

_LOOPBACK = "127.0.0.1"
#: What the scheduler of a night loads first, the pages of apflow on its dashboard; and where these find the night.
PRELOAD, NIGHT_KEY = "apflow.operate.dashboard.preload", "apflow.night-folder"
#: Workers that are lost for good are asked for again this often: their job's time was over, or their node died.
_REFILL_S = 5.0


class Running(NamedTuple):
    """A cluster that is coming up: its workers arrive when they can.

    `files` are the paths of TLS' ``ca_file``, ``cert`` and ``key``, by which
    other processes may make the same `security`; empty without TLS.
    """

    address: str
    security: Security | None
    dashboard: str
    files: dict[str, str]


@contextlib.contextmanager
def start_cluster(request: ClusterRequest, night_folder: Path | None = None) -> Iterator[Running]:
    """Start what is asked for; it ends with the block.

    Parameters
    ----------
    request : `ClusterRequest`
    night_folder : `pathlib.Path`, optional
        The night that the dashboard shows; without it, the dashboard has
        Dask's own pages only.

    Raises
    ------
    BadRequest
        An option is not acceptable.
    ServiceError
        The batch system, a host or the scheduler could not be reached, or a
        package that the kind needs is not installed.
    """
    if request.exists_already:
        from .existing import existing

        yield existing(request)
        return
    if request.kind == "kubernetes":
        from .kubernetes import kubernetes_cluster

        with dask.config.set(settings()), kubernetes_cluster(request, night_folder) as (address, dashboard):
            yield Running(address, None, dashboard, {})
        return
    files = tls.night_certificate(request.place / "tls") if request.tls else {}
    security = tls.security_of(files) if files else None
    wanted = settings() | tls.as_settings(files)
    if night_folder is not None:
        wanted[NIGHT_KEY] = str(night_folder.absolute())
    # Held while the cluster lives: a worker that is restarted takes its settings from here.
    with dask.config.set(wanted), _started(request, security, night_folder) as cluster:
        assert isinstance(cluster.scheduler, Scheduler)
        port = cluster.scheduler.services["dashboard"].port
        host = request.dashboard_address.rpartition(":")[0]
        link = f"http://{_LOOPBACK if host in ('0.0.0.0', '[::]') else host}:{port}/status"
        yield Running(cluster.scheduler_address, security, link, files)


@contextlib.contextmanager
def _started(request: ClusterRequest, security: Security | None, night_folder: Path | None) -> Iterator[SpecCluster]:
    require_commands(request.kind)
    specs = worker_spec(request, security)
    try:
        cluster = SpecCluster(
            workers=specs,
            scheduler=_scheduler(request, security, night_folder),
            security=security,
            silence_logs=WARNING,
            name="apflow",
        )
    except Exception as error:  # Dask raises a bare one for a worker on another host that does not start
        raise ServiceError(f"the cluster {request.kind} did not start: {_root(error)}") from error
    with cluster:
        assert cluster.loop is not None
        cluster.loop.add_callback(_refill, cluster, request.kind, len(specs))
        yield cluster


async def _refill(cluster: SpecCluster, kind: str, n: int) -> None:
    """From now on start workers anew that are lost; a number that is fixed, since a night's work is known."""
    assert cluster.loop is not None
    try:
        for name in await lost(cluster, kind):
            if (worker := cluster.workers.pop(name, None)) is not None:
                await worker.close()
    finally:  # what goes wrong once is in the log, and tried again
        if cluster.status is Status.running:
            cluster.scale(n)
            cluster.loop.call_later(_REFILL_S, _refill, cluster, kind, n)


def _scheduler(request: ClusterRequest, security: Security | None, night_folder: Path | None) -> dict[str, Any]:
    options: dict[str, Any] = {
        "port": 0,
        "protocol": "tls://" if security else "tcp://",
        "security": security,
        "dashboard_address": request.dashboard_address,
        "preload": [] if night_folder is None else [PRELOAD],
    }
    if host := request.host or (_LOOPBACK if request.kind == "local" else ""):
        options["host"] = host
    return {"cls": Scheduler, "options": options}


def _root(error: BaseException) -> str:
    """The first cause, in one line."""
    # Dask's clean-up asserts that jobs are closed, which those that were never submitted are not.
    while cause := error.__cause__ or (error.__context__ if isinstance(error, AssertionError) else None):
        error = cause
    return " ".join(str(error).split()) or type(error).__name__
