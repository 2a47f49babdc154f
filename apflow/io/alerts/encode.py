"""Avro data encoded by columns: all rows of a table at once, byte for byte as fastavro writes them one by one.

`encode` writes the rows of a flat record into one buffer by a compiled
kernel. `join` puts alerts together from slices of such buffers, so that an
object's history is encoded once for all its alerts, and a stamp copied once.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.io.alerts.avro import Array, Field, Kind, Record
from apflow.io.alerts.columnar import Batch

I8 = NDArray[np.int64]
_NULL, _BOOLEAN, _FLOAT, _DOUBLE = int(Kind.NULL), int(Kind.BOOLEAN), int(Kind.FLOAT), int(Kind.DOUBLE)
_BYTES, _STRING, _FIXED = int(Kind.BYTES), int(Kind.STRING), int(Kind.FIXED)


@dataclass(frozen=True, eq=False)
class Rows:
    """Encoded rows: row i is ``data[offsets[i]:offsets[i + 1]]``."""

    data: memoryview
    offsets: I8


@dataclass(frozen=True, eq=False)
class Runs:
    """For each alert the encoded rows from `starts` up to `stops`: those of a list, or the one of a record."""

    rows: Rows
    starts: I8
    stops: I8

    @property
    def counts(self) -> I8:
        """Rows in each run."""
        return self.stops - self.starts

    def pieces(self) -> list[memoryview]:
        """The bytes of each run."""
        at = zip(self.rows.offsets[self.starts].tolist(), self.rows.offsets[self.stops].tolist(), strict=True)
        return [self.rows.data[a:b] for a, b in at]


#: What `join` takes for a field: numbers, bytes, a record, or a list as runs one after another.
Value = NDArray[Any] | list[bytes | None] | Runs | tuple[Runs, ...]


def encode(batch: Batch, rows: I8 | None = None) -> Rows:
    """Encode rows of a batch in the order given, all of them when `rows` is None.

    Raises
    ------
    DataError
        A value is null where the schema does not accept null.
    """
    plan = batch.layout
    rows = np.arange(batch.n) if rows is None else np.ascontiguousarray(rows, np.int64)
    null = ~batch.known[plan.required][:, rows]
    if null.any():
        f, i = np.argwhere(null)[0]
        field = batch.record.fields[plan.required[f]]
        raise DataError(f"{batch.name}.{field.name} is null in row {rows[i]}; the alert schema requires a value")
    text = int((batch.stops - batch.starts)[:, rows].sum())
    out = np.empty(len(rows) * plan.room + text, np.uint8)
    offsets = np.zeros(len(rows) + 1, np.int64)
    columns = batch.known, batch.integers, batch.singles.view(np.uint32), batch.doubles.view(np.uint64)
    strings = batch.starts, batch.stops, batch.text()
    _write(rows, plan.kinds, plan.slot, plan.branch, plan.null, *columns, *strings, out, offsets)
    return Rows(memoryview(out), offsets)


@njit(cache=True, nogil=True)
def _write(
    rows: Any,
    kinds: Any,
    slots: Any,
    branches: Any,
    nulls: Any,
    known: Any,
    integers: Any,
    singles: Any,
    doubles: Any,
    starts: Any,
    stops: Any,
    text: Any,
    out: Any,
    offsets: Any,
) -> None:
    """Fields one after another, each as its branch in the union and its value (Avro 1.11, "Binary Encoding")."""
    at = 0
    for r in range(len(rows)):
        i = rows[r]
        for f in range(len(kinds)):
            kind, slot = kinds[f], slots[f]
            if kind == _NULL:
                continue
            if not known[f, i]:
                out[at] = nulls[f]
                at += 1
                continue
            if branches[f] >= 0:
                out[at] = branches[f]
                at += 1
            if kind == _FLOAT:
                at = _little_endian(np.uint64(singles[slot, i]), 4, out, at)
            elif kind == _DOUBLE:
                at = _little_endian(doubles[slot, i], 8, out, at)
            elif kind == _BOOLEAN:
                out[at] = integers[slot, i] != 0
                at += 1
            elif kind in (_BYTES, _STRING, _FIXED):
                start, stop = starts[slot, i], stops[slot, i]
                if kind != _FIXED:
                    at = _varint(stop - start, out, at)
                out[at : at + stop - start] = text[start:stop]
                at += stop - start
            else:
                at = _varint(integers[slot, i], out, at)
        offsets[r + 1] = at


@njit(cache=True, nogil=True)
def _little_endian(word: Any, size: int, out: Any, at: int) -> int:
    for b in range(size):
        out[at + b] = (word >> np.uint64(8 * b)) & np.uint64(255)
    return at + size


@njit(cache=True, nogil=True)
def _varint(value: int, out: Any, at: int) -> int:
    """Zigzag, then seven bits a byte, the low ones first."""
    left = np.uint64((value << 1) ^ (value >> 63))
    while left > np.uint64(127):
        out[at] = (left & np.uint64(127)) | np.uint64(128)
        left >>= np.uint64(7)
        at += 1
    out[at] = left
    return at + 1


def varint(value: int) -> bytes:
    """An Avro long that is not negative."""
    left, out = value << 1, bytearray()
    while left > 127:
        out.append(left & 127 | 128)
        left >>= 7
    out.append(left)
    return bytes(out)


def join(record: Record, values: Mapping[str, Value], n: int) -> list[bytes]:
    """Encode records that have parts.

    Parameters
    ----------
    record : `~apflow.io.alerts.avro.Record`
    values : `~collections.abc.Mapping`
        By field: an array (n,) of numbers; a list of n `bytes` or None; `Runs` of one row
        each for a record, of none where it is null; a tuple of `Runs` for a
        list, null (where the schema accepts that) when there is no row.
        Fields that are left out get the schema's default, or null.
    n : `int`
        Number of records.

    Raises
    ------
    DataError
        A field is required and missing, or not a field of the record.
    """
    unknown = set(values) - {f.name for f in record.fields}
    if unknown:
        raise DataError(f"{sorted(unknown)[0]} is not a field of the Avro record {record.name}")
    columns = [column for field in record.fields for column in _columns(field, values.get(field.name), n, record.name)]
    return [b"".join(pieces) for pieces in zip(*columns, strict=True)]


def _columns(field: Field, value: Value | None, n: int, name: str) -> list[Sequence[bytes | memoryview]]:
    """What a field adds to each record, as columns of pieces."""
    if isinstance(value, np.ndarray) or (value is None and field.kind is not None):
        batch = Batch(_alone(field, name), n)
        if value is not None:
            batch.put(field.name, value)
        return [Runs(encode(batch), np.arange(n), np.arange(1, n + 1)).pieces()]
    branch = b"" if field.branch < 0 else varint(field.branch)
    if value is None and field.default == []:
        return [[branch + b"\0"] * n]
    null = varint(field.null) if field.nullable else None
    if value is None:
        return [[_accepted(null, field, name)] * n]
    if isinstance(value, list):
        heads = [_accepted(null, field, name) if v is None else branch + varint(len(v)) for v in value]
        return [heads, [v or b"" for v in value]]
    runs = value if isinstance(value, tuple) else (value,)
    heads, tails = [], []
    for count in np.sum([run.counts for run in runs], axis=0).tolist():
        if isinstance(field.type, Array):
            empty = branch + b"\0" if null is None else null
            heads.append(branch + varint(count) if count else empty)
            tails.append(b"\0" if count else b"")
        else:
            heads.append(branch if count else _accepted(null, field, name))
    middle = [run.pieces() for run in runs]
    return [heads, *middle, tails] if tails else [heads, *middle]


@functools.lru_cache(maxsize=256)
def _alone(field: Field, name: str) -> Record:
    """A record of one field; the same one each time, for the sake of its layout."""
    return Record(name, (field,))


def _accepted(null: bytes | None, field: Field, name: str) -> bytes:
    if null is None:
        raise DataError(f"{name}.{field.name} is missing; the alert schema requires it")
    return null
