"""The tables of the PPDB in PostgreSQL, as the server's own catalogue tells of them."""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Iterator
from importlib import resources
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from felis.datamodel import Schema

from apflow.errors import BadRequest, DataError, ServiceError
from apflow.io.ppdb.postgres import ddl, partitions
from apflow.io.ppdb.postgres.connect import connect, errors, retrying
from apflow.io.ppdb.postgres.copy import copy_in
from apflow.model import schema
from apflow.operate.services import PostgresServer

type Connection = psycopg.Connection[tuple[Any, ...]]

KEPT = (
    "DiaObject",
    "DiaSource",
    "DiaForcedSource",
    "DiaObjectLast",
    "DiaObject_To_Object_Match",
    "SSObject",
    "SSSource",
    "mpc_orbits",
    "DetectorVisitProcessingSummary",
    "metadata",
)
SERVER_TYPES = {
    "double": "double precision",
    "float": "real",
    "long": "bigint",
    "int": "integer",
    "short": "smallint",
    "boolean": "boolean",
    "timestamp": "timestamp without time zone",
    "string": "text",
    "char": "text",
    "text": "text",
}


@pytest.fixture(scope="module")
def ppdb(postgres: PostgresServer) -> Iterator[Connection]:
    """A PPDB that tests only look at."""
    with connect(postgres.database()) as made:
        ddl.create(made)
        yield made


@pytest.fixture
def empty(postgres: PostgresServer) -> Iterator[Connection]:
    """A PPDB of a test's own."""
    with connect(postgres.database(), autocommit=True) as made:
        ddl.create(made)
        yield made


@pytest.fixture(scope="module")
def apdb() -> dict[str, Any]:
    """apdb.yaml, read by felis alone."""
    with resources.as_file(resources.files("lsst.sdm.schemas").joinpath("apdb.yaml")) as path:
        return {t.name: t for t in Schema.from_uri(str(path), context={"id_generation": True}).tables}


def mjd(year: int, month: int, day: int = 1) -> int:
    return (dt.date(year, month, day) - dt.date(1858, 11, 17)).days


@pytest.mark.parametrize("name", KEPT)
def test_columns_are_those_of_apdb_yaml_with_types_units_and_descriptions(
    ppdb: Connection, apdb: dict[str, Any], name: str
) -> None:
    rows = ppdb.execute(
        "SELECT attname, format_type(atttypid, atttypmod), attnotnull, col_description(attrelid, attnum) "
        "FROM pg_attribute WHERE attrelid = %s::regclass AND attnum > 0",
        [f'"{name}"'],
    ).fetchall()
    found = {column: rest for column, *rest in rows}
    with_pixels = name in ("DiaObject", "DiaSource", "DiaForcedSource", "DiaObjectLast")
    pixel = found.pop("pixelId", None)
    assert (pixel[:2] if pixel else None) == (["bigint", True] if with_pixels else None)
    expected = {}
    for column in apdb[name].columns:
        unit = column.fits_tunit or column.ivoa_unit
        text = " ".join((column.description or "").split())
        comment = (f"[{unit}] {text}" if unit else text) or None
        expected[column.name] = [SERVER_TYPES[column.datatype.value], not column.nullable, comment]
    assert found == expected
    about = ppdb.execute("SELECT obj_description(%s::regclass)", [f'"{name}"']).fetchone()
    assert about == ((apdb[name].description or None),)


def test_column_info_tells_the_same_as_the_schema(ppdb: Connection, apdb: dict[str, Any]) -> None:
    rows = ppdb.execute(
        "SELECT table_name, column_name, datatype, unit, description, nullable FROM column_info ORDER BY 1, position"
    ).fetchall()
    for name in KEPT:
        expected = [
            (c.name, c.datatype.value, str(c.fits_tunit or c.ivoa_unit or ""), " ".join((c.description or "").split()))
            for c in apdb[name].columns
        ]
        assert [row[1:5] for row in rows if row[0] == name and row[1] != "pixelId"] == expected
        nullable = {c.name: bool(c.nullable) for c in apdb[name].columns}
        assert {row[1]: row[5] for row in rows if row[0] == name and row[1] != "pixelId"} == nullable
    described = {(row[0], row[1]) for row in rows}
    assert {("ledger", "stored_unix"), ("outbox", "checksum"), ("DrpObject", "extendedness")} <= described


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("DiaSource", ["diaSourceId", "midpointMjdTai"]),
        ("DiaForcedSource", ["diaObjectId", "visit", "detector", "midpointMjdTai"]),
        ("DiaObject", ["diaObjectId", "validityStartMjdTai"]),
        ("DiaObjectLast", ["diaObjectId"]),
        ("ledger", ["instrument", "visit", "detector"]),
        ("outbox", ["alert_id"]),
        ("DrpObject", ["objectId"]),
    ],
)
def test_primary_keys(ppdb: Connection, name: str, key: list[str]) -> None:
    found = ppdb.execute(
        "SELECT array_agg(a.attname ORDER BY k.n)::text[] "
        "FROM pg_index i, unnest(i.indkey) WITH ORDINALITY k (attnum, n) JOIN pg_attribute a USING (attnum) "
        "WHERE a.attrelid = i.indrelid AND indisprimary AND indrelid = %s::regclass",
        [f'"{name}"'],
    ).fetchone()
    assert found == (key,)


