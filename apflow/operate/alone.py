"""One process at a time in a folder."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path

from apflow.errors import BadRequest


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Wait until no other process changes what is in a folder, which is made where it is missing.

    Raises
    ------
    BadRequest
        It cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise BadRequest(f"folder {folder}: {error.strerror}; accepted: one that can be written to") from error
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
