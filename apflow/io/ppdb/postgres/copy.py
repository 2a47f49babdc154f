"""Bulk transfer: Arrow tables to and from PostgreSQL in its binary format.

Two ways out of the database. `copy_out` is COPY BINARY: it streams any amount.
`fetch` is a prepared SELECT whose rows the server packs into one value each: it
takes bind parameters and is planned once a session, which saves a millisecond
on a table of many partitions, and is for a thousand rows or less.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
from numpy.typing import NDArray
from psycopg import pq, sql
from psycopg.errors import error_from_result

from apflow.errors import DataError
from apflow.io.ppdb.postgres import wire

_SIGNATURE = b"PGCOPY\n\xff\r\n\0"
_HEADER = _SIGNATURE + bytes(8)
_TRAILER = b"\xff\xff"
#: PostgreSQL counts microseconds since 2000-01-01.
_EPOCH_US = 946_684_800_000_000
#: Arrow's types by PostgreSQL's; what the codec knows.
ARROW: Mapping[str, pa.DataType] = {
    "float8": pa.float64(),
    "float4": pa.float32(),
    "int8": pa.int64(),
    "int4": pa.int32(),
    "int2": pa.int16(),
    "bool": pa.bool_(),
    "timestamp": pa.timestamp("us"),
    "text": pa.string(),
    "bytea": pa.binary(),
}
_WIDTH = {"float8": 8, "float4": 4, "int8": 8, "int4": 4, "int2": 2, "bool": 1, "timestamp": 8, "text": 0, "bytea": 0}

type Cursor = psycopg.Cursor[tuple[Any, ...]]


def _widths(types: Sequence[str]) -> NDArray[np.int64]:
    for kind in types:
        if kind not in _WIDTH:
            raise DataError(f"PostgreSQL type {kind!r} is not one that is transferred; accepted: {', '.join(_WIDTH)}")
    return np.array([_WIDTH[t] for t in types], np.int64)


def _rows_of(flags: NDArray[np.bool_]) -> NDArray[np.int64]:
    """0, 1, 2... for those that are flagged, -1 for the others."""
    return np.where(flags, np.cumsum(flags) - 1, -1).astype(np.int64)


def encode(table: pa.Table, types: Sequence[str]) -> bytes:
    """A table as a COPY BINARY stream.

    Parameters
    ----------
    table
        Any number of rows; nulls are NULL, NaN stays NaN.
    types
        PostgreSQL's type of each column: a key of `ARROW`.

    Raises
    ------
    DataError
        A column cannot be cast to its type without loss.
    """
    width = _widths(types)
    arrays = [_cast(table, i, kind) for i, kind in enumerate(types)]
    values = [_value_bytes(a, kind) for a, kind in zip(arrays, types, strict=True)]
    starts, block = _block(values)
    texts = [_offsets(a) for a, w in zip(arrays, width, strict=True) if not w]
    masks = [np.asarray(a.is_valid().to_numpy(zero_copy_only=False), np.uint8) for a in arrays if a.null_count]
    nulls = np.array([a.null_count for a in arrays], np.int64)
    n = table.num_rows
    size = n * (2 + 4 * len(width)) + int(np.sum((n - nulls) * width)) + sum(int(t[-1]) for t in texts)
    out = np.empty(size, np.uint8)
    written = wire.write_rows(
        n,
        block,
        starts,
        width,
        _rows_of(width == 0),
        np.stack(texts) if texts else np.empty((0, n + 1), np.int64),
        _rows_of(nulls > 0),
        np.stack(masks) if masks else np.empty((0, n), np.uint8),
        out,
    )
    return b"".join((_HEADER, out[:written].data, _TRAILER))


def _starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where columns of so many bytes begin in a block, and its end: multiples of 8."""
    return np.concatenate([[0], np.cumsum(lengths + 7 & ~7)]).astype(np.int64)


