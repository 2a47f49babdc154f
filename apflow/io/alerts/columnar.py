"""Columns of a flat Avro record, stored as the encoder's kernel reads them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from apflow.errors import BadRequest, DataError
from apflow.io.alerts.avro import NO_DEFAULT, Field, Kind, Record

I8 = NDArray[np.int64]
Known = NDArray[np.bool_] | bool
_TEXT = (Kind.STRING, Kind.BYTES, Kind.FIXED)
_GROUP = {Kind.FLOAT: "singles", Kind.DOUBLE: "doubles", **dict.fromkeys(_TEXT, "text")}
#: Bytes that a value takes at most, its union's branch included; text takes its own length besides.
_ROOM = {Kind.NULL: 0, Kind.BOOLEAN: 2, Kind.FLOAT: 5, Kind.DOUBLE: 9, Kind.INT: 6, Kind.ENUM: 6}
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True, eq=False)
class Layout:
    """Where the fields of a flat record lie in the groups of a `Batch`; arrays run over fields."""

    slots: dict[str, tuple[str, int]]  # group, and row in it, by name
    kinds: NDArray[np.int8]
    slot: NDArray[np.int32]
    branch: NDArray[np.int16]  # the encoded branch of a value; -1 outside a union
    null: NDArray[np.int16]  # the encoded branch of null; -1 where null is not accepted
    required: I8  # positions of the fields that may not be null
    sizes: dict[str, int]  # rows of each group
    room: int  # bytes that a row takes at most, text not counted


@functools.lru_cache(maxsize=64)
def layout(record: Record) -> Layout:
    """Layout of a flat record.

    Raises
    ------
    BadRequest
        A field of the record has parts.
    """
    sizes = dict.fromkeys(("integers", "singles", "doubles", "text"), 0)
    slots, room = {}, 0
    for field in record.fields:
        if field.kind is None:
            raise BadRequest(f"Avro field {record.name}.{field.name} has parts; accepted: scalars, perhaps null")
        group = _GROUP.get(field.kind, "integers")
        slots[field.name] = group, sizes[group]
        sizes[group] += 1
        room += _ROOM.get(field.kind, 11)
    return Layout(
        slots,
        np.array([f.kind for f in record.fields], np.int8),
        np.array([row for _, row in slots.values()], np.int32),
        np.array([-1 if f.branch < 0 else 2 * f.branch for f in record.fields], np.int16),
        np.array([-1 if f.null < 0 else 2 * f.null for f in record.fields], np.int16),
        np.array([i for i, f in enumerate(record.fields) if not f.nullable], np.int64),
        sizes,
        room,
    )


class Batch:
    """Columns of a flat record, grouped by the way they are stored.

    A new one holds the schema's defaults, and null where there are none.

    Parameters
    ----------
    record : `~apflow.io.alerts.avro.Record`
    n : `int`
        Number of rows.
    name : `str`, optional
        What the table is called in messages; the record's name when empty.

    Attributes
    ----------
    known : `numpy.ndarray`, (fields, n), bool
        False where a value is null.
    integers, singles, doubles : `numpy.ndarray`, (fields of the group, n)
        int64 (booleans and positions in enums too), float32 and float64.
    starts, stops : `numpy.ndarray`, (text fields, n), int64
        Where a string, bytes or fixed lies in `text`.
    """

    def __init__(self, record: Record, n: int, name: str = "") -> None:
        self.record, self.n, self.layout, self.name = record, n, layout(record), name or record.name
        self.position = {f.name: i for i, f in enumerate(record.fields)}
        sizes = self.layout.sizes
        self.known = np.zeros((len(record.fields), n), bool)
        self.integers = np.zeros((sizes["integers"], n), np.int64)
        self.singles = np.zeros((sizes["singles"], n), np.float32)
        self.doubles = np.zeros((sizes["doubles"], n), np.float64)
        self.starts, self.stops = (np.zeros((sizes["text"], n), np.int64) for _ in range(2))
        self._text: list[NDArray[np.uint8]] = []
        self._text_length = 0
        for field in record.fields:
            if field.default is not NO_DEFAULT and field.default is not None:
                self._put_default(field)

    def put(self, name: str, values: ArrayLike, known: Known = True) -> None:
        """Set a column of numbers, flags or positions in an enum; what is not `known` is null.

        Raises
        ------
        DataError
            A known value does not fit the field's type.
        """
        i, (group, slot) = self.position[name], self.layout.slots[name]
        target = getattr(self, group)[slot]
        with np.errstate(over="ignore"):
            target[:] = values
        self.known[i] = known
        kind = self.record.fields[i].kind
        if kind == Kind.INT:
            self._refuse(name, target, (target < _INT32.min) | (target > _INT32.max), "an int, -2**31 to 2**31 - 1")
        elif kind == Kind.FLOAT:
            lost = np.isinf(target) & np.isfinite(np.asarray(values))
            self._refuse(name, np.broadcast_to(values, self.n), lost, "|value| < 3.4e38")

    def put_many(self, names: Sequence[str], values: NDArray[Any], known: NDArray[np.bool_]) -> None:
        """Set columns of one type at once, (fields, n), from values that are sure to fit it."""
        places = [self.layout.slots[name] for name in names]
        getattr(self, places[0][0])[[slot for _, slot in places]] = values
        self.known[[self.position[name] for name in names]] = known

    def put_text(self, name: str, data: NDArray[np.uint8], offsets: I8, known: Known = True) -> None:
        """Set a column of strings (UTF-8) or bytes: value i is ``data[offsets[i]:offsets[i + 1]]``.

        Raises
        ------
        DataError
            A known value has not the length of its fixed type.
        """
        self._put_slices(name, data, offsets[:-1], offsets[1:], known)

    def column(self, name: str) -> NDArray[Any]:
        """Values of a column of numbers, of any value where they are null."""
        group, slot = self.layout.slots[name]
        values: NDArray[Any] = getattr(self, group)[slot]
        return values

    def text(self) -> NDArray[np.uint8]:
        """The bytes that `starts` and `stops` point into."""
        return np.concatenate(self._text) if self._text else np.zeros(1, np.uint8)

    def _put_slices(self, name: str, data: NDArray[np.uint8], starts: I8, stops: I8, known: Known) -> None:
        i, (_, slot) = self.position[name], self.layout.slots[name]
        self.starts[slot], self.stops[slot] = starts + self._text_length, stops + self._text_length
        self.known[i] = known
        self._text.append(data)
        self._text_length += len(data)
        size = getattr(self.record.fields[i].type, "size", 0)
        if size:
            lengths = self.stops[slot] - self.starts[slot]
            self._refuse(name, lengths, lengths != size, f"{size} bytes")

    def _put_default(self, field: Field) -> None:
        value, n = field.default, self.n
        if field.kind in _TEXT:
            raw = np.frombuffer(value.encode("utf-8" if field.kind == Kind.STRING else "latin-1"), np.uint8)
            self._put_slices(field.name, raw, np.zeros(n, np.int64), np.full(n, len(raw)), True)
        else:
            symbols = getattr(field.type, "symbols", ())
            self.put(field.name, symbols.index(value) if symbols else value)

    def _refuse(self, name: str, values: NDArray[Any], bad: NDArray[np.bool_], accepted: str) -> None:
        bad = bad & self.known[self.position[name]]
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(f"{self.name}.{name} is {values[row].item()} in row {row}; accepted: {accepted}")
