"""A container file of the archive while alerts are appended to it."""

from __future__ import annotations

import fcntl
import os
import socket
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

from numpy.typing import NDArray

from apflow.errors import DataError, ServiceError
from apflow.io.alerts import container, index
from apflow.io.alerts.container import SYNC, Head
from apflow.io.alerts.schema import AlertSchema
from apflow.model.products import OutboxRow, Packet

CODEC = "zstandard"


class NightFile:
    """One container file of a night, that this process alone appends to, with its index.

    Parameters
    ----------
    root : `~pathlib.Path`
        The archive.
    day_obs : `int`
        The night.
    schema : `~apflow.io.alerts.schema.AlertSchema`
        Schema of the packets.

    Raises
    ------
    OSError
        No file can be made or opened; none is left half made.
    """

    def __init__(self, root: Path, day_obs: int, schema: AlertSchema) -> None:
        folder = root / str(day_obs)
        folder.mkdir(parents=True, exist_ok=True)
        path, self._file, self._head, entries = _open(folder, schema)
        self.name = f"{day_obs}/{path.name}"
        self._compress = container.compressor()
        self._end = self._file.tell()
        self._index = index.begin(path, self._head, entries)
        for directory in (folder, root, root.parent):
            _sync_directory(directory)

    def close(self) -> None:
        """Close the file and its index."""
        self._file.close()
        if self._index is not None:
            self._index.close()

    def append(self, named: Sequence[tuple[Packet, int, int]]) -> list[OutboxRow]:
        """Append packets, each with its visit and detector, and sync.

        Raises
        ------
        OSError
            They cannot be written; none of them is in the file.
        """
        rows: list[OutboxRow] = []
        parts: list[bytes] = []
        end = self._end
        for packet, visit, detector in named:
            checksum = zlib.crc32(packet.datum)
            block = container.block(self._compress(packet.datum), self._head.sync)
            place = self.name, end + len(block[0]), len(block[1])
            rows.append(
                OutboxRow(packet.alert_id, packet.object_id, visit, detector, *place, checksum, trimmed=packet.trimmed)
            )
            parts += block
            end = place[1] + place[2] + SYNC
        try:
            self._file.seek(self._end)
            _write(self._file, b"".join(parts))
        except OSError:
            os.ftruncate(self._file.fileno(), self._end)
            raise
        self._end = end
        self._note(rows)
        return rows

    def _note(self, rows: list[OutboxRow]) -> None:
        """Append to the index; without room for it, it ends here, and is completed from the file later."""
        if self._index is None:
            return
        entries = memoryview(index.entries_of(rows).tobytes())
        try:
            while entries:
                entries = entries[self._index.write(entries) :]
        except OSError:
            self._index.close()
            self._index = None


def _open(folder: Path, schema: AlertSchema) -> tuple[Path, BinaryIO, Head, NDArray[Any]]:
    """A file that nobody else writes to: an unfinished tail cut off, or a new one begun; and what is in it."""
    stem = f"alerts-v{schema.version.replace('.', '_')}-{socket.gethostname()}-{os.getpid()}"
    for attempt in range(1000):
        path = folder / (f"{stem}.avro" if not attempt else f"{stem}-{attempt}.avro")
        # Unbuffered, so that bytes that could not be written are not tried again on closing.
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return path, file, *_resume(file, path, schema)
        except (BlockingIOError, DataError):
            file.close()  # another writer's, or not a container of ours: leave it alone
        except OSError:
            file.close()
            raise
    raise ServiceError(f"alert archive {folder}: a thousand files of {stem} are in use")


def _resume(file: BinaryIO, path: Path, schema: AlertSchema) -> tuple[Head, NDArray[Any]]:
    """Header and alerts of the file, which is left at the end of its whole blocks; what follows them is cut off."""
    header, sync = container.header(schema, CODEC)
    size = os.fstat(file.fileno()).st_size
    if size < len(header):  # new, or cut off within the header: nothing was announced of it
        try:
            file.truncate(0)
            _write(file, header)
        except OSError:
            path.unlink()
            raise
        return Head(schema.definition, sync, CODEC, len(header)), index.entries_of([])
    head = container.read_header(file, str(path))
    if head is None or head.codec != CODEC:
        raise DataError(f"alert archive {path} has no header of codec {CODEC}")
    entries = index.complete(index.load(path, head, size), file, head, path)
    file.truncate()
    return head, entries


def _write(file: BinaryIO, data: bytes) -> None:
    """Write all of the data, and wait until it is on the disk."""
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]
    os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
