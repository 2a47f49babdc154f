"""Avro object container files in which every datum is a block of its own.

Any Avro library reads such a file from end to end, and the bytes of one datum
can be read alone, by their offset and length.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from typing import Any, BinaryIO

import fastavro

from apflow.errors import DataError
from apflow.io.alerts.schema import AlertSchema

_MAGIC = b"Obj\x01"
_SYNC = 16
_VARINT = 10  # bytes of the longest long


def header(schema: AlertSchema) -> tuple[bytes, bytes]:
    """A container's header with a fresh sync marker, and the marker."""
    sync = os.urandom(_SYNC)
    buffer = io.BytesIO()
    fastavro.writer(buffer, schema.definition, [], codec="null", sync_marker=sync)
    return buffer.getvalue(), sync


def block(datum: bytes, sync: bytes) -> tuple[bytes, bytes, bytes]:
    """One datum as a block: what precedes it, the datum, what follows."""
    return b"\x02" + _zigzag(len(datum)), datum, sync


def read_header(file: BinaryIO, name: str) -> tuple[Any, bytes] | None:
    """Schema and sync marker of a container, whose header is left behind; None where it is cut off.

    Raises
    ------
    DataError
        This is no Avro container.
    """
    if not _MAGIC.startswith(file.read(len(_MAGIC))):
        raise DataError(f"alert archive {name} does not begin as an Avro container does")
    file.seek(0)
    try:
        reader = fastavro.block_reader(file)
    except (ValueError, EOFError, StopIteration, KeyError, IndexError):
        return None
    meta = reader._header
    return reader.writer_schema, bytes(meta["sync"])


def walk(file: BinaryIO, sync: bytes) -> Iterator[tuple[int, int]]:
    """Offset and length of each datum from here on; ends before a block that is not whole.

    After the last one the file stands at the end of its last whole block.
    """
    end = file.seek(0, os.SEEK_CUR)
    size = os.fstat(file.fileno()).st_size
    while True:
        file.seek(end)
        found = _block_head(file.read(1 + _VARINT))
        if found is None:
            break
        head, length = found
        offset = end + head
        if offset + length + _SYNC > size:
            break
        file.seek(offset + length)
        if file.read(_SYNC) != sync:
            break
        end = offset + length + _SYNC
        yield offset, length
    file.seek(end)


def _block_head(data: bytes) -> tuple[int, int] | None:
    """Bytes of a block's head and length of its datum; None unless it holds exactly one."""
    if not data.startswith(b"\x02"):
        return None
    value = 0
    for i, byte in enumerate(data[1:]):
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return i + 2, value >> 1
    return None


def _zigzag(length: int) -> bytes:
    """Avro's long, for lengths (no negative ones)."""
    value, out = length << 1, bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
