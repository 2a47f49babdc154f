"""Filling the databases of `bench_ppdb.py` at once, and the limit: the bare COPY of the rows that a visit moves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

import duckdb
import numpy as np
import psycopg
import pyarrow as pa
from ppdb_workload import DETECTORS, HISTORY, NOW_MJD, Field, mjd_of
from psycopg import sql

from apflow.io.ppdb import open_ppdb
from apflow.io.ppdb.postgres import connect, ddl, partitions
from apflow.io.ppdb.postgres.copy import columns_sql, copy_in, encode, ids_sql
from apflow.io.ppdb.tables import stored_columns, to_arrow
from apflow.model import schema


def load(url: str, fields: Sequence[Field]) -> None:
    """Make a PPDB where there is none, and add a year of history of each field to it."""
    with open_ppdb(url, create=True):
        pass
    if url.startswith("duckdb://"):
        with duckdb.connect(url.removeprefix("duckdb://")) as connection:
            for name, rows in _rows(fields, [c.name for c in stored_columns("DiaObjectLast")]):
                connection.register("rows", rows)
                connection.execute(f'INSERT INTO "{name}" BY NAME SELECT * FROM rows')
        return
    with connect.connect(url) as server:
        partitions.ensure(server, mjd_of(0), mjd_of(HISTORY + 40))
        for name, rows in _rows(fields, ddl.stored_order("DiaObjectLast")):
            copy_in(server.cursor(), name, rows, [ddl.types(name)[c] for c in rows.column_names])
            server.commit()
    with connect.connect(url, autocommit=True) as server:
        server.execute("VACUUM ANALYZE")


def _rows(fields: Sequence[Field], last: Sequence[str]) -> Iterator[tuple[str, pa.Table]]:
    for field in fields:
        for k in range(HISTORY):
            yield "DiaSource", to_arrow(field.sources(k), "DiaSource")
            yield "DiaForcedSource", to_arrow(field.forced(k), "DiaForcedSource")
        objects = to_arrow(field.objects(HISTORY - 1), "DiaObject")
        yield "DiaObject", objects
        yield "DiaObjectLast", objects.select(list(last))


def bare_copy_s(url: str, field: Field, repeat: int) -> dict[str, float]:
    """Seconds of the bare COPY of what a visit reads, thrown away, and of what it writes, encoded before."""
    ids = np.concatenate([field.object_ids(d) for d in DETECTORS])
    reads, writes = [], []
    with connect.connect(url) as server:
        for k in range(HISTORY + 30, HISTORY + 30 + repeat):
            server.execute("SET LOCAL enable_seqscan = off")
            start = time.perf_counter()
            for name in ("DiaObject", "DiaSource", "DiaForcedSource"):
                _copy_away(server, name, ids)
            server.rollback()
            reads.append(time.perf_counter() - start)
            writes.append(_copy_back(server, field, k))
    return {"read": statistics.median(reads), "write": statistics.median(writes)}


def _copy_away(server: psycopg.Connection[Any], name: str, ids: np.ndarray) -> None:
    which = sql.SQL('"validityStartMjdTai" = {}').format(sql.Literal(mjd_of(HISTORY - 1)))
    if name != "DiaObject":
        which = sql.SQL('"midpointMjdTai" BETWEEN {} AND {}').format(
            sql.Literal(NOW_MJD - 365.0), sql.Literal(mjd_of(HISTORY - 1))
        )
    statement = sql.SQL('COPY (SELECT {} FROM {} WHERE "diaObjectId" = ANY({}) AND {}) TO STDOUT (FORMAT BINARY)')
    columns = columns_sql(schema.table(name).names)
    with server.cursor().copy(statement.format(columns, sql.Identifier(name), ids_sql(ids), which)) as copy:
        while copy.read():
            # Rows that libpq holds already are thrown away without psycopg's event loop, which costs more than they do.
            while (got := server.pgconn.get_copy_data(1)[0]) > 0:
                pass
            if got < 0:
                while server.pgconn.get_result() is not None:
                    pass
                break


def _copy_back(server: psycopg.Connection[Any], field: Field, k: int) -> float:
    """Rows of a visit into the very tables, one transaction.

    Those of DiaObjectLast are there already: they go to an empty table that is made like it.
    """
    server.execute('DROP TABLE IF EXISTS bare_last; CREATE TABLE bare_last (LIKE "DiaObjectLast" INCLUDING ALL)')
    server.commit()
    objects = to_arrow(field.objects(k), "DiaObject")
    ready = []
    for name, target, rows in (
        ("DiaObject", "DiaObject", objects),
        ("DiaObjectLast", "bare_last", objects.select(list(ddl.types("DiaObjectLast")))),
        ("DiaSource", "DiaSource", to_arrow(field.sources(k), "DiaSource")),
        ("DiaForcedSource", "DiaForcedSource", to_arrow(field.forced(k), "DiaForcedSource")),
    ):
        data = encode(rows, [ddl.types(name)[c] for c in rows.column_names])
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)")
        ready.append((statement.format(sql.Identifier(target), columns_sql(rows.column_names)), data))
    start = time.perf_counter()
    for statement_, data in ready:
        with server.cursor().copy(statement_) as copy:
            copy.write(data)
    server.commit()
    return time.perf_counter() - start