def _block(values: Sequence[NDArray[np.uint8]]) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Columns in one block of memory, and where each begins."""
    starts = _starts(np.array([len(v) for v in values], np.int64))
    block = np.empty(int(starts[-1]), np.uint8)
    for start, column in zip(starts, values, strict=False):
        block[start : start + len(column)] = column
    return starts[:-1], block


def _cast(table: pa.Table, i: int, kind: str) -> pa.Array:
    column = table.column(i)
    try:
        values = column.cast(ARROW[kind])
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise DataError(f"column {table.column_names[i]} is {column.type}; accepted: {kind}: {error}") from error
    return values.combine_chunks() if values.num_chunks != 1 else values.chunk(0)


def _value_bytes(array: pa.Array, kind: str) -> NDArray[np.uint8]:
    """The values of a column as bytes; what stands in a null's place does not matter."""
    if kind in ("text", "bytea"):
        offsets, data = array.buffers()[1:]
        if data is None or not len(array):
            return np.empty(0, np.uint8)
        edges = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
        return np.frombuffer(data, np.uint8)[edges[0] : edges[-1]]
    if kind == "bool":
        array = array.cast(pa.uint8())
    elif kind == "timestamp":
        array = array.cast(pa.int64())
    width = _WIDTH[kind]
    values = np.frombuffer(array.buffers()[1] or b"", np.uint8)[
        array.offset * width : (array.offset + len(array)) * width
    ]
    if kind == "timestamp":
        return (values.view(np.int64) - _EPOCH_US).view(np.uint8)
    return values


def _offsets(array: pa.Array) -> NDArray[np.int64]:
    """Where each text begins in `_value_bytes`, and the last one's end."""
    if not len(array):
        return np.zeros(1, np.int64)
    edges = np.frombuffer(array.buffers()[1], np.int32)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    return np.asarray(edges - edges[0])


def decode(
    buffer: bytes | bytearray | memoryview, names: Sequence[str], types: Sequence[str], *, packed: bool = False
) -> pa.Table:
    """Rows of a COPY BINARY stream, or, `packed`, of concatenated ``record_send`` values.

    Raises
    ------
    DataError
        The bytes are not rows of these types; the message names the column.
    """
    width = _widths(types)
    data = np.frombuffer(buffer, np.uint8)
    data.flags.writeable = False  # of one type for the compiled loops, whatever it was made from
    begin = 0 if packed else len(_HEADER)
    if not packed and bytes(data[: len(_SIGNATURE)]) != _SIGNATURE:
        raise DataError("the bytes do not begin as COPY BINARY does")
    # Room for as many rows as the bytes can hold: memory that is not touched costs nothing.
    room = len(data) // (4 + 8 * len(width) if packed else 2 + 4 * len(width)) + 1
    text = _rows_of(width == 0)
    starts = _starts(width * room)
    block = np.empty(int(starts[-1]), np.uint8)
    valid = np.empty((len(width), room), np.uint8)
    place = np.empty((int(text.max(initial=-1)) + 1, room, 2), np.int64)
    rows, column, found = wire.read_rows(data, begin, packed, width, starts[:-1], block, valid, text, place)
    if column >= 0:
        raise DataError(misfit(rows, column, found, names, types))
    valid = valid[:, :rows]
    bitmaps = [
        None if whole else pa.py_buffer(np.packbits(flags, bitorder="little"))
        for flags, whole in zip(valid, valid.all(axis=1), strict=True)
    ]
    columns = [
        _column(kind, block[starts[c] : starts[c] + width[c] * rows], bitmaps[c])
        if width[c]
        else texts(kind, data, place[text[c], :rows], bitmaps[c])
        for c, kind in enumerate(types)
    ]
    return pa.table(columns, names=list(names))


def misfit(row: int, column: int, found: int, names: Sequence[str], types: Sequence[str]) -> str:
    if column < len(names):
        kind = types[column]
        return f"row {row}, column {names[column]} has {found} bytes; accepted: the {_WIDTH[kind]} of {kind}"
    if found == wire.CUT_SHORT:
        return f"row {row} is cut short"
    return f"row {row} has {found} columns; accepted: {len(names)}, {', '.join(names[:3])}..."