def test_what_association_asks_for_is_found_by_an_index(empty: Connection) -> None:
    """Of full tables: the planner is told that reading them from end to end is dear."""
    partitions.ensure(empty, mjd(2025, 1), mjd(2025, 3))
    empty.execute("SET enable_seqscan = off")
    for query, index in {
        'SELECT ra FROM "DiaObjectLast" WHERE "pixelId" BETWEEN 5 AND 9 OR "pixelId" BETWEEN 20 AND 30': "pixelId",
        'SELECT ra FROM "DrpObject" WHERE "pixelId" BETWEEN 5 AND 9': "pixelId",
        'SELECT ra FROM "DiaSource" WHERE "diaObjectId" = 5': "diaObjectId",
        'SELECT ra FROM "DiaForcedSource" WHERE "diaObjectId" = 5': "diaObjectId",
        'SELECT ra FROM "DiaObject" WHERE "diaObjectId" = 5 AND "validityStartMjdTai" = 60690': "diaObjectId",
    }.items():
        plan = "\n".join(line for (line,) in empty.execute(f"EXPLAIN {query}").fetchall())  # type: ignore[call-overload]
        assert "Index" in plan
        assert "Seq Scan" not in plan
        assert f'("{index}" ' in plan


def test_creating_twice_and_at_once_makes_one_ppdb(postgres: PostgresServer) -> None:
    url = postgres.database()

    def create() -> None:
        with connect(url) as connection:
            ddl.create(connection)

    at_once(create, 4)
    with connect(url) as connection:
        ddl.check_version(connection)
        assert connection.execute("SELECT name, value FROM metadata ORDER BY 1").fetchall() == [
            ("version:layout", f"postgresql {ddl.LAYOUT}"),
            ("version:schema", schema.version()),
        ]


def at_once(function: Any, n: int) -> None:
    """Call a function from many threads; errors are raised here."""
    failed: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=call) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_another_version_is_refused_and_both_are_named(empty: Connection) -> None:
    empty.execute("UPDATE metadata SET value = '9.1.0' WHERE name = 'version:schema'")
    for function in (ddl.check_version, ddl.create):
        with pytest.raises(BadRequest, match=rf"schema version 9\.1\.0; accepted: {schema.version()}"):
            function(empty)
    empty.execute("DELETE FROM metadata")
    with pytest.raises(BadRequest, match="has no tables of a PPDB"):
        ddl.check_version(empty)


def test_a_database_without_tables_is_no_ppdb(postgres: PostgresServer) -> None:
    with connect(postgres.database()) as connection:
        with pytest.raises(BadRequest, match="has no tables of a PPDB"):
            ddl.check_version(connection)
        with (
            pytest.raises(BadRequest, match='relation "DiaSource" does not exist; accepted: a database made by'),
            errors(),
        ):
            connection.execute('SELECT 1 FROM "DiaSource"')


def forced(first: int, times: list[float]) -> pa.Table:
    """Rows of DiaForcedSource, its columns that may not be null."""
    n = len(times)
    return pa.table(
        {
            "diaForcedSourceId": range(first, first + n),
            "diaObjectId": range(first, first + n),
            "ra": [10.0] * n,
            "dec": [-10.0] * n,
            "visit": [1] * n,
            "detector": pa.array([4] * n, pa.int16()),
            "midpointMjdTai": times,
            "timeProcessedMjdTai": times,
            "pixelId": [0] * n,
        }
    )


