"""The alert archive: every packet, durable before the database commits.

``file:///dir`` holds one folder a night, and in it one Avro container file for
each writing process; `apflow.io.alerts.container` says how a datum is found in
it. A packet's place is its `~apflow.model.products.OutboxRow`.
"""

from __future__ import annotations

import fcntl
import functools
import io
import os
import socket
import threading
import urllib.parse
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self

import fastavro

from apflow.errors import BadRequest, DataError, ServiceError
from apflow.io.alerts import container
from apflow.io.alerts.schema import AlertSchema, load_schema
from apflow.model.products import OutboxRow, Packet

_OPEN_NIGHTS = 2


@dataclass(eq=False)
class _Night:
    """A container file that this process appends to."""

    file: BinaryIO
    name: str  # relative to the archive
    sync: bytes
    end: int


class Archive:
    """An archive of alert packets; use `open_archive` to share one in a process.

    Parameters
    ----------
    url : `str`
        ``file:///dir``; the folder is made when the first packet comes.
    schema_version : `str`
        Version of the packets that will be appended.

    Raises
    ------
    BadRequest
        The URL is of another scheme, or the schema version does not exist.
    """

    def __init__(self, url: str, schema_version: str = "11.1") -> None:
        self.root = archive_root(url)
        self.url = url
        self._schema = load_schema(schema_version)
        self._nights: dict[int, _Night] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; the next append opens them again."""
        with self._lock:
            for night in self._nights.values():
                night.file.close()
            self._nights.clear()

    def append(self, packets: Sequence[Packet], visit: int, detector: int, day_obs: int) -> list[OutboxRow]:
        """Make packets of one detector-visit durable; see `append_batch`."""
        return self.append_batch([(packets, visit, detector)], day_obs)

    def append_batch(self, batch: Iterable[tuple[Sequence[Packet], int, int]], day_obs: int) -> list[OutboxRow]:
        """Make packets durable, those of many detector-visits by one sync.

        Parameters
        ----------
        batch : `~collections.abc.Iterable`
            (packets, visit, detector) of each detector-visit.
        day_obs : `int`
            The night, YYYYMMDD.

        Returns
        -------
        rows : `list` [`~apflow.model.products.OutboxRow`]
            One a packet, in order, when all of them are on the disk.

        Raises
        ------
        ServiceError
            The archive cannot be written (no room, no permission); none of the
            batch is in it.
        """
        named = [(p, visit, detector) for packets, visit, detector in batch for p in packets]
        if not named:
            return []
        with self._lock:
            try:
                night = self._night(day_obs)
                return _append(night, named)
            except OSError as error:
                self._forget(day_obs)
                raise ServiceError(
                    f"alert archive {self.url}, night {day_obs}: {error.strerror}; {len(named)} packets not written"
                ) from error

    def read(self, row: OutboxRow) -> bytes:
        """The datum of an outbox row.

        Raises
        ------
        DataError
            The file is missing or too short, or the bytes are not those that
            were written.
        """
        return self.read_many([row])[0]

    def read_many(self, rows: Sequence[OutboxRow]) -> list[bytes]:
        """Data of outbox rows, each file opened once; see `read`."""
        data: list[bytes] = [b""] * len(rows)
        for name in dict.fromkeys(r.file for r in rows):
            try:
                with open(self.root / name, "rb") as file:
                    for i, row in enumerate(rows):
                        if row.file == name:
                            data[i] = _read(file, row)
            except OSError as error:
                raise DataError(f"alert archive {self.url}: {name}: {error.strerror}") from error
        return data

    def _night(self, day_obs: int) -> _Night:
        if day_obs not in self._nights:
            while len(self._nights) >= _OPEN_NIGHTS:
                self._forget(next(iter(self._nights)))
            self._nights[day_obs] = _open_night(self.root, day_obs, self._schema)
        return self._nights[day_obs]

    def _forget(self, day_obs: int) -> None:
        night = self._nights.pop(day_obs, None)
        if night is not None:
            night.file.close()


@functools.lru_cache(maxsize=4)
def open_archive(url: str, schema_version: str = "11.1") -> Archive:
    """The archive that this process shares: one file a night, however often it is asked for."""
    return Archive(url, schema_version)


def archive_root(url: str) -> Path:
    """Folder of an archive's URL.

    Raises
    ------
    BadRequest
        The URL is not of the form ``file:///dir``.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise BadRequest(f"alert archive {url!r} is not accepted: file:///dir, with an absolute path")
    return Path(urllib.parse.unquote(parts.path))


