"""The end of a night in good order."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from apflow.errors import BadRequest, ServiceError
from apflow.operate.night.folder import NIGHT, STOP, is_supervised, read_json

_PAUSE_S = 0.2
#: For processes to end once the work has, or was given up.
_END_S = 120.0


def end_night(folder: Path, timeout_s: float, tell: Callable[[str], None]) -> bool:
    """Have a night drain and end; whether all that was under way came to its end.

    Parameters
    ----------
    folder : `pathlib.Path`
    timeout_s : `float`
        After it the night is ended as by SIGTERM.
    tell : callable
        Called with a line for whoever watches.

    Raises
    ------
    BadRequest
        The night does not run.
    ServiceError
        Its processes do not end.
    """
    if not is_supervised(folder):
        raise BadRequest(f"night {folder.name} does not run; accepted: one that apflow night status shows as running")
    pid = read_json(folder / NIGHT)["pid"]
    (folder / STOP).touch()
    tell(f"night {folder.name} drains")
    if _ends(folder, timeout_s):
        return True
    os.kill(pid, signal.SIGTERM)
    if not _ends(folder, _END_S):
        raise ServiceError(f"night {folder.name} does not end (pid {pid})")
    return False


def _ends(folder: Path, timeout_s: float) -> bool:
    until = time.monotonic() + timeout_s
    while is_supervised(folder):
        if time.monotonic() > until:
            return False
        time.sleep(_PAUSE_S)
    return True
