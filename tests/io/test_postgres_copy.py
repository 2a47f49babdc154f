"""The binary format of PostgreSQL, against what psycopg and the server make of the same values."""

from __future__ import annotations

import datetime as dt
import math
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from psycopg import sql

from apflow.errors import DataError
from apflow.io.ppdb.postgres.connect import connect, errors
from apflow.io.ppdb.postgres.copy import ARROW, copy_in, copy_out, decode, encode, fetch, ids_sql
from apflow.operate.services import PostgresServer

TYPES = tuple(ARROW)
NAMES = tuple(f'the "{kind}"' for kind in TYPES)
ALL = sql.SQL("SELECT * FROM things ORDER BY place")

_INTEGERS = {"int8": 63, "int4": 31, "int2": 15}
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "float8": st.floats() | st.sampled_from([-0.0, 5e-324, math.inf, -math.inf, math.nan]),
    "float4": st.floats(width=32) | st.sampled_from([-0.0, math.inf, math.nan]),
    **{kind: st.integers(-(2**bits), 2**bits - 1) for kind, bits in _INTEGERS.items()},
    "bool": st.booleans(),
    "timestamp": st.datetimes(dt.datetime(1900, 1, 1), dt.datetime(2200, 1, 1)),
    "text": st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20),
    "bytea": st.binary(max_size=20),
}
ROW = st.tuples(*(st.none() | VALUES[kind] for kind in TYPES))


@pytest.fixture(scope="module")
def connection(postgres: PostgresServer) -> Iterator[psycopg.Connection[Any]]:
    with connect(postgres.database(), autocommit=True) as made:
        columns = sql.SQL(", ").join(
            sql.SQL("{} {}").format(sql.Identifier(n), sql.SQL(t)) for n, t in zip(NAMES, TYPES, strict=True)
        )
        made.execute(sql.SQL("CREATE TABLE things ({}, place serial)").format(columns))
        yield made


def exact(values: Any) -> list[Any]:
    """Values that are equal only where every bit is."""
    return [struct.pack("<d", v) if isinstance(v, float) else v for v in values]


def arrow(rows: list[tuple[Any, ...]]) -> pa.Table:
    columns = [pa.array([row[i] for row in rows], ARROW[kind]) for i, kind in enumerate(TYPES)]
    return pa.table(columns, names=list(NAMES))


def as_rows(table: pa.Table) -> list[list[Any]]:
    return [exact(row.values()) for row in table.to_pylist()]


SELECTED = sql.SQL("SELECT {} FROM things ORDER BY place").format(sql.SQL(", ").join(map(sql.Identifier, NAMES)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, max_size=5))
def test_values_arrive_as_psycopg_reads_them(connection: psycopg.Connection[Any], rows: list[tuple[Any, ...]]) -> None:
    connection.execute("TRUNCATE things")
    assert copy_in(connection.cursor(), "things", arrow(rows)) == len(rows)
    found = connection.cursor(binary=True).execute(SELECTED).fetchall()
    assert [exact(row) for row in found] == [exact(row) for row in rows]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(ROW, max_size=5))
def test_values_that_were_inserted_are_read(connection: psycopg.Connection[Any], rows: list[tuple[Any, ...]]) -> None:
    connection.execute("TRUNCATE things")
    marks = sql.SQL(", ").join(sql.SQL("%s::{}").format(sql.SQL(kind)) for kind in TYPES)
    if rows:
        connection.cursor().executemany(sql.SQL("INSERT INTO things VALUES ({})").format(marks), rows)
    copied = copy_out(connection.cursor(), SELECTED, NAMES, TYPES)
    copied.validate(full=True)
    assert [f.type for f in copied.schema] == list(ARROW.values())
    assert as_rows(copied) == [exact(row) for row in rows]
    assert as_rows(fetch(connection.cursor(), SELECTED, NAMES, TYPES)) == as_rows(copied)


def many(n: int) -> pa.Table:
    """Rows of all types, a third of their values null."""
    rng = np.random.default_rng(5)
    values: dict[str, Any] = {
        "float8": rng.normal(size=n),
        "float4": rng.normal(size=n).astype(np.float32),
        "int8": rng.integers(-(2**63), 2**63 - 1, n),
        "int4": rng.integers(-(2**31), 2**31 - 1, n, np.int32),
        "int2": rng.integers(-(2**15), 2**15 - 1, n, np.int16),
        "bool": rng.random(n) < 0.5,
        "timestamp": rng.integers(0, 2**50, n).astype("datetime64[us]"),
        "text": np.array(["ugrizy"[: i % 7] for i in range(n)], object),
        "bytea": np.array([bytes(i % 5) for i in range(n)], object),
    }
    columns = [pa.array(values[kind], ARROW[kind], mask=rng.random(n) < 0.3) for kind in TYPES]
    return pa.table(columns, names=list(NAMES))


def test_a_stream_is_byte_for_byte_the_servers(connection: psycopg.Connection[Any]) -> None:
    table = many(1000)
    connection.execute("TRUNCATE things")
    copy_in(connection.cursor(), "things", table)
    with connection.cursor().copy(sql.SQL("COPY ({}) TO STDOUT (FORMAT BINARY)").format(SELECTED)) as copy:
        stream = b"".join(bytes(part) for part in copy)
    assert encode(table, TYPES) == stream
    assert decode(stream, NAMES, TYPES).equals(table)
    assert fetch(connection.cursor(), SELECTED, NAMES, TYPES).equals(table)


