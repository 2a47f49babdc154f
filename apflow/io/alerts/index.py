"""Index of a container file: where each alert is, beside the file as ``<name>.index``.

The index saves time and is never the truth: what it lacks, or what a crash made
of it, is read from the container itself. It is written without a sync, after
the blocks that it points at are on the disk.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fastavro
import numpy as np
from numpy.typing import NDArray

from apflow.errors import DataError, ServiceError
from apflow.io.alerts import container
from apflow.io.alerts.container import SYNC, Head
from apflow.io.atomic import atomic
from apflow.model.products import OutboxRow

#: One alert. Length and offset come last, so that an entry written in part is not a valid one.
ENTRY = np.dtype(
    [
        ("diaSourceId", "<i8"),
        ("diaObjectId", "<i8"),
        ("visit", "<i8"),
        ("detector", "<i4"),
        ("checksum", "<u4"),
        ("length", "<i8"),
        ("offset", "<i8"),
    ]
)
_MAGIC = b"apflow: alerts in a file, 1".ljust(ENTRY.itemsize - SYNC)
_WANTED = ("diaSourceId", "visit", "detector", "diaObjectId", "ssObjectId")


def entries_of(rows: list[OutboxRow]) -> NDArray[Any]:
    """Entries of alerts that were just appended."""
    columns = [(r.alert_id, r.object_id, r.visit, r.detector, r.checksum, r.length, r.offset) for r in rows]
    return np.array(columns, ENTRY)


def read_index(path: Path) -> NDArray[Any]:
    """All alerts of a container file, in the order in which they were written.

    What the index does not have is read from the file; the index is then
    completed, unless somebody is writing to the file.

    Parameters
    ----------
    path : `~pathlib.Path`
        The container, ``*.avro``.

    Returns
    -------
    entries : `~numpy.ndarray`
        Of dtype `ENTRY`; offset and length are those of the block's payload,
        the checksum is the crc32 of the datum.

    Raises
    ------
    DataError
        The file is no Avro container, or a whole block of it cannot be decoded.
    """
    with path.open("rb") as file:
        head = container.read_header(file, str(path))
        if head is None:
            return np.empty(0, ENTRY)
        known = load(path, head, os.fstat(file.fileno()).st_size)
        entries = complete(known, file, head, path)
        if len(entries) > len(known):
            # A full or read-only disk: the next reader reads the container again.
            with contextlib.suppress(OSError, ServiceError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                save(path, head, entries)
    return entries


def load(path: Path, head: Head, size: int) -> NDArray[Any]:
    """The entries of the index that hold for a container of `size` bytes: those before the first that does not."""
    try:
        raw = np.fromfile(_beside(path), np.uint8)
    except FileNotFoundError:
        return np.empty(0, ENTRY)
    if bytes(raw[: ENTRY.itemsize]) != _MAGIC + head.sync:
        return np.empty(0, ENTRY)
    entries = raw[ENTRY.itemsize : len(raw) // ENTRY.itemsize * ENTRY.itemsize].view(ENTRY)
    stops = entries["offset"] + entries["length"] + SYNC
    begins = entries["offset"] - _head_bytes(entries["length"])
    whole = (begins == np.concatenate([[head.size], stops[:-1]])) & (stops <= size)
    return entries if whole.all() else entries[: int(np.argmin(whole))]


def save(path: Path, head: Head, entries: NDArray[Any]) -> None:
    """Write the whole index, at once."""
    with atomic(_beside(path)) as file:
        file.write(_MAGIC + head.sync + entries.tobytes())


def complete(known: NDArray[Any], file: BinaryIO, head: Head, path: Path) -> NDArray[Any]:
    """Entries, and those of the blocks after them; the file is left at the end of its last whole block."""
    file.seek(int(known["offset"][-1] + known["length"][-1]) + SYNC if len(known) else head.size)
    missing = np.array(list(_scan(file, head, path)), ENTRY)
    return np.concatenate([known, missing]) if len(missing) else known


def begin(path: Path, head: Head, entries: NDArray[Any]) -> BinaryIO | None:
    """The index with these entries, open for those that follow; None where there is no room for it."""
    try:
        save(path, head, entries)
        return _beside(path).open("ab", buffering=0)
    except (OSError, ServiceError):
        return None


def _beside(path: Path) -> Path:
    return path.with_suffix(".index")


def _head_bytes(length: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes of the head of a block by the length of its payload: the count, and a varint of 7 bits a byte."""
    limits = 1 << np.arange(6, 63, 7, dtype=np.int64)
    return np.searchsorted(limits, length, side="right").astype(np.int64) + 2


def _scan(file: BinaryIO, head: Head, path: Path) -> Iterator[tuple[int, ...]]:
    """Entries of the blocks from here on, as their data say."""
    schema = _until_ids(head.schema)
    for offset, length in container.walk(file, head.sync):
        file.seek(offset)
        try:
            datum = container.expand(file.read(length), head.codec)
            record: Any = fastavro.schemaless_reader(io.BytesIO(datum), schema, None)
        except (DataError, ValueError, EOFError, IndexError, UnicodeDecodeError) as error:
            raise DataError(f"alert archive {path}: the alert at {offset} cannot be decoded: {error}") from error
        alert_id, visit, detector, object_id, moving = (record["diaSource"][name] for name in _WANTED)
        yield alert_id, object_id or moving or 0, visit, detector, zlib.crc32(datum), length, offset


def _until_ids(schema: Any) -> Any:
    """The schema up to the last field that the index wants: what follows in the datum is not decoded."""
    fields = schema["fields"][: [f["name"] for f in schema["fields"]].index("diaSource") + 1]
    source = fields[-1]["type"]
    names = [f["name"] for f in source["fields"]]
    inner = source["fields"][: max(map(names.index, _WANTED)) + 1]
    short = {"type": "record", "name": source["name"], "fields": inner}
    outer = [*fields[:-1], {"name": "diaSource", "type": short}]
    return fastavro.parse_schema({"type": "record", "name": schema["name"], "fields": outer})
