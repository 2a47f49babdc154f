"""Bringing a DuckDB file of an earlier layout to this one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import duckdb

from apflow.errors import BadRequest, ServiceError
from apflow.io.ppdb import ownership
from apflow.io.ppdb.tables import (
    APDB_TABLES,
    LAYOUT,
    OWN_TABLES,
    column_sql,
    create_statements,
    describe_statements,
    stamp_statements,
    stored_columns,
)
from apflow.model import schema

_FROM = "1"


def migrate(path: Path) -> bool:
    """Add to a file what it has not: tables, columns, descriptions; false if it is of this layout already.

    Raises
    ------
    BadRequest
        The file is not there, no PPDB, in use, or of a version that cannot be
        brought to this one.
    ServiceError
        It cannot be written; it is as it was.
    """
    if not path.is_file():
        raise BadRequest(f"PPDB {path} does not exist; accepted: one that was created before")
    fd = ownership.take(path)
    if fd is None:
        raise BadRequest(f"PPDB {path} is in use; accepted: one that no process has open")
    try:
        with duckdb.connect(str(path)) as con:
            return _migrate(con, path)
    except duckdb.Error as error:
        raise ServiceError(f"PPDB {path} cannot be migrated: {error}") from error
    finally:
        os.close(fd)


def _migrate(con: Any, path: Path) -> bool:
    tables = {r[0] for r in con.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
    if "metadata" not in tables:
        raise BadRequest(f"{path} holds no PPDB; accepted: a file that apflow created")
    found = dict(con.execute("SELECT name, value FROM metadata").fetchall())
    versions = found.get("version:schema"), found.get("version:layout")
    if versions == (schema.version(), LAYOUT):
        return False
    if versions != (schema.version(), _FROM):
        raise BadRequest(
            f"PPDB {path} has schema version {versions[0]} and layout {versions[1]}; accepted: "
            f"{schema.version()} and {_FROM}, which become {schema.version()} and {LAYOUT}"
        )
    con.begin()
    for statement in _statements(con, tables):
        con.execute(statement)
    con.commit()
    return True


def _statements(con: Any, tables: set[str]) -> list[str]:
    every = (*APDB_TABLES, *OWN_TABLES)
    statements = create_statements(n for n in every if n not in tables)
    described = set(con.execute("SELECT table_name, column_name FROM column_info").fetchall())
    for name in (n for n in every if n in tables):
        there = {r[1] for r in con.execute(f"PRAGMA table_info('{name}')").fetchall()}
        for i, column in enumerate(stored_columns(name)):
            if column.name not in there:
                statements.append(f'ALTER TABLE "{name}" ADD COLUMN {column_sql(column)}')
            if (name, column.name) not in described:
                statements += describe_statements(name, i)
    if "DiaObjectLast" not in tables:
        names = ", ".join(f'"{c.name}"' for c in stored_columns("DiaObjectLast"))
        statements.append(
            f'INSERT INTO "DiaObjectLast" SELECT {names} FROM "DiaObject" WHERE "validityEndMjdTai" IS NULL'
        )
    return [*statements, *stamp_statements()]
