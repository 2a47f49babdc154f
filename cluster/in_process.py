"""A focal plane of workers on a small machine: many Dask workers in few processes, over TCP.

For tests and measurements of orchestration at full width; the workers of one
process share its interpreter, so that steps which compute hold one another up.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import signal
from collections.abc import Iterator, Mapping, Sequence
from logging import WARNING
from typing import Any

import dask
from distributed import Scheduler, SpecCluster, Worker

from .settings import settings

_LOOPBACK = "127.0.0.1"
_AT_ONCE = 16  # workers that start together
#: What each worker does for itself, on its own core, all of them would do on these few: in a process of 63 workers the
#: readings of /proc, twice a second by each, took two thirds of the event loop.
_FEW_CORES = {"distributed.admin.system-monitor.interval": "60s", "distributed.worker.profile.enabled": False}


@contextlib.contextmanager
def in_process_cluster(n_workers: int = 189, processes: int = 3, *, gather_workers: int = 1) -> Iterator[SpecCluster]:
    """Start `n_workers` compute workers of one thread in `processes` processes, and gather workers in another.

    Yields the cluster when all workers are there; nothing is spilled or
    restarted, there is no dashboard, and workers do not watch their own
    process: which goes for all of them.
    """
    names = [f"ccd-{i}" for i in range(n_workers)]
    compute: Mapping[str, float] = {"compute": 1}
    hosts: list[tuple[Sequence[str], Mapping[str, float]]] = [(names[i::processes], compute) for i in range(processes)]
    hosts.append(([f"gather-{i}" for i in range(gather_workers)], {"gather": 1}))
    scheduler = {"cls": Scheduler, "options": {"host": _LOOPBACK, "port": 0, "dashboard": False}}
    context = multiprocessing.get_context("spawn")
    with (
        dask.config.set(settings() | _FEW_CORES),
        SpecCluster(workers={}, scheduler=scheduler, silence_logs=WARNING) as cluster,
    ):
        address = cluster.scheduler_address
        started = [context.Process(target=_host, args=(address, *host), daemon=True) for host in hosts if host[0]]
        for process in started:
            process.start()
        try:
            cluster.sync(_all_there, cluster.scheduler, n_workers + gather_workers, started)
            yield cluster
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.join(10.0)
                if process.is_alive():
                    process.kill()


async def _all_there(scheduler: Scheduler, n: int, processes: Sequence[Any]) -> None:
    while len(scheduler.workers) < n:
        if not all(process.is_alive() for process in processes):
            raise RuntimeError("a process of workers ended while it started")
        await asyncio.sleep(0.05)


def _host(scheduler: str, names: Sequence[str], resources: Mapping[str, float]) -> None:
    """Main function of a process: its workers, until it is terminated."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to handle
    with dask.config.set(settings() | _FEW_CORES):
        asyncio.run(_serve(scheduler, names, resources))


async def _serve(scheduler: str, names: Sequence[str], resources: Mapping[str, float]) -> None:
    options: dict[str, Any] = {
        "nthreads": 2 if "gather" in resources else 1,
        "memory_limit": 0,
        "dashboard": False,
        "host": _LOOPBACK,
    }
    workers = [
        Worker(scheduler, name=name, resources=dict(resources), silence_logs=WARNING, **options) for name in names
    ]
    for i in range(0, len(workers), _AT_ONCE):
        await asyncio.gather(*workers[i : i + _AT_ONCE])
    await asyncio.gather(*(worker.finished() for worker in workers))
