"""The tables of the PPDB in PostgreSQL, made from their descriptions.

DiaSource, DiaForcedSource and DiaObject are partitioned by month. A key of a
partitioned table must hold the column it is partitioned by, so PostgreSQL
itself keeps (diaSourceId, midpointMjdTai) unique. A diaSourceId alone is unique
because it holds visit and detector, whose time there is only one of, and the
ledger lets a detector-visit be stored once. The same goes for
(diaObjectId, visit, detector) of DiaForcedSource.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import psycopg
from psycopg import sql

from apflow.errors import BadRequest
from apflow.io.ppdb.postgres import partitions
from apflow.io.ppdb.postgres.connect import errors
from apflow.io.ppdb.postgres.copy import columns_sql
from apflow.io.ppdb.tables import APDB_TABLES, OWN_TABLES, described, key_of, stored_columns
from apflow.model import schema
from apflow.model.schema import Column

type Connection = psycopg.Connection[tuple[Any, ...]]

TABLES = (*APDB_TABLES, *OWN_TABLES)
#: Layout of what apdb.yaml does not say; raise it when it changes.
LAYOUT = "1"
#: PostgreSQL's types, as `apflow.io.ppdb.postgres.copy` calls them; any other word of felis is text.
_TYPES = {
    "double": "float8",
    "float": "float4",
    "long": "int8",
    "int": "int4",
    "short": "int2",
    "boolean": "bool",
    "timestamp": "timestamp",
}
_WIDTH = {"float8": 8, "int8": 8, "timestamp": 8, "float4": 4, "int4": 4, "int2": 2, "bool": 1, "text": 0}
_INDEXES = (
    ("DiaObjectLast", ("pixelId",)),
    ("DrpObject", ("pixelId",)),
    ("DiaSource", ("diaObjectId",)),
    ("DiaSource", ("visit", "detector")),
    ("DiaForcedSource", ("visit", "detector")),
    ("DiaObject_To_Object_Match", ("objectId",)),
    ("SSSource", ("ssObjectId",)),
    ("mpc_orbits", ("designation",)),
)
#: View of DiaObject with the versions closed.
VERSIONS = "DiaObjectVersion"
#: HEALPix pixels (order 7) of the region of an announced detector-visit: who may wait for whom.
_CELLS = "ALTER TABLE ledger ADD COLUMN cells int8[]"
_MORE = (
    _CELLS,
    "CREATE INDEX ON ledger (instrument, visit) WHERE state = 'expected'",
    "CREATE INDEX ON ledger (visit, detector)",
    "CREATE INDEX ON outbox (visit, detector, alert_id) WHERE published_unix IS NULL",
)
#: A field's objects are replaced all at once: with room for the second version of each row, those that stay in their
#: pixel need no new entry in an index, which halves the time of the update and its log.
_FILLFACTOR = {"DiaObjectLast": 50}


@functools.cache
def types(name: str) -> Mapping[str, str]:
    """PostgreSQL's types of a table's columns, by name in the order of the schema, then pixelId where there is one."""
    return {c.name: _TYPES.get(c.datatype, "text") for c in stored_columns(name)}


def stored_order(name: str) -> tuple[str, ...]:
    """Columns as a row holds them: wide before narrow, for without padding DiaSource is 7 % smaller."""
    kinds = types(name)
    return tuple(sorted(kinds, key=lambda c: -_WIDTH[kinds[c]]))


def create_statements() -> list[sql.Composed]:
    """SQL that makes an empty PPDB, units and descriptions included, but no partition for any month."""
    first = sorted(TABLES, key=lambda name: name != "column_info")
    statements = [s for name in first for s in _table(name)]
    for name, columns in _INDEXES:
        statements.append(sql.SQL("CREATE INDEX ON {} ({})").format(sql.Identifier(name), columns_sql(columns)))
    statements += [*(sql.Composed([sql.SQL(text)]) for text in _MORE), _closed_versions()]
    for name in partitions.BY:
        statements.append(partitions.rest_statement(name))
    for key, value in _versions().items():
        statements.append(
            sql.SQL("INSERT INTO metadata (name, value) VALUES ({}, {})").format(sql.Literal(key), sql.Literal(value))
        )
    return statements


def _table(name: str) -> list[sql.Composed]:
    table = described(name)
    columns = [_column(name, c) for c in stored_order(name)]
    columns.append(sql.SQL("PRIMARY KEY ({})").format(columns_sql(partition_key(name))))
    made = sql.SQL("CREATE TABLE {} ({})").format(sql.Identifier(name), sql.SQL(", ").join(columns))
    if name in partitions.BY:
        made += sql.SQL(" PARTITION BY RANGE ({})").format(sql.Identifier(partitions.BY[name]))
    elif name in _FILLFACTOR:
        made += sql.SQL(f" WITH (fillfactor = {_FILLFACTOR[name]})")
    comment = sql.SQL("COMMENT ON TABLE {} IS {}").format(sql.Identifier(name), sql.Literal(table.description))
    described_columns = stored_columns(name)
    rows = [_info(name, i, c) for i, c in enumerate(described_columns)]
    info = sql.SQL("INSERT INTO column_info ({}) VALUES {}").format(
        columns_sql(described("column_info").names), sql.SQL(", ").join(rows)
    )
    return [made, comment, *(_comment(name, c) for c in described_columns), info]


def _closed_versions() -> sql.Composed:
    """DiaObject with validityEndMjdTai: its rows are only ever added, and end where the next of their object begins.

    Closing them in place would write each row a second time, in a place of its own.
    """
    start, end = sql.Identifier("validityStartMjdTai"), sql.Identifier("validityEndMjdTai")
    names = described("DiaObject").names
    closed = sql.SQL("coalesce({0}, lead({1}) OVER version) AS {0}").format(end, start)
    columns = [closed if n == "validityEndMjdTai" else sql.Identifier(n) for n in names]
    return sql.SQL(
        'CREATE VIEW {} AS SELECT {} FROM "DiaObject" WINDOW version AS (PARTITION BY "diaObjectId" ORDER BY {})'
    ).format(sql.Identifier(VERSIONS), sql.SQL(", ").join(columns), start)


def partition_key(name: str) -> tuple[str, ...]:
    """The primary key of a table as PostgreSQL has it: with the column it is partitioned by."""
    key = key_of(name)
    by = partitions.BY.get(name)
    return key if by is None or by in key else (*key, by)


def _column(table: str, name: str) -> sql.Composed:
    kind = types(table)[name]
    null = name != "pixelId" and described(table).column(name).nullable
    default = " DEFAULT 0" if name in ("n_sources", "n_alerts", "trimmed") else ""
    return sql.SQL("{} {}{}").format(
        sql.Identifier(name),
        sql.SQL(kind),
        sql.SQL(("" if null else " NOT NULL") + default),
    )


def _comment(table: str, column: Column) -> sql.Composed:
    text = f"[{column.unit}] {column.description}" if column.unit else column.description
    where = sql.Identifier(table, column.name)
    return sql.SQL("COMMENT ON COLUMN {} IS {}").format(where, sql.Literal(text))


def _info(table: str, i: int, c: Column) -> sql.Composed:
    values = (table, c.name, i, c.datatype, c.unit, c.description, c.nullable)
    return sql.SQL("({})").format(sql.SQL(", ").join(map(sql.Literal, values)))


def _versions() -> dict[str, str]:
    return {"version:schema": schema.version(), "version:layout": f"postgresql {LAYOUT}"}


def create(connection: Connection) -> None:
    """Make the tables in an empty database; nothing if they are there in this version. Commits.

    Raises
    ------
    BadRequest
        The database holds a PPDB of another version, or the user may make no tables.
    """
    with errors(), connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('apflow ppdb create'))")
        there = connection.execute("SELECT to_regclass('metadata') IS NOT NULL").fetchone()
        if there == (False,):
            # One request: a round trip for each of a thousand statements would take longer than they do.
            connection.execute(sql.SQL(";").join(create_statements()), prepare=False)
            return
    check_version(connection)


def check_version(connection: Connection) -> None:
    """Refuse a database that was made with another schema.

    Raises
    ------
    BadRequest
        It is no PPDB, or its schema or layout is not that of this program; the message names both.
    """
    with errors(), connection.transaction():
        there = connection.execute("SELECT to_regclass('metadata') IS NOT NULL").fetchone()
        rows = connection.execute("SELECT name, value FROM metadata").fetchall() if there == (True,) else []
    found: dict[str, str] = dict(rows)
    shown = f"PPDB {connection.info.dbname} at {connection.info.host}"
    for key, value in _versions().items():
        if key not in found:
            raise BadRequest(f"{shown} has no tables of a PPDB; accepted: one made by `apflow ppdb create`")
        if found[key] != value:
            raise BadRequest(
                f"{shown} has {key.removeprefix('version:')} version {found[key]}; accepted: {value}. "
                "Export it with the program that made it and import it into a new one"
            )
