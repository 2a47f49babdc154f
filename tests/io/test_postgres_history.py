"""Histories from PostgreSQL: rows that the server packs, and detectors that are read in pieces."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pyarrow as pa
import pytest
from psycopg import sql

from apflow.errors import DataError
from apflow.io.ppdb import open_ppdb
from apflow.io.ppdb.interface import Wanted
from apflow.io.ppdb.postgres import ddl
from apflow.io.ppdb.postgres.connect import connect
from apflow.io.ppdb.postgres.copy import columns_sql, copy_in, copy_out
from apflow.io.ppdb.postgres.packed import Packed, packed_sql, rows_of
from apflow.io.ppdb.tables import stored_columns, to_frame
from apflow.model import schema
from apflow.operate.services import PostgresServer
from tests.io import ppdb_night as night

type Connection = psycopg.Connection[tuple[Any, ...]]


def values(kind: str, rng: np.random.Generator, n: int) -> np.ndarray:
    """Values of a pandas dtype, integers to their limits."""
    if kind == "str":
        return np.array(["", "r", "ugrizy"], object)[rng.integers(0, 3, n)]
    dtype = np.dtype("bool" if kind == "boolean" else kind.lower())
    if dtype.kind == "i":
        limits = np.iinfo(dtype)
        return rng.integers(limits.min, limits.max, n, dtype)
    return rng.random(n) < 0.5 if dtype.kind == "b" else rng.normal(size=n).astype(dtype)


@pytest.fixture(scope="module")
def con(postgres: PostgresServer) -> Iterator[Connection]:
    with connect(postgres.database()) as made:
        ddl.create(made)
        yield made


def random_rows(name: str, n: int) -> pa.Table:
    """Rows of a table: every type to its limits, every third value null where it may be."""
    rng = np.random.default_rng(3)
    columns = {}
    for c in stored_columns(name):
        columns[c.name] = pa.array(values(c.dtype, rng, n), mask=rng.random(n) < 0.3 if c.nullable else None)
    key = schema.table(name).primary_key[0]
    columns[key] = pa.array(np.arange(n) + 2**60)
    return pa.table(columns)


@pytest.mark.parametrize("n", [0, 1, 300])
@pytest.mark.parametrize("name", ["DiaSource", "DiaObject", "DiaForcedSource"])
def test_packed_rows_are_the_rows_that_copy_gives(con: Connection, name: str, n: int) -> None:
    con.execute(sql.SQL("TRUNCATE {}").format(sql.Identifier(name)))
    rows, kinds = random_rows(name, n), ddl.types(name)
    copy_in(con.cursor(), name, rows, [kinds[c] for c in rows.column_names])
    (packed,) = rows_of(con, [(name, packed_sql(name, f'"{name}" t'))], [])
    names = schema.table(name).names
    query = sql.SQL("SELECT {} FROM {}").format(columns_sql(names), sql.Identifier(name))
    copied = copy_out(con.cursor(), query, names, [kinds[c] for c in names])
    take = np.random.default_rng(4).integers(0, max(n, 1), 2 * n)  # in any order, some twice
    found = packed.frame(take)
    pd.testing.assert_frame_equal(found, to_frame(copied, name, take), check_exact=True)
    assert tuple(found.dtypes) == schema.table(name).dtypes and found.attrs == schema.attrs(name)
    key = schema.table(name).primary_key[0]
    assert packed.column(key).tolist() == copied.column(key).to_pylist()


def test_bytes_that_are_not_the_rows_are_refused(con: Connection) -> None:
    data = con.cursor(binary=True).execute("SELECT record_send(ROW(1::int8, 2.0::float8, 3.0::float8))").fetchone()
    assert data is not None
    with pytest.raises(DataError, match="PPDB DrpObject: row 0 has 3 columns; accepted: 4, objectId"):
        Packed("DrpObject", 1, data[0])
    with pytest.raises(DataError, match="PPDB DrpObject: row 0 is cut short"):
        Packed("DrpObject", 1, b"")
    with pytest.raises(DataError, match="PPDB DrpObject: row 0 is cut short"):
        Packed("DrpObject", 1, data[0][:2])


def test_a_detector_with_very_many_rows_is_read_in_pieces(postgres: PostgresServer) -> None:
    url = postgres.database()
    with open_ppdb(url, create=True) as ppdb:
        for k in range(3):
            night.store(ppdb, [night.process(ppdb, k, d) for d in range(2)])
        new = [night.sources(3, d) for d in range(2)]
        asked = [
            Wanted(night.regions()[d], s["ra"].to_numpy(), s["dec"].to_numpy(), night.mjd(3)) for d, s in enumerate(new)
        ]
        options = {"margin_arcsec": 20.0, "radius_arcsec": 1.0}
        whole = ppdb.getHistory(asked, **options)
        with connect(url) as con:
            con.execute('UPDATE "DiaObjectLast" SET "nDiaSources" = 30000')  # three objects a piece
        pieces = ppdb.getHistory(asked, **options)
    for a, b in zip(whole, pieces, strict=True):
        assert len(b.sources) == 30
        for name in ("objects", "sources", "forced", "drp"):
            pd.testing.assert_frame_equal(getattr(a, name), getattr(b, name), check_exact=True)
            assert getattr(a, name).attrs == getattr(b, name).attrs


def test_a_current_version_that_is_missing_is_told(postgres: PostgresServer) -> None:
    url = postgres.database()
    with open_ppdb(url, create=True) as ppdb:
        night.store(ppdb, [night.process(ppdb, 0, 0)])
        lost = ppdb.table("DiaObject")["diaObjectId"].iloc[3]
        with connect(url) as con:
            con.execute('DELETE FROM "DiaObject" WHERE "diaObjectId" = %s', [int(lost)])
        with pytest.raises(DataError, match=f"DiaObject {lost} has not the current version .* apflow ppdb check"):
            ppdb.getHistory(
                [Wanted(night.regions()[0], *night.places(0), night.mjd(1))], margin_arcsec=20.0, radius_arcsec=1.0
            )
