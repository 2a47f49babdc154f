"""Records on disk until Sasquatch has them."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from apflow.errors import ServiceError
from apflow.io.atomic import atomic
from apflow.io.sasquatch.records import Record, from_bytes, to_bytes

_log = logging.getLogger(__name__)
_counter = itertools.count()
#: Refused records are kept in this folder of the spool, with the reason.
REJECTED = "rejected"


class Spool:
    """A folder that any number of processes add files to, and one at a time sends from.

    The files' names sort by the time at which they were added. They survive
    the death of every process; they are not synced, since what a power cut
    takes is in the Butler too.

    Parameters
    ----------
    folder : `pathlib.Path`
        Made when the first file is added.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, records: Sequence[Record]) -> None:
        """Add a file.

        Raises
        ------
        ServiceError
            It cannot be written.
        """
        number = next(_counter)
        name = f"{time.time_ns():020d}.{os.uname().nodename}.{os.getpid()}.{number}.json"
        _write(self.folder / name, to_bytes(records))

    def waiting(self) -> list[Path]:
        """Files, the oldest first.

        Raises
        ------
        ServiceError
            The folder cannot be read.
        """
        try:
            return sorted(p for p in self.folder.iterdir() if p.suffix == ".json" and not p.name.startswith("."))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ServiceError(f"spool {self.folder} cannot be read: {error.strerror}") from error

    def read(self, path: Path) -> list[Record]:
        """Records of a file; one that is none is put among the rejected.

        Raises
        ------
        ServiceError
            It cannot be read.
        """
        try:
            return from_bytes(path.read_bytes())
        except OSError as error:
            raise ServiceError(f"{path} cannot be read: {error.strerror}") from error
        except (ValueError, TypeError) as error:
            _log.error("%s is no file of records: %s; it is kept in %s", path, error, REJECTED)
            _write(self.folder / REJECTED / path.name, path.read_bytes())
            return []

    def remove(self, paths: Iterable[Path]) -> None:
        """Remove files.

        Raises
        ------
        ServiceError
            One cannot be removed.
        """
        for path in paths:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                raise ServiceError(f"{path} cannot be removed: {error.strerror}") from error

    def reject(self, records: Sequence[Record], reason: str) -> None:
        """Keep records that are not to be sent again.

        Raises
        ------
        ServiceError
            They cannot be written.
        """
        first = records[0]
        path = self.folder / REJECTED / f"{first.action}.{first.head['id']}.json"
        kept = {"reason": reason, "records": json.loads(to_bytes(records))}
        _write(path, json.dumps(kept, indent=1).encode())

    def trim(self, limit_bytes: float) -> int:
        """Remove the oldest files until the others fit; returns the number of those that went.

        Raises
        ------
        ServiceError
            The folder cannot be read, or not written to.
        """
        try:
            sizes = {path: path.stat().st_size for path in self.waiting()}
        except OSError as error:
            raise ServiceError(f"spool {self.folder} cannot be read: {error.strerror}") from error
        excess = sum(sizes.values()) - limit_bytes
        gone = []
        for path, size in sizes.items():
            if excess <= 0:
                break
            gone.append(path)
            excess -= size
        self.remove(gone)
        return len(gone)

    @contextlib.contextmanager
    def sender(self, *, wait: bool) -> Iterator[bool]:
        """Be the only sender of all processes while the context is open, if it gives True.

        Raises
        ------
        ServiceError
            The folder cannot be written to.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            file = (self.folder / "lock").open("w")
        except OSError as error:
            raise ServiceError(f"spool {self.folder} cannot be written to: {error.strerror}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            except BlockingIOError:
                yield False
                return
            yield True


def _write(path: Path, content: bytes) -> None:
    try:
        with atomic(path) as file:
            file.write(content)
    except OSError as error:
        raise ServiceError(f"{path} cannot be written: {error.strerror}") from error
