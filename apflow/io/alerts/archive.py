"""The alert archive: every packet, durable before the database commits.

``file:///dir`` holds one folder a night, and in it one Avro container file for
each writing process, compressed alert by alert, with an index beside it. A
packet's place is its `~apflow.model.products.OutboxRow`: offset and length are
those of the compressed datum, the checksum is that of the datum itself.
"""

from __future__ import annotations

import functools
import io
import threading
import urllib.parse
import weakref
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Self

import fastavro
import numpy as np

from apflow.errors import BadRequest, DataError, ServiceError
from apflow.io.alerts import container
from apflow.io.alerts.container import Head
from apflow.io.alerts.index import read_index
from apflow.io.alerts.night import NightFile
from apflow.io.alerts.schema import load_schema
from apflow.model.ids import day_obs_of
from apflow.model.products import OutboxRow, Packet

_OPEN_NIGHTS = 2


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
        self._nights: dict[int, NightFile] = {}
        self._heads: dict[str, Head] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._nights)  # nobody closes the archive that a process shares

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; the next append opens them again."""
        with self._lock:
            while self._nights:
                self._forget(next(iter(self._nights)))

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
                return night.append(named)
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
                    codec = self._head(file, name).codec
                    for i, row in enumerate(rows):
                        if row.file == name:
                            data[i] = _read(file, row, codec)
            except OSError as error:
                raise DataError(f"alert archive {self.url}: {name}: {error.strerror}") from error
        return data

    def definition(self, row: OutboxRow) -> Any:
        """The schema that a row's file was written with; see `read` for errors."""
        try:
            with open(self.root / row.file, "rb") as file:
                return self._head(file, row.file).schema
        except OSError as error:
            raise DataError(f"alert archive {self.url}: {row.file}: {error.strerror}") from error

    def _head(self, file: BinaryIO, name: str) -> Head:
        if name not in self._heads:
            head = container.read_header(file, name)
            if head is None:
                raise DataError(f"alert archive {self.url}: {name} is cut off within its header")
            self._heads[name] = head
        return self._heads[name]

    def _night(self, day_obs: int) -> NightFile:
        if day_obs not in self._nights:
            while len(self._nights) >= _OPEN_NIGHTS:
                self._forget(next(iter(self._nights)))
            self._nights[day_obs] = NightFile(self.root, day_obs, self._schema)
        return self._nights[day_obs]

    def _forget(self, day_obs: int) -> None:
        night = self._nights.pop(day_obs, None)
        if night is not None:
            night.close()


def _close(nights: dict[int, NightFile]) -> None:
    for night in nights.values():
        night.close()


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


def find(
    url: str,
    *,
    night: int | None = None,
    visit: int | None = None,
    detector: int | None = None,
    alert_ids: Sequence[int] | None = None,
    object_id: int | None = None,
) -> list[OutboxRow]:
    """Where alerts are, by what the indexes say; all conditions given must hold.

    Rows come night by night, file by file, in the order in which they were
    written. A batch that was appended again after a crash or a lost race comes
    twice: the outbox knows which of the two was announced.

    Raises
    ------
    BadRequest
        The archive has no such night.
    DataError
        A file of the archive is not an Avro container, or damaged.
    """
    chosen = nights(url) if night is None else [_existing(url, night)]
    if visit is not None:
        chosen = [n for n in chosen if n == day_obs_of(visit)]
    rows = []
    for path in (p for n in chosen for p in _files(url, n)):
        entries = read_index(path)
        keep = np.ones(len(entries), bool)
        for column, value in (("visit", visit), ("detector", detector), ("diaObjectId", object_id)):
            if value is not None:
                keep &= entries[column] == value
        if alert_ids is not None:
            keep &= np.isin(entries["diaSourceId"], np.asarray(alert_ids, np.int64))
        rows += [_row(f"{path.parent.name}/{path.name}", entry) for entry in entries[keep].tolist()]
    return rows


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
        A file of the archive is not an Avro container, or damaged.
    """
    _existing(url, day_obs)
    for path in _files(url, day_obs):
        with path.open("rb") as file:
            head = container.read_header(file, str(path))
            if head is None:
                continue
            for offset, length in container.walk(file, head.sync):
                file.seek(offset)
                datum = container.expand(file.read(length), head.codec)
                record: Any = fastavro.schemaless_reader(io.BytesIO(datum), head.schema, None)
                yield record


def _existing(url: str, day_obs: int) -> int:
    if not (archive_root(url) / str(day_obs)).is_dir():
        known = ", ".join(map(str, nights(url))) or "none, the archive is empty"
        raise BadRequest(f"alert archive {url} has no night {day_obs}; accepted: {known}")
    return day_obs


def _files(url: str, day_obs: int) -> list[Path]:
    return sorted((archive_root(url) / str(day_obs)).glob("*.avro"))


def _row(name: str, entry: tuple[int, ...]) -> OutboxRow:
    alert_id, object_id, visit, detector, checksum, length, offset = entry
    return OutboxRow(alert_id, object_id, visit, detector, name, offset, length, checksum)


def _read(file: BinaryIO, row: OutboxRow, codec: str) -> bytes:
    where = f"alert {row.alert_id}: the {row.length} bytes at {row.offset} of {row.file} are not those written"
    file.seek(row.offset)
    payload = file.read(row.length)
    if len(payload) != row.length:
        raise DataError(f"{where}: the file ends after {len(payload)} of them")
    try:
        datum = container.expand(payload, codec)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    if zlib.crc32(datum) != row.checksum:
        raise DataError(f"{where} (crc32 {zlib.crc32(datum):08x}, {row.checksum:08x} accepted)")
    return datum
