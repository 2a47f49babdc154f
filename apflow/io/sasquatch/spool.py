"""Records on disk until Sasquatch has them."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import itertools
import json
import logging
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from apflow.errors import ServiceError
from apflow.io.atomic import atomic
from apflow.io.sasquatch.records import Record, from_bytes, to_bytes
from apflow.model.metrics import Measurement

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

    def add(self, measurements: Sequence[Measurement]) -> None:
        """Add a file.

        Raises
        ------
        ServiceError
            It cannot be written.
        """
        number = next(_counter)
        name = f"{time.time_ns():020d}.{os.uname().nodename}.{os.getpid()}.{number}.json"
        _write(self.folder / name, to_bytes(measurements))

    def waiting(self) -> dict[Path, int]:
        """Files and their sizes in bytes, the oldest first; another sender may remove them.

        Raises
        ------
        ServiceError
            The folder cannot be read.
        """
        return _files(self.folder)

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
            _log.error("%s is no file of measurements: %s; it is kept in %s", path, error, REJECTED)
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
        # The same name when they are refused again, and sorted by time.
        path = self.folder / REJECTED / f"{first.head['timestamp']:020.6f}.{first.action}.{first.head['id']}.json"
        kept = {"reason": reason, "records": [dataclasses.asdict(record) for record in records]}
        _write(path, json.dumps(kept, indent=1).encode())

    def trim(self, limit_bytes: float) -> int:
        """Remove the oldest files until those that wait fit, and those that were rejected too.

        Returns
        -------
        gone : `int`
            The number of files that waited.

        Raises
        ------
        ServiceError
            The folder cannot be read, or not written to.
        """
        self.remove(_excess(_files(self.folder / REJECTED), limit_bytes))
        gone = _excess(self.waiting(), limit_bytes)
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


def _files(folder: Path) -> dict[Path, int]:
    try:
        with os.scandir(folder) as entries:
            sizes = {entry.name: _size(entry) for entry in entries if entry.name.endswith(".json")}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ServiceError(f"spool {folder} cannot be read: {error.strerror}") from error
    return {folder / name: size for name in sorted(sizes) if (size := sizes[name]) is not None}


def _excess(files: Mapping[Path, int], limit_bytes: float) -> list[Path]:
    """The oldest, as few as have to go for the others to fit."""
    excess = sum(files.values()) - limit_bytes
    gone_before = itertools.accumulate(files.values(), initial=0)
    return [path for path, gone in zip(files, gone_before, strict=False) if gone < excess]


def _size(entry: os.DirEntry[str]) -> int | None:
    """Bytes of a file; None where another process has just sent it."""
    try:
        return entry.stat().st_size
    except FileNotFoundError:
        return None