def rows_by_partition(connection: Connection) -> dict[str, list[float]]:
    query = 'SELECT tableoid::regclass::text, "midpointMjdTai" FROM "DiaForcedSource" ORDER BY 2'
    found: dict[str, list[float]] = {}
    for name, time in connection.execute(query).fetchall():
        found.setdefault(name.strip('"').removeprefix("DiaForcedSource_"), []).append(time)
    return found


def test_a_row_goes_to_its_month(empty: Connection) -> None:
    names = partitions.ensure(empty, mjd(2024, 11, 30) + 0.5, mjd(2025, 2, 1))
    months = ["2024_11", "2024_12", "2025_01", "2025_02"]
    assert names == [f"{t}_{m}" for m in months for t in ("DiaObject", "DiaSource", "DiaForcedSource")]
    times = [mjd(2024, 12) - 1e-6, mjd(2024, 12), mjd(2025, 1) - 1e-6, mjd(2025, 1), mjd(2025, 3)]
    copy_in(empty.cursor(), "DiaForcedSource", forced(0, times))
    assert rows_by_partition(empty) == {
        "2024_11": times[:1],
        "2024_12": times[1:3],
        "2025_01": times[3:4],
        "rest": times[4:],
    }


def test_rows_that_waited_in_the_rest_move_to_their_month(empty: Connection) -> None:
    times = [mjd(2025, 4, 10) + 0.25, mjd(2025, 5, 31) + 0.75, 1e6, float("inf")]
    copy_in(empty.cursor(), "DiaForcedSource", forced(0, times))
    assert rows_by_partition(empty) == {"rest": times}
    partitions.ensure(empty, times[0], times[1])
    assert rows_by_partition(empty) == {"2025_04": times[:1], "2025_05": times[1:2], "rest": times[2:]}
    with (
        pytest.raises(DataError, match=r"DiaForcedSource: a row with this key .*midpointMjdTai.*=\(0, 1, 4, "),
        errors(),
    ):
        copy_in(empty.cursor(), "DiaForcedSource", forced(0, times[:1]))


def test_partitions_are_made_once_however_many_ask(empty: Connection, postgres: PostgresServer) -> None:
    made: list[str] = []

    def make() -> None:
        with connect(postgres.url_of(empty.info.dbname)) as connection:
            made.extend(partitions.ensure(connection, mjd(2025, 1), mjd(2025, 6)))

    at_once(make, 6)
    assert len(made) == len(set(made)) == 18
    assert partitions.ensure(empty, mjd(2025, 1), mjd(2025, 6, 30)) == []


def test_a_reader_delays_new_partitions_and_they_do_not_block_it_for_long(
    empty: Connection, postgres: PostgresServer
) -> None:
    with connect(postgres.url_of(empty.info.dbname)) as reader:
        reader.execute('SELECT count(*) FROM "DiaSource"').fetchall()
        with pytest.raises(ServiceError, match="lock timeout"):
            partitions.ensure(empty, mjd(2025, 1), mjd(2025, 1))
        threading.Timer(0.3, reader.commit).start()
        assert len(retrying(lambda: partitions.ensure(empty, mjd(2025, 1), mjd(2025, 1)), 10.0)) == 3


def test_the_listing_tells_months_rows_and_bytes(empty: Connection) -> None:
    partitions.ensure(empty, mjd(2025, 1), mjd(2025, 2))
    copy_in(empty.cursor(), "DiaForcedSource", forced(0, [mjd(2025, 1) + i / 100 for i in range(1000)]))
    empty.execute("ANALYZE")
    listed = [p for p in partitions.listing(empty) if p.table == "DiaForcedSource"]
    assert [(p.name, p.from_mjd_tai, p.to_mjd_tai) for p in listed] == [
        ("DiaForcedSource_2025_01", mjd(2025, 1), mjd(2025, 2)),
        ("DiaForcedSource_2025_02", mjd(2025, 2), mjd(2025, 3)),
        ("DiaForcedSource_rest", None, None),
    ]
    assert listed[0].rows == 1000
    assert listed[0].size_bytes > 100_000 > listed[1].size_bytes > 0
    assert [p.table for p in partitions.listing(empty)] == [t for t in partitions.BY for _ in range(3)]


@pytest.mark.parametrize("span", [(60800.0, 60700.0), (0.0, 60000.0), (float("nan"), 60000.0), (60000.0, float("inf"))])
def test_a_span_that_makes_no_sense_is_refused(empty: Connection, span: tuple[float, float]) -> None:
    with pytest.raises(BadRequest, match=r"partitions from MJD .*; accepted: "):
        partitions.ensure(empty, *span)
    assert len(partitions.listing(empty)) == 3
