"""What workers of a local cluster load first."""

from __future__ import annotations

import logging
import signal
from typing import Any


def dask_setup(worker: Any) -> None:
    """Leave Ctrl-C to the driver: a terminal sends it to all processes, and the driver ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # One warning for every step that still waits when a cluster is closed.
    logging.getLogger("distributed.worker.state_machine").setLevel(logging.ERROR)
