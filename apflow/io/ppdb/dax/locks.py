"""Locks on patches of sky that two stores must not write at once, let go when their holder dies.

An Apdb offers none. Processes that share a DuckDB file are on one machine, so
theirs are locks on bytes of a file beside it; those of a PostgreSQL companion
are advisory locks of that server. Whoever wants several takes them in
ascending order, so that nobody waits for somebody who waits for him.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import time
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import hpgeom
import psycopg

from apflow.errors import ServiceError
from apflow.io.ppdb import guard
from apflow.io.ppdb.batch import Batch
from apflow.io.ppdb.postgres.connect import connect, display, errors
from apflow.io.ppdb.sky_index import distinct
from apflow.io.ppdb.turns import Key
from apflow.model.region import Region

#: HEALPix pixels of 14': a detector touches a few, so that those of one raft hold up no other.
_ORDER = 8
#: Numbers from here on are detector-visits; those below it are pixels.
_KEYS = 1 << 30
#: First number of PostgreSQL's two-number locks: the companion's own have one number and never meet them.
_CLASS = 0x64617861
_TRY_AGAIN_S = 0.005


class Busy(ServiceError):
    """Somebody else holds a lock."""


def numbers_of(batch: Batch) -> frozenset[int]:
    """What to lock for a batch: the cells of sky about its rows, and its detector-visits."""
    near = guard.cells_near(batch, range(len(batch.keys)), ("DiaSource", "DiaObject"))
    return frozenset(distinct(near >> 2 * (guard.NEAR_ORDER - _ORDER)).tolist()) | numbers_of_keys(batch.keys)


def numbers_of_keys(keys: Iterable[Key]) -> frozenset[int]:
    """Numbers of detector-visits; two that share one merely take turns."""
    return frozenset(_KEYS | zlib.crc32("/".join(map(str, key)).encode()) & (_KEYS - 1) for key in keys)


def numbers_about(region: Region) -> frozenset[int]:
    """Numbers of the cells of sky that hold every point of a region."""
    ra, dec = region.vertices.T
    return frozenset(hpgeom.query_polygon(2**_ORDER, ra, dec, inclusive=True).tolist())


class Locks(ABC):
    """Locks by number."""

    @abstractmethod
    def held(self, numbers: Iterable[int], wait_s: float) -> AbstractContextManager[None]:
        """Hold locks while a block runs.

        Raises
        ------
        Busy
            One of them was not free within `wait_s`.
        ServiceError
            The server of the locks cannot be reached.
        """


class FileLocks(Locks):
    """Bytes of a file, locked as open file descriptions: threads exclude each other as well as processes do."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @contextlib.contextmanager
    def held(self, numbers: Iterable[int], wait_s: float) -> Iterator[None]:
        """See `Locks`."""
        until = time.monotonic() + wait_s
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o660)
        try:
            for number in sorted(numbers):
                while not _try_byte(fd, number):
                    if time.monotonic() > until:
                        raise Busy(f"{self._path}: the same sky was being written for {wait_s:g} s")
                    time.sleep(_TRY_AGAIN_S)
            yield
        finally:
            os.close(fd)  # lets go of all


def _try_byte(fd: int, number: int) -> bool:
    # struct flock: type, whence, start, length, process (0 for locks of open file descriptions).
    wanted = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


class ServerLocks(Locks):
    """Advisory locks of a PostgreSQL session that lives as long as they are held."""

    def __init__(self, url: str) -> None:
        self._url = url

    @contextlib.contextmanager
    def held(self, numbers: Iterable[int], wait_s: float) -> Iterator[None]:
        """See `Locks`."""
        wait = f"{max(round(wait_s * 1000), 1)}ms"
        with contextlib.closing(connect(self._url, autocommit=True)) as connection:
            with errors():
                connection.execute("SELECT set_config('lock_timeout', %s, false)", [wait])
                try:
                    connection.execute(
                        "SELECT pg_advisory_lock(%s, n) FROM unnest(%s::int4[]) AS n", [_CLASS, sorted(numbers)]
                    )
                except psycopg.errors.LockNotAvailable:
                    raise Busy(f"PPDB {display(self._url)}: the same sky was being written for {wait_s:g} s") from None
            yield
