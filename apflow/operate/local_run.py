"""A cluster on this machine and a runner on it, as `apflow replay` and `apflow listen` use them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence

from distributed import Client

from apflow.cluster.local import local_cluster
from apflow.config import Config
from apflow.errors import ServiceError
from apflow.io.sasquatch import flush
from apflow.model.camera import Camera
from apflow.operate.interrupts import deaf_children
from apflow.run.on_dask import DaskRunner

#: Modules that workers import while they start.
_WARM_UP = ("apflow.graphs.alert_production",)
#: The pixel chain of a full CCD needs less; beyond it a worker is restarted.
_WORKER_MEMORY = "6GiB"
#: What the metrics of a run may take to be sent at its end, seconds; the next run sends what is left.
_LAST_METRICS_S = 10.0
#: Cores that this process may use, and the most workers that make sense on them.
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
MAX_WORKERS = max(16, 4 * CORES)


@contextlib.contextmanager
def workers_here(workers: int, warm_up: Sequence[str] = _WARM_UP) -> Iterator[Client]:
    """A local cluster whose processes leave Ctrl-C to this one, and import `warm_up` while they start."""
    with contextlib.ExitStack() as stack:
        with deaf_children():
            cluster = stack.enter_context(
                local_cluster(workers, memory_limit=_WORKER_MEMORY, dashboard=True, warm_up=warm_up)
            )
            client = stack.enter_context(Client(cluster, set_as_default=False))
        yield client


@contextlib.contextmanager
def runner_of(
    client: Client,
    camera: Camera,
    config: Config,
    deadline_s: float,
    on_event: Callable[[object], None] | None = None,
    chains_per_worker: int = 2,
) -> Iterator[DaskRunner]:
    """A runner whose batches are the camera's rafts; what was measured is sent at its end, before the workers go."""
    with DaskRunner(
        client,
        group_of=lambda d: camera.detector(d).raft,
        label_of=lambda d: camera.detector(d).name,
        gather_after_s=config.timing.gather_after_s,
        rerun_after_s=config.fleet.rerun_after_s,
        fuse=config.fleet.fuse,
        deadline_s=deadline_s,
        on_event=on_event,
        chains_per_worker=chains_per_worker,
    ) as runner:
        yield runner
        with contextlib.suppress(ServiceError):  # told already, by the thread that sends
            flush(config, _LAST_METRICS_S)