def nights(url: str) -> list[int]:
    """Nights of an archive, day_obs."""
    root = archive_root(url)
    return sorted(int(p.name) for p in root.iterdir() if p.name.isdigit()) if root.is_dir() else []


def read_night(url: str, day_obs: int) -> Iterator[dict[str, Any]]:
    """Alerts of a night as records, file by file in the order in which they were written.

    What a crash leaves half-written at the end of a file was never announced,
    and is passed over. A batch that was appended again after a crash or a lost
    race comes twice: the outbox knows which of the two was announced.

    Raises
    ------
    BadRequest
        The archive has no such night.
    DataError
        A file of the archive is not an Avro container.
    """
    folder = archive_root(url) / str(day_obs)
    if not folder.is_dir():
        known = ", ".join(map(str, nights(url))) or "none, the archive is empty"
        raise BadRequest(f"alert archive {url} has no night {day_obs}; accepted: {known}")
    for path in sorted(folder.glob("*.avro")):
        with path.open("rb") as file:
            found = container.read_header(file, str(path))
            if found is None:
                continue
            schema, sync = found
            for offset, length in container.walk(file, sync):
                file.seek(offset)
                record: Any = fastavro.schemaless_reader(io.BytesIO(file.read(length)), schema, None)
                yield record


def _read(file: BinaryIO, row: OutboxRow) -> bytes:
    file.seek(row.offset)
    datum = file.read(row.length)
    if len(datum) != row.length or zlib.crc32(datum) != row.checksum:
        raise DataError(
            f"alert {row.alert_id}: the {row.length} bytes at {row.offset} of {row.file} are not those written "
            f"(crc32 {zlib.crc32(datum):08x}, {row.checksum:08x} accepted)"
        )
    return datum


def _append(night: _Night, named: Sequence[tuple[Packet, int, int]]) -> list[OutboxRow]:
    rows: list[OutboxRow] = []
    parts: list[bytes] = []
    end = night.end
    for packet, visit, detector in named:
        block = container.block(packet.datum, night.sync)
        rows.append(
            OutboxRow(
                packet.alert_id,
                packet.object_id,
                visit,
                detector,
                night.name,
                end + len(block[0]),
                len(packet.datum),
                zlib.crc32(packet.datum),
            )
        )
        parts += block
        end += sum(map(len, block))
    try:
        night.file.seek(night.end)
        _write(night.file, b"".join(parts))
    except OSError:
        os.ftruncate(night.file.fileno(), night.end)
        raise
    night.end = end
    return rows


def _open_night(root: Path, day_obs: int, schema: AlertSchema) -> _Night:
    """This process's file of a night, ready to append: an unfinished tail cut off, or a new file begun."""
    folder = root / str(day_obs)
    folder.mkdir(parents=True, exist_ok=True)
    stem = f"alerts-v{schema.version.replace('.', '_')}-{socket.gethostname()}-{os.getpid()}"
    for attempt in range(1000):
        path = folder / (f"{stem}.avro" if not attempt else f"{stem}-{attempt}.avro")
        # Unbuffered, so that bytes that could not be written are not tried again on closing.
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            sync, end = _resume(file, path, schema)
        except (BlockingIOError, DataError):
            file.close()  # another writer's, or not a container: leave it alone
            continue
        except OSError:
            file.close()
            raise
        for directory in (folder, root, root.parent):
            _sync_directory(directory)
        return _Night(file, f"{day_obs}/{path.name}", sync, end)
    raise ServiceError(f"alert archive {folder}: a thousand files of {stem} are in use")


def _resume(file: BinaryIO, path: Path, schema: AlertSchema) -> tuple[bytes, int]:
    """Sync marker and end of the whole blocks; what follows them is cut off."""
    head, sync = container.header(schema)
    if os.fstat(file.fileno()).st_size < len(head):  # new, or cut off within the header: nothing was announced of it
        file.truncate(0)
        file.seek(0)
        _write(file, head)
    else:
        found = container.read_header(file, str(path))
        if found is None:
            raise DataError(f"alert archive {path}: the header cannot be read")
        sync = found[1]
        for _ in container.walk(file, sync):
            pass
        file.truncate()
    return sync, file.tell()


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
