"""A cluster on this machine: compute workers ``ccd-0``, ``ccd-1``, ... and gather workers ``gather-0``, ..."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from logging import WARNING
from typing import Any

import dask
from distributed import Nanny, Scheduler, SpecCluster

from .settings import settings

_LOOPBACK = "127.0.0.1"


@contextlib.contextmanager
def local_cluster(
    n_workers: int,
    threads_per_worker: int = 1,
    memory_limit: str | int = 0,
    *,
    gather_workers: int = 1,
    dashboard: bool | int = False,
    warm_up: Sequence[str] = (),
) -> Iterator[SpecCluster]:
    """Start a cluster of separate processes; everything listens on loopback only.

    Parameters
    ----------
    n_workers : `int`
        Compute workers, one process each.
    threads_per_worker : `int`
        Steps that one compute worker runs at once.
    memory_limit : `str` or `int`
        Of one compute worker, as Dask spells it (``"4GiB"``); 0 for none. A
        worker beyond it is restarted.
    gather_workers : `int`
        Workers that run gather nodes only, one at a time.
    dashboard : `bool` or `int`
        Whether to serve the dashboard (it has no authentication), or its port.
    warm_up : sequence of `str`
        Modules that workers import while they start, so that the first visit
        does not pay for it.
    """
    spec: dict[str, Any] = {}
    for i in range(n_workers):
        options = _options(warm_up, nthreads=threads_per_worker, memory_limit=memory_limit, resources={"compute": 1})
        spec[f"ccd-{i}"] = {"cls": Nanny, "options": options}
    for i in range(gather_workers):
        # One gather node at a time; the other thread takes what the chains deliver.
        options = _options(warm_up, nthreads=2, memory_limit=0, resources={"gather": 1})
        spec[f"gather-{i}"] = {"cls": Nanny, "options": options}
    port = dashboard if dashboard is not True else 0
    scheduler = {
        "cls": Scheduler,
        "options": {
            "host": _LOOPBACK,
            "port": 0,
            "dashboard": bool(dashboard),
            "dashboard_address": f"{_LOOPBACK}:{int(port)}",
        },
    }
    # Held while the cluster lives: a worker that is restarted takes its settings from here.
    with dask.config.set(settings()), SpecCluster(workers=spec, scheduler=scheduler, silence_logs=WARNING) as cluster:
        yield cluster


def _options(warm_up: Sequence[str], **options: Any) -> dict[str, Any]:
    return {
        "host": _LOOPBACK,
        "dashboard": False,
        "silence_logs": WARNING,
        "preload": ["apflow.cluster.preload", *warm_up],
        **options,
    }
