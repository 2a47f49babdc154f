"""Rows of a few tables by one prepared statement, each table's packed into one value by the server.

A round trip, and what a driver does for each row or column, cost more than the
rows of a detector do. The values go from the bytes of the answer to the memory
of the frames without a stop.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.io.ppdb.blocks import I8, layout
from apflow.io.ppdb.postgres import ddl, wire
from apflow.io.ppdb.postgres.copy import columns_sql, misfit, texts
from apflow.io.ppdb.postgres.pool import Connection


@functools.cache
def packed_sql(name: str, source: str) -> str:
    """A SELECT of the number of rows of a table and of the rows, for `rows_of`.

    Parameters
    ----------
    name
        The table.
    source
        FROM clause, and what follows it, in which the table is ``t``.
    """
    columns = columns_sql(layout(name).names, "t").as_string()
    return f"SELECT count(*) n, coalesce(string_agg(record_send(ROW({columns})), ''), '') data FROM {source}"


@functools.cache
def _statement(selects: tuple[str, ...]) -> bytes:
    """One SELECT of all that `packed_sql` selects."""
    return f"SELECT * FROM {', '.join(f'({s}) s{i}' for i, s in enumerate(selects))}".encode()


def rows_of(con: Connection, wanted: Sequence[tuple[str, str]], params: Sequence[Any]) -> list[Packed]:
    """Rows of some tables, each with its SELECT by `packed_sql`; to be called with few different SELECTs."""
    names, selects = zip(*wanted, strict=True)
    with con.cursor(binary=True) as cursor:
        found = cursor.execute(_statement(selects), params, prepare=True).fetchone()
    assert found is not None
    return [Packed(name, *found[2 * i : 2 * i + 2]) for i, name in enumerate(names)]


def array_text(values: NDArray[Any]) -> str:
    """An array as PostgreSQL writes it: quicker made than an adapter of lists makes it."""
    return "{" + ",".join(map(repr, values.tolist())) + "}"


class Packed:
    """Rows of a table as the server packed them.

    Parameters
    ----------
    name
        The table.
    n_rows
        Number of rows.
    data
        The rows as ``record_send`` writes them.

    Raises
    ------
    DataError
        The bytes are not so many rows of this table.
    """

    def __init__(self, name: str, n_rows: int, data: bytes) -> None:
        self.name, self.n_rows = name, n_rows
        self._made = layout(name)
        self._data = np.frombuffer(data, np.uint8)
        self._fields = np.empty((len(self._made.width), n_rows), np.int64)
        rows, column, found = wire.find_rows(self._data, self._made.width, self._fields)
        if column < 0 and rows < n_rows:
            column, found = len(self._made.names), wire.CUT_SHORT
        if column >= 0:
            kinds = ddl.types(name)
            names = self._made.names
            raise DataError(f"PPDB {name}: {misfit(rows, column, found, names, [kinds[c] for c in names])}")

    def column(self, name: str) -> NDArray[Any]:
        """A column of numbers, none of which is null."""
        i = self._made.names.index(name)
        values = np.empty(self.n_rows, self._made.types[i])
        wire.take_column(self._data, self._fields[i], values.itemsize, values.view(np.uint8))
        return values

    def frame(self, take: I8) -> pd.DataFrame:
        """Some rows, in some order, as a conforming frame."""
        made, room = self._made, self._made.room(len(take))
        place = np.empty((len(made.texts), len(take), 2), np.int64)
        wire.take_rows(
            self._data,
            self._fields,
            take,
            made.width,
            made.null,
            made.mask,
            made.text,
            room.starts,
            room.memory,
            room.masks.view(np.uint8),
            place,
        )
        return room.frame([_text(self._data, p) for p in place])


def _text(data: NDArray[np.uint8], place: I8) -> pa.Array:
    null = place[:, 0] == 0  # no value begins where the first row does
    bitmap = pa.py_buffer(np.packbits(~null, bitorder="little")) if null.any() else None
    return texts("text", data, place, bitmap)
