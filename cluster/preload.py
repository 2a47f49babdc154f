"""What workers load first."""

from __future__ import annotations

import logging
import signal
from typing import Any

from apflow.logs import start_logging, worker_process


def dask_setup(worker: Any) -> None:
    """Leave Ctrl-C to the driver: a terminal sends it to all processes, and the driver ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One warning for every step that still waits when a cluster is closed.
    logging.getLogger("distributed.worker.state_machine").setLevel(logging.ERROR)
    start_logging(worker_process(str(worker.name)))
