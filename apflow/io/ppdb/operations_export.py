"""A night of the PPDB as Parquet files."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from apflow.errors import BadRequest, ServiceError
from apflow.io.ppdb.interface import Ppdb
from apflow.io.ppdb.tables import described, select_list
from apflow.model import schema
from apflow.model.ids import exposure_id

_ARROW = {
    "double": pa.float64(),
    "float": pa.float32(),
    "long": pa.int64(),
    "int": pa.int32(),
    "short": pa.int16(),
    "boolean": pa.bool_(),
}
_OF_VISIT = "visit >= {first} AND visit < {after}"
#: Ids hold the day of their visit (`apflow.model.ids.source_id`), and a DiaObject's id is that of its first DiaSource.
_OF_ID = '(("{column}" >> 42) & 32767) = {{days}}'
#: Tables that grow by night, and their rows of a night. In the order in which they are restored.
NIGHTLY: Mapping[str, str] = {
    "DiaObject": '"validityStartMjdTai" >= {begin} AND "validityStartMjdTai" < {end}',
    "DiaSource": _OF_VISIT,
    "DiaForcedSource": _OF_VISIT,
    "DiaObject_To_Object_Match": _OF_ID.format(column="diaObjectId"),
    "SSSource": _OF_ID.format(column="diaSourceId"),
    "DetectorVisitProcessingSummary": _OF_VISIT,
    "outbox": _OF_VISIT,
    "step_record": _OF_VISIT,
    "ledger": _OF_VISIT,
}
_EPOCH = dt.date(2010, 1, 1)
_MJD_EPOCH = dt.date(1858, 11, 17)
_SECOND_D = 1.0 / 86400.0


def arrow_schema(table: str) -> pa.Schema:
    """Types of a table's files; units and descriptions are metadata of the fields."""
    return pa.schema(
        [
            pa.field(
                c.name,
                _ARROW.get(c.datatype, pa.string()),
                c.nullable,
                {what: text for what, text in (("unit", c.unit), ("description", c.description)) if text},
            )
            for c in described(table).columns
        ],
        {"table": table, "description": described(table).description, "apdb_version": schema.version()},
    )


def export_night(ppdb: Ppdb, night: int, folder: Path) -> dict[str, int]:
    """Write a night to ``folder/night``, a Parquet file for each table; gives the number of rows by table.

    DiaObject: versions that begin in the night, as they stood at its end. The
    folder of the night appears when all is written. SSObject, mpc_orbits and
    DrpObject are not of a night; DiaObjectLast follows from DiaObject.

    Raises
    ------
    BadRequest
        No such day, nothing is stored of it, or its folder is there already.
    ServiceError
        The files cannot be written.
    """
    day = _date(night)
    target = folder / str(night)
    if target.exists():
        raise BadRequest(f"{target} is there already; accepted: a folder without night {night}")
    visits = {"first": exposure_id(night, 0), "after": exposure_id(night + 1, 0)}
    begin, end = _span(ppdb, day, _OF_VISIT.format(**visits))
    words = {**visits, "days": (day - _EPOCH).days, "begin": begin, "end": end}
    partial = folder / f".{night}.{os.uname().nodename}.{os.getpid()}.partial"
    counts: dict[str, int] = {}
    try:
        partial.mkdir(parents=True)
        for table, condition in NIGHTLY.items():
            relation = ppdb.versions if table == "DiaObject" else table
            key = ", ".join(f'"{c}"' for c in described(table).names[:2])
            columns = _as_of(end) if table == "DiaObject" else select_list(table)
            rows = ppdb.select(f'SELECT {columns} FROM "{relation}" WHERE {condition.format(**words)} ORDER BY {key}')
            pq.write_table(rows.cast(arrow_schema(table)), partial / f"{table}.parquet", compression="zstd")
            counts[table] = rows.num_rows
        if not any(counts.values()):
            raise BadRequest(f"the PPDB has nothing of night {night}; its visits: {_nights(ppdb)}")
        os.rename(partial, target)
    except OSError as error:
        raise ServiceError(f"{target} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


def _span(ppdb: Ppdb, day: dt.date, of_night: str) -> tuple[float, float]:
    """When the versions of a night begin: from noon to noon, TAI, and wherever its DiaSources are beyond that."""
    noon = (day - _MJD_EPOCH).days + 0.5
    time = '"midpointMjdTai"'
    sql = f'SELECT min({time}) AS first_mjd, max({time}) AS last_mjd FROM "DiaSource" WHERE {of_night}'
    [found] = ppdb.select(sql).to_pylist()
    if found["first_mjd"] is None:
        return noon, noon + 1.0
    return min(noon, found["first_mjd"]), max(noon + 1.0, found["last_mjd"] + _SECOND_D)


def _as_of(mjd: float) -> str:
    """Columns of DiaObject as they stood at a time: what a later version closed was open then."""
    end = '"validityEndMjdTai"'
    later = f'SELECT "diaObjectId", "validityStartMjdTai" FROM "DiaObject" WHERE "validityStartMjdTai" >= {mjd}'
    was_open = f'{end} >= {mjd} AND ("diaObjectId", {end}) IN ({later})'
    return select_list("DiaObject").replace(end, f"CASE WHEN {was_open} THEN NULL ELSE {end} END AS {end}")


def _date(night: int) -> dt.date:
    try:
        return dt.date(night // 10_000, night // 100 % 100, night % 100)
    except ValueError as error:
        raise BadRequest(f"night {night} is not accepted: a day of observation, YYYYMMDD") from error


def _nights(ppdb: Ppdb) -> str:
    rows = ppdb.select("SELECT DISTINCT CAST(floor(visit / 100000.0) AS BIGINT) AS night FROM ledger ORDER BY night")
    nights = rows.column("night").to_pylist()
    return f"nights {nights[0]} to {nights[-1]}" if nights else "none"
