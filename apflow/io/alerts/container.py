"""Avro object container files in which every datum is a block of its own.

Any Avro library reads such a file from end to end, and one datum can be read
alone, by the offset and length of its block's payload.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import fastavro
import zstandard

from apflow.errors import DataError
from apflow.io.alerts.schema import AlertSchema

_MAGIC = b"Obj\x01"
SYNC = 16  # bytes of a sync marker
_VARINT = 10  # bytes of the longest long
#: 100 kB of packet shrink to 25 kB; higher levels take 2.5 times as long for 3 % less.
_LEVEL = 1


@dataclass(frozen=True, eq=False)
class Head:
    """What a container's header says.

    Attributes
    ----------
    schema : `dict`
        The writer's schema, as fastavro parsed it.
    sync : `bytes`
        Marker that ends every block.
    codec : `str`
        ``null``, ``deflate`` or ``zstandard``.
    size : `int`
        Bytes of the header: where the first block begins.
    """

    schema: Any
    sync: bytes
    codec: str
    size: int


def header(schema: AlertSchema, codec: str = "null") -> tuple[bytes, bytes]:
    """A container's header with a fresh sync marker, and the marker."""
    return header_of(schema.definition, codec)


def header_of(definition: Any, codec: str = "null") -> tuple[bytes, bytes]:
    """As `header`, for any schema."""
    sync = os.urandom(SYNC)
    buffer = io.BytesIO()
    fastavro.writer(buffer, definition, [], codec=codec, sync_marker=sync)
    return buffer.getvalue(), sync


def block(payload: bytes, sync: bytes) -> tuple[bytes, bytes, bytes]:
    """One datum, compressed as the header says, as a block: what precedes it, the payload, what follows."""
    return b"\x02" + _zigzag(len(payload)), payload, sync


def compressor() -> Callable[[bytes], bytes]:
    """A function that compresses a datum for the codec ``zstandard``; for one thread at a time."""
    compress: Callable[[bytes], bytes] = zstandard.ZstdCompressor(level=_LEVEL).compress
    return compress


def expand(payload: bytes, codec: str) -> bytes:
    """The datum of a block's payload.

    Raises
    ------
    DataError
        The payload is damaged.
    """
    try:
        return _EXPAND[codec](payload)
    except (zlib.error, zstandard.ZstdError) as error:
        raise DataError(f"{len(payload)} bytes cannot be decompressed: {error}") from error


def _inflate(payload: bytes) -> bytes:
    return zlib.decompress(payload, -15)


def _unzstd(payload: bytes) -> bytes:
    stream = zstandard.ZstdDecompressor().decompressobj()  # other writers leave the size out, which it can do without
    expanded: bytes = stream.decompress(payload)
    if not stream.eof:
        raise zstandard.ZstdError("the frame is cut off")
    return expanded


_EXPAND: Mapping[str, Callable[[bytes], bytes]] = {"null": bytes, "deflate": _inflate, "zstandard": _unzstd}


def read_header(file: BinaryIO, name: str) -> Head | None:
    """Header of a container, which is left behind; None where it is cut off.

    Raises
    ------
    DataError
        This is no Avro container, or of another codec.
    """
    file.seek(0)
    if not _MAGIC.startswith(file.read(len(_MAGIC))):
        raise DataError(f"alert archive {name} does not begin as an Avro container does")
    file.seek(0)
    try:
        reader = fastavro.block_reader(file)
    except (ValueError, EOFError, StopIteration, KeyError, IndexError):
        return None
    if reader.codec not in _EXPAND:
        raise DataError(f"alert archive {name} has the codec {reader.codec}; accepted: {', '.join(_EXPAND)}")
    return Head(reader.writer_schema, bytes(reader._header["sync"]), reader.codec, file.tell())


def walk(file: BinaryIO, sync: bytes) -> Iterator[tuple[int, int]]:
    """Offset and length of each payload from here on; ends before a block that is not whole.

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
        if offset + length + SYNC > size:
            break
        file.seek(offset + length)
        if file.read(SYNC) != sync:
            break
        end = offset + length + SYNC
        yield offset, length
    file.seek(end)


def _block_head(data: bytes) -> tuple[int, int] | None:
    """Bytes of a block's head and length of its payload; None unless it holds exactly one datum."""
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
