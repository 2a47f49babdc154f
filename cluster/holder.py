"""The process that holds a night's cluster: ``python -m apflow.cluster.holder NIGHT_FOLDER``.

Reads `REQUEST` in the folder, starts the cluster, and writes `CLUSTER` when
its workers are coming up: address, dashboard, the paths of TLS and its own
pid. Ends, with all workers, at SIGTERM, at SIGINT and when its parent is gone.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from apflow.errors import ApflowError
from apflow.logs import logging_of

from .kinds import Running, start_cluster
from .request import ClusterRequest

#: Files in the folder of a night.
REQUEST = "cluster-request.json"
CLUSTER = "cluster.json"
#: How often it is looked whether the parent lives.
_LOOK_S = 0.5


def hold(folder: Path) -> None:
    """Hold the cluster that `folder` asks for, until SIGTERM, SIGINT or the end of the parent."""
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    parent = os.getppid()
    request = ClusterRequest.load(folder / REQUEST)
    told = folder / CLUSTER
    with start_cluster(request, folder) as running:
        _tell(told, request, running)
        try:
            while not ended.wait(_LOOK_S) and os.getppid() == parent:
                pass
        finally:
            told.unlink(missing_ok=True)


def _tell(path: Path, request: ClusterRequest, running: Running) -> None:
    found = {
        "address": running.address,
        "dashboard": running.dashboard,
        "tls": running.files,
        "pid": os.getpid(),
        "kind": request.kind,
        "n_workers": request.n_workers,
        "gather_workers": request.gather_workers,
        "started_unix": time.time(),
    }
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(found, indent=1) + "\n")
    new.replace(path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m apflow.cluster.holder NIGHT_FOLDER")
    try:
        with logging_of("holder"):
            hold(Path(sys.argv[1]))
    except ApflowError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        os._exit(1)  # Dask's handler at exit would wait 10 s for a cluster that could not start