def test_slices_chunks_and_dictionaries_are_written_as_their_values() -> None:
    table = many(300)
    text, flags = NAMES[TYPES.index("text")], NAMES[TYPES.index("bool")]
    pieces = pa.concat_tables([table.slice(0, 100), table.slice(100, 7), table.slice(107)])
    coded = pieces.set_column(TYPES.index("text"), text, table.column(text).dictionary_encode())
    assert pieces.column(flags).num_chunks == 3
    assert encode(coded, TYPES) == encode(table, TYPES)
    assert decode(encode(table.slice(13, 150), TYPES), NAMES, TYPES).equals(table.slice(13, 150))


@pytest.mark.parametrize("n", [0, 1, 127, 128, 129, 256])
def test_any_number_of_rows(n: int) -> None:
    assert decode(encode(many(n), TYPES), NAMES, TYPES).equals(many(n))


def test_parameters_are_quoted(connection: psycopg.Connection[Any]) -> None:
    connection.execute("TRUNCATE things")
    copy_in(
        connection.cursor(),
        "things",
        arrow([(1.5, None, i, None, None, None, None, t, None) for i, t in enumerate(["a'b", "%s"])]),
    )
    for text in ("a'b", "%s"):
        query = sql.SQL("SELECT {1} FROM things WHERE {0} = %s").format(
            sql.Identifier('the "text"'), sql.Identifier('the "int8"')
        )
        for read in (copy_out, fetch):
            found = read(connection.cursor(), query, ["id"], ["int8"], [text])
            assert found.column("id").to_pylist() == [int(text == "%s")]
    ids = np.array([1, -(2**63), 2**63 - 1])
    query = sql.SQL("SELECT {0} FROM things WHERE {0} = ANY({1})").format(sql.Identifier('the "int8"'), ids_sql(ids))
    assert copy_out(connection.cursor(), query, ["id"], ["int8"]).column("id").to_pylist() == [1]


def test_a_value_that_its_type_cannot_hold_is_refused_by_name() -> None:
    table = pa.table({"detector": pa.array([1, 40_000])})
    with pytest.raises(DataError, match=r"column detector is int64; accepted: int2: .*40000"):
        encode(table, ["int2"])
    with pytest.raises(DataError, match="type 'money' is not one that is transferred; accepted: float8,"):
        encode(table, ["money"])
    with pytest.raises(DataError, match="column detector is uint8; accepted: double,"):
        copy_in(None, "things", pa.table({"detector": pa.array([1], pa.uint8())}))  # type: ignore[arg-type]


def test_rows_that_are_not_as_expected_are_refused(connection: psycopg.Connection[Any]) -> None:
    query = sql.SQL("SELECT i::int8 AS id, i::float4 AS flux FROM generate_series(0, 200) i")
    for read in (copy_out, fetch):
        with pytest.raises(DataError, match="row 0, column flux has 4 bytes; accepted: the 8 of float8"):
            read(connection.cursor(), query, ["id", "flux"], ["int8", "float8"])
        with pytest.raises(DataError, match="row 0 has 2 columns; accepted: 1, id"):
            read(connection.cursor(), query, ["id"], ["int8"])
    stream = encode(pa.table({"id": range(200)}), ["int8"])
    for missing in (1, 2, 3, 5, 11, 13, 14):
        with pytest.raises(DataError, match=r"row (199|200) is cut short"):
            decode(stream[:-missing], ["id"], ["int8"])
    with pytest.raises(DataError, match="do not begin as COPY BINARY does"):
        decode(b"id\n1\n", ["id"], ["int8"])


def test_an_error_in_the_middle_of_a_copy_is_the_servers_and_leaves_the_connection_usable(
    connection: psycopg.Connection[Any],
) -> None:
    query = sql.SQL("SELECT 1 / (i - {}) AS x FROM generate_series(1, 60000) i")
    for row in (1, 30, 5_000, 59_999, 60_000):
        with pytest.raises(DataError, match="division by zero"), errors():
            copy_out(connection.cursor(), query.format(row), ["x"], ["int4"])
        assert copy_out(connection.cursor(), query.format(0), ["x"], ["int4"]).num_rows == 60_000


def test_a_copy_that_is_refused_names_table_and_column(connection: psycopg.Connection[Any]) -> None:
    connection.execute("CREATE TABLE strict (id int8 PRIMARY KEY, flux float4 NOT NULL)")
    twice = pa.table({"id": [7, 7], "flux": pa.array([1.0, 2.0], pa.float32())})
    with pytest.raises(DataError, match=r"strict: a row with this key is stored already: Key \(id\)=\(7\)"), errors():
        copy_in(connection.cursor(), "strict", twice)
    with pytest.raises(DataError, match=r"strict\.flux: null value"), errors():
        copy_in(connection.cursor(), "strict", pa.table({"id": [7], "flux": pa.array([None], pa.float32())}))
    assert connection.execute("SELECT count(*) FROM strict").fetchone() == (0,)