def _column(kind: str, values: NDArray[np.uint8], bitmap: pa.Buffer | None) -> pa.Array:
    if kind == "bool":
        bits = pa.py_buffer(np.packbits(values, bitorder="little"))
        return pa.Array.from_buffers(ARROW[kind], len(values), [bitmap, bits])
    if kind == "timestamp":
        values = (values.view(np.int64) + _EPOCH_US).view(np.uint8)
    return pa.Array.from_buffers(ARROW[kind], len(values) // _WIDTH[kind], [bitmap, pa.py_buffer(values)])


def texts(kind: str, data: NDArray[np.uint8], place: NDArray[np.int64], bitmap: pa.Buffer | None) -> pa.Array:
    offsets = np.zeros(len(place) + 1, np.int32)
    np.cumsum(place[:, 1] - place[:, 0], out=offsets[1:])
    out = np.empty(int(offsets[-1]), np.uint8)
    wire.gather(data, place, offsets, out)
    return pa.Array.from_buffers(ARROW[kind], len(place), [bitmap, pa.py_buffer(offsets), pa.py_buffer(out)])


def columns_sql(names: Sequence[str], alias: str | None = None) -> sql.SQL:
    """A list of quoted columns, for SELECT or COPY."""
    return _columns_sql(tuple(names), alias)


@functools.lru_cache(maxsize=256)
def _columns_sql(names: tuple[str, ...], alias: str | None) -> sql.SQL:
    # Quoted here, once: psycopg asks libpq for each of a hundred names at each statement.
    prefix = f"{_quoted(alias)}." if alias else ""
    return sql.SQL(", ".join(prefix + _quoted(n) for n in names))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""').replace("{", "{{").replace("}", "}}") + '"'


def ids_sql(ids: Sequence[int] | NDArray[np.int64]) -> sql.SQL:
    """Many ids as an array literal, for ``= ANY(...)`` where bind parameters cannot be had."""
    array = np.asarray(ids, np.int64)
    return sql.SQL("'{" + ",".join(map(str, array.tolist())) + "}'::int8[]")


def types_of(rows: pa.Table) -> list[str]:
    """PostgreSQL's types that Arrow's columns correspond to.

    Raises
    ------
    DataError
        There is none for a column.
    """
    kinds = {arrow: kind for kind, arrow in ARROW.items()} | {pa.large_string(): "text"}
    for field in rows.schema:
        if field.type not in kinds:
            raise DataError(f"column {field.name} is {field.type}; accepted: {', '.join(map(str, kinds))}")
    return [kinds[field.type] for field in rows.schema]


def copy_in(
    cursor: Cursor, table_name: str, rows: pa.Table, types: Sequence[str] | None = None, data: bytes = b""
) -> int:
    """Append rows to a table by COPY BINARY; gives their number.

    Parameters
    ----------
    cursor, table_name
        Where to.
    rows
        Columns are matched by name; those of the table that are left out get their default.
    types
        PostgreSQL's types of the table's columns, where they are not those of `types_of`.
    data
        What `encode` made of the rows, where somebody did already.
    """
    statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
        sql.Identifier(table_name), columns_sql(rows.column_names)
    )
    data = data or encode(rows, types_of(rows) if types is None else types)
    with cursor.copy(statement) as copy:
        copy.write(data)
    return int(rows.num_rows)


def copy_out(
    cursor: Cursor, query: sql.Composable, names: Sequence[str], types: Sequence[str], params: Any = None
) -> pa.Table:
    """Rows of a SELECT by COPY BINARY.

    COPY takes no bind parameters: `params` are quoted into the statement by
    psycopg; `ids_sql` is the faster way for many ids.
    """
    statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT BINARY)").format(query)
    data = bytearray()
    pgconn = cursor.connection.pgconn
    with cursor.copy(statement, params) as copy:
        while part := copy.read():
            data += part
            # psycopg waits for each row in its event loop; rows that libpq holds already need not go through it.
            n, part = pgconn.get_copy_data(1)
            while n > 0:
                data += part
                n, part = pgconn.get_copy_data(1)
            if n < 0:
                _finish(pgconn)
                break
    return decode(data, names, types)


def _finish(pgconn: pq.abc.PGconn) -> None:
    """After the last row: the outcome."""
    result = pgconn.get_result()
    while pgconn.get_result() is not None:
        pass
    if result is not None and result.status != pq.ExecStatus.COMMAND_OK:
        raise error_from_result(result)


def fetch(
    cursor: Cursor, query: sql.Composable, names: Sequence[str], types: Sequence[str], params: Any = None
) -> pa.Table:
    """Rows of a prepared SELECT, each packed by the server into one value.

    The rows of a result are held by libpq: for some ten thousand rows, not for millions.
    """
    statement = sql.SQL("SELECT packed FROM ({}) packed").format(query)
    with cursor.connection.cursor(binary=True) as packed:
        result = packed.execute(statement, params, prepare=True).pgresult
        rows = () if result is None else [result.get_value(i, 0) or b"" for i in range(result.ntuples)]
    return decode(b"".join(rows), names, types, packed=True)
