"""Copies of input files on a local disk or in memory: whoever reads one from the main store leaves it here.

The folder is the root of the repository's fast Datastore (`apflow.io.butler.fast`).
Beside each copy lies a record of the file it was made from; a copy that is not
what its record says is none.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import threading
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from apflow.errors import ServiceError
from apflow.io.atomic import atomic

_CHUNK = 4 << 20
_RECORD = ".check"
#: After a failed copy none is tried for this long, seconds: a full disk is full for all.
_REST_S = 30.0
#: The folder is measured anew each time this part of the limit was written by this process.
_MEASURE = 0.005


@dataclass(frozen=True)
class Stamp:
    """By what a file is known to be the same as before."""

    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: str | Path) -> Self | None:
        """That of a file; None where it cannot be reached."""
        try:
            status = os.stat(path)
        except OSError:
            return None
        return cls(status.st_size, status.st_mtime_ns)


class State(enum.Enum):
    """What there is of a copy."""

    GOOD = "good"
    ABSENT = "absent"
    DAMAGED = "damaged"


class FastStore:
    """The copies that one process makes and reads; thread-safe.

    Parameters
    ----------
    limit_bytes : `float`
        The oldest copies, by when they were last read, make room for new ones
        beyond this. Each process that writes may exceed it by half a percent.
    """

    def __init__(self, limit_bytes: float) -> None:
        self.limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._checked: dict[str, Stamp] = {}  # copies whose checksum was right
        self._unmeasured: dict[Path, float] = {}  # bytes written since a root was measured
        self._rest_until = 0.0

    def state(self, copy: str, original: Stamp | None) -> State:
        """Whether there is a copy of the file with that stamp (None: of whatever it was made from)."""
        try:
            status = os.stat(copy)
        except OSError:
            return State.ABSENT
        here = Stamp(status.st_size, status.st_mtime_ns)
        try:
            size, mtime_ns, checksum = json.loads(Path(copy + _RECORD).read_bytes())
            if original not in (None, Stamp(size, mtime_ns)):
                return State.ABSENT  # the file was written anew since
            if here.size != size or (self._checked.get(copy) != here and _checksum(copy) != checksum):
                return State.DAMAGED
            self._checked[copy] = here
        except (OSError, ValueError, TypeError):
            return State.DAMAGED
        with contextlib.suppress(OSError):  # a store that cannot be written to can be read
            os.utime(copy, ns=(time.time_ns(), here.mtime_ns))
        return State.GOOD

    def keep(self, path: str, copy: str) -> bool:
        """Copy a file, so that it is there whole or not at all; gives whether the store works.

        A file that is larger than the limit is not kept, and with a limit of 0 none.
        """
        original, target = Stamp.of(path), Path(copy)
        if original is None or original.size > self.limit_bytes:
            return True
        with self._lock:
            if time.monotonic() < self._rest_until:
                return False
            try:
                self._make_room(target.parent.parent, original.size)
                checksum = 0
                with open(path, "rb") as source, atomic(target) as file:
                    while chunk := source.read(_CHUNK):
                        checksum = zlib.crc32(chunk, checksum)
                        file.write(chunk)
                with atomic(copy + _RECORD) as file:
                    file.write(json.dumps([original.size, original.mtime_ns, checksum]).encode())
            except (OSError, ServiceError):
                self._rest_until = time.monotonic() + _REST_S
                return False
        return True

    def _make_room(self, root: Path, size: int) -> None:
        written = self._unmeasured.get(root, float("inf")) + size
        if written > _MEASURE * self.limit_bytes:
            copies = [path for path in root.glob("*/*") if path.suffix != _RECORD]
            files = [(s.st_atime_ns, s.st_size, path) for path in copies if (s := _status(path)) is not None]
            excess = sum(of for _, of, _ in files) + size - self.limit_bytes
            for _, of, path in sorted(files):
                if excess <= 0:
                    break
                path.unlink(missing_ok=True)
                Path(f"{path}{_RECORD}").unlink(missing_ok=True)
                excess -= of
            written = float(size)
        self._unmeasured[root] = written


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except FileNotFoundError:  # another process made room
        return None


def _checksum(path: str) -> int:
    checksum = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            checksum = zlib.crc32(chunk, checksum)
    return checksum
