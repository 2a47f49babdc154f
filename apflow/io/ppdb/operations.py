"""What those who run a PPDB ask of it: what is in it, and taking DiaSources back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from apflow.errors import BadRequest, DataError
from apflow.io.ppdb.interface import Ppdb
from apflow.io.ppdb.outbox import PENDING
from apflow.io.ppdb.tables import APDB_TABLES, OWN_TABLES

#: Ids in one statement.
_IDS = 10_000
#: DRP Objects that are loaded in one transaction.
_OBJECTS = 500_000
#: Where the columns of `History.drp` are found in Parquet files of a Data Release.
_DRP_COLUMNS = {
    "objectId": ("objectId",),
    "ra": ("ra", "coord_ra"),
    "dec": ("dec", "coord_dec"),
    "extendedness": ("extendedness", "refExtendedness"),
}


@dataclass(frozen=True)
class Contents:
    """What is in a PPDB.

    Attributes
    ----------
    versions
        Of the schema and of the layout, as the database notes them.
    rows, size_bytes
        By table; sizes as `Ppdb.sizes` gives them.
    states
        Number of detector-visits by state.
    n_visits
        Number of visits in the ledger.
    n_pending
        Alerts that wait to be published.
    first_mjd_tai, last_mjd_tai
        Times of the first and last DiaSource; None where there is none.
    """

    versions: Mapping[str, str]
    rows: Mapping[str, int]
    size_bytes: Mapping[str, int]
    states: Mapping[str, int]
    n_visits: int
    n_pending: int
    first_mjd_tai: float | None
    last_mjd_tai: float | None


def contents(ppdb: Ppdb) -> Contents:
    """Look through a PPDB."""
    counts = " UNION ALL ".join(
        f"SELECT '{name}' AS name, count(*) AS n FROM \"{name}\"" for name in (*APDB_TABLES, *OWN_TABLES)
    )
    states = ppdb.select("SELECT state, count(*) AS n FROM ledger GROUP BY state ORDER BY n DESC, state")
    [totals] = ppdb.select(
        "SELECT (SELECT count(DISTINCT visit) FROM ledger) AS n_visits, "
        f"(SELECT count(*) FROM outbox WHERE {PENDING}) AS n_pending, "
        '(SELECT min("midpointMjdTai") FROM "DiaSource") AS first_mjd_tai, '
        '(SELECT max("midpointMjdTai") FROM "DiaSource") AS last_mjd_tai'
    ).to_pylist()
    return Contents(
        versions=dict(_pairs(ppdb.select("SELECT name, value FROM metadata ORDER BY name"))),
        rows=dict(_pairs(ppdb.select(counts))),
        size_bytes=ppdb.sizes(),
        states=dict(_pairs(states)),
        **totals,
    )


def _pairs(rows: pa.Table) -> Iterator[tuple[str, Any]]:
    yield from zip(*(column.to_pylist() for column in rows.columns), strict=True)


def columns(ppdb: Ppdb, table: str) -> pd.DataFrame:
    """Columns of a table with types, units and descriptions, as the database itself has them.

    Raises
    ------
    BadRequest
        There is no such table.
    """
    info = ppdb.table("column_info")
    found = info[info["table_name"] == table].sort_values("position", ignore_index=True)
    if found.empty:
        known = ", ".join(sorted(info["table_name"].unique()))
        raise BadRequest(f"the PPDB has no table {table!r}; accepted: {known}")
    return found[["column_name", "datatype", "unit", "description", "nullable"]]


@dataclass(frozen=True)
class Withdrawal:
    """Numbers of DiaSources that were withdrawn now, and of their alerts that will not be sent."""

    n_sources: int
    n_alerts: int


def withdraw(
    ppdb: Ppdb, mjd_tai: float, *, visit: int | None = None, detector: int | None = None, ids: Sequence[int] = ()
) -> Withdrawal:
    """Withdraw the DiaSources of a visit, of one of its detectors, or by their ids.

    Raises
    ------
    BadRequest
        Neither visit nor ids are given, a detector without its visit, or none
        or not all of the DiaSources are there.
    """
    if (visit is None) == (not ids) or (detector is not None and visit is None):
        raise BadRequest("accepted: a visit, a visit and one of its detectors, or ids of DiaSources")
    wanted = sorted(set(ids)) if ids else _of_visit(ppdb, visit or 0, detector)
    there = [i for some in _some(wanted) for i in _there(ppdb, some)]
    if missing := sorted(set(wanted) - set(there)):
        raise BadRequest(f"the PPDB has no DiaSource {missing[0]} ({len(missing)} of {len(wanted)} are not there)")
    before = _n_pending(ppdb)
    n_sources = ppdb.withdraw(wanted, mjd_tai)
    return Withdrawal(n_sources, before - _n_pending(ppdb))


def _of_visit(ppdb: Ppdb, visit: int, detector: int | None) -> list[int]:
    which = f"visit = {visit}" + ("" if detector is None else f" AND detector = {detector}")
    found: list[int] = ppdb.select(f'SELECT "diaSourceId" FROM "DiaSource" WHERE {which}').column(0).to_pylist()
    if not found:
        raise BadRequest(f"the PPDB has no DiaSource with {which}; see: apflow ppdb show")
    return found


def _some(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    for i in range(0, len(ids), _IDS):
        yield ids[i : i + _IDS]


def _there(ppdb: Ppdb, ids: Sequence[int]) -> list[int]:
    listed = ", ".join(map(str, ids))
    found: list[int] = (
        ppdb.select(f'SELECT "diaSourceId" FROM "DiaSource" WHERE "diaSourceId" IN ({listed})').column(0).to_pylist()
    )
    return found


def _n_pending(ppdb: Ppdb) -> int:
    return int(ppdb.select(f"SELECT count(*) AS n FROM outbox WHERE {PENDING}").column(0)[0].as_py())


def load_drp(ppdb: Ppdb, path: Path) -> int:
    """Load the Objects of a Data Release from a Parquet file; gives their number.

    Positions are in the columns ra and dec, or coord_ra and coord_dec, degrees;
    the class in extendedness or refExtendedness. Objects that are there are
    replaced: loading again, or after an interruption, does no harm.

    Raises
    ------
    BadRequest
        The file is not there.
    DataError
        It is no Parquet file, or a column is missing or not acceptable.
    """
    file = open_parquet(path)
    names = {column: _found(file, path, column) for column in _DRP_COLUMNS}
    total = 0
    for rows in file.iter_batches(_OBJECTS, columns=list(names.values())):
        frame = pd.DataFrame({c: rows.column(name).to_pandas() for c, name in names.items()})
        try:
            total += ppdb.loadDrpObjects(frame)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error
    return total


def _found(file: pq.ParquetFile, path: Path, column: str) -> str:
    for name in _DRP_COLUMNS[column]:
        if name in file.schema_arrow.names:
            return name
    raise DataError(f"{path} has no column {column!r}; accepted: {' or '.join(_DRP_COLUMNS[column])}")


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file.

    Raises
    ------
    BadRequest
        It is not there.
    DataError
        It is no Parquet file.
    """
    if not path.is_file():
        raise BadRequest(f"{path} is not there; accepted: a Parquet file")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no Parquet file: {error}") from error
