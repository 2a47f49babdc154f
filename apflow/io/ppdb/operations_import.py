"""Nights of a PPDB restored from Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from apflow.errors import BadRequest, DataError
from apflow.io.ppdb.interface import Ppdb, Statement
from apflow.io.ppdb.operations import open_parquet
from apflow.io.ppdb.operations_export import NIGHTLY, arrow_schema
from apflow.io.ppdb.tables import APDB_TABLES, key_of, stored_columns, to_arrow, to_frame
from apflow.model import schema

#: Rows of a transaction.
_CHUNK = 200_000
_TIMES = {"DiaObject": "validityStartMjdTai", "DiaSource": "midpointMjdTai", "DiaForcedSource": "midpointMjdTai"}


def import_nights(ppdb: Ppdb, folder: Path) -> dict[str, int]:
    """Restore the nights that `export_night` wrote to a folder, or one night's folder.

    Rows that are there stay as they are, so that importing again, or after an
    interruption, does no harm. Alerts that were pending when they were exported
    are pending again.

    Returns
    -------
    `dict`
        Number of rows that were added, by table.

    Raises
    ------
    BadRequest
        There is no such night, a file is missing, or is of another version of the schema.
    DataError
        A file does not hold the table that it is named after.
    """
    added = dict.fromkeys(NIGHTLY, 0)
    nights = _nights(folder)
    for night in nights:  # before anything is written
        for table in NIGHTLY:
            _check(night / f"{table}.parquet", table)
    for night in nights:
        for table in NIGHTLY:
            before = _count(ppdb, table)
            for rows in _chunks(night / f"{table}.parquet", table):
                _insert(ppdb, table, rows)
            added[table] += _count(ppdb, table) - before
    return added


def _nights(folder: Path) -> list[Path]:
    if (folder / "ledger.parquet").is_file():
        return [folder]
    nights = sorted(p for p in folder.glob("[0-9]" * 8) if p.is_dir())
    if not nights:
        raise BadRequest(f"{folder} holds no night; accepted: a folder that `apflow ppdb export` wrote")
    return nights


def _check(path: Path, table: str) -> None:
    found = open_parquet(path).schema_arrow
    version = (found.metadata or {}).get(b"apdb_version", b"none").decode()
    if version != schema.version():
        raise BadRequest(f"{path} is of apdb.yaml {version}; accepted: {schema.version()}")
    for field in arrow_schema(table):
        if field.name not in found.names:
            raise DataError(f"{path}: {table}.{field.name} is missing")


def _chunks(path: Path, table: str) -> Iterator[pa.Table]:
    wanted = arrow_schema(table)
    for batch in open_parquet(path).iter_batches(_CHUNK, columns=wanted.names):
        rows = pa.Table.from_batches([batch]).select(wanted.names)
        try:
            rows = rows.cast(wanted.remove_metadata())
            if table in APDB_TABLES:
                rows = to_arrow(schema.conform(to_frame(rows, table), table), table)
        except (pa.ArrowException, ValueError, DataError) as error:
            raise DataError(f"{path}: {error}") from error
        yield rows


def _insert(ppdb: Ppdb, table: str, rows: pa.Table) -> None:
    if not rows.num_rows:
        return
    if table in _TIMES:
        span = pc.min_max(rows.column(_TIMES[table]))
        ppdb.makePartitions(span["min"].as_py(), span["max"].as_py())
    columns = ", ".join(f'"{c}"' for c in rows.column_names)
    statements = [
        Statement(
            f'INSERT INTO "{table}" ({columns}) SELECT {columns} FROM new_rows ON CONFLICT {_conflict(table)}',
            {"new_rows": rows},
        )
    ]
    if table == "DiaObject":
        statements += renew_last(ppdb, rows.column("diaObjectId"))
    ppdb.change(statements)


def _conflict(table: str) -> str:
    if table != "ledger":
        return "DO NOTHING"
    # A detector-visit that is expected here, or ended without rows, is stored now.
    key = key_of(table)
    names = [c.name for c in stored_columns(table) if c.name not in key]
    changes = ", ".join(f"{n} = excluded.{n}" for n in names)
    return f"({', '.join(key)}) DO UPDATE SET {changes} WHERE ledger.stored_unix IS NULL"


def renew_last(ppdb: Ppdb, object_ids: pa.ChunkedArray) -> list[Statement]:
    """Statements that close the versions that others follow, and make DiaObjectLast hold the current ones."""
    touched = {"touched": pa.table({"id": pc.unique(object_ids)})}
    mine = '"diaObjectId" IN (SELECT id FROM touched)'
    names = [c.name for c in stored_columns("DiaObjectLast")]
    listed = ", ".join(f'"{n}"' for n in names)
    changes = ", ".join(f'"{n}" = excluded."{n}"' for n in names if n != "diaObjectId")
    current = f'SELECT "diaObjectId" AS id, "validityStartMjdTai" AS start FROM "{ppdb.versions}" WHERE {mine}'
    current += ' AND "validityEndMjdTai" IS NULL'
    of_current = ", ".join(f'o."{n}"' for n in names)
    close = (
        'UPDATE "DiaObject" SET "validityEndMjdTai" = n.stop FROM (SELECT "diaObjectId" AS id, '
        '"validityStartMjdTai" AS start, lead("validityStartMjdTai") OVER (PARTITION BY "diaObjectId" '
        f'ORDER BY "validityStartMjdTai") AS stop FROM "DiaObject" WHERE {mine}) n '
        'WHERE "diaObjectId" = n.id AND "validityStartMjdTai" = n.start AND n.stop IS NOT NULL '
        'AND "validityEndMjdTai" IS NULL'
    )
    statements = [
        Statement(
            f'INSERT INTO "DiaObjectLast" ({listed}) SELECT {of_current} FROM "DiaObject" o JOIN ({current}) c '
            'ON o."diaObjectId" = c.id AND o."validityStartMjdTai" = c.start '
            f'ON CONFLICT ("diaObjectId") DO UPDATE SET {changes}',
            touched,
        ),
        Statement(
            f'DELETE FROM "DiaObjectLast" WHERE {mine} AND "diaObjectId" NOT IN (SELECT id FROM ({current}) c)',
            touched,
        ),
    ]
    return [Statement(close, touched), *statements] if ppdb.versions == "DiaObject" else statements


def _count(ppdb: Ppdb, table: str) -> int:
    return int(ppdb.select(f'SELECT count(*) AS n FROM "{table}"').column(0)[0].as_py())
