"""What the owner of the database reads for association: few scans, whatever the number of detectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.io.ppdb.drp import DRP_MARGIN_ARCSEC
from apflow.io.ppdb.interface import Wanted
from apflow.io.ppdb.parts import I8, ROW_ID, Part, history_part, ids_near, ordered, part_of
from apflow.io.ppdb.sky_index import box_sql, distinct, members
from apflow.io.ppdb.storing import query
from apflow.io.ppdb.tables import described, select_list
from apflow.model.region import Region

#: Beyond so many objects, DuckDB's flags come faster as bytes than as Arrow's bits.
_MANY = 1000


def objects(con: Any, region: Region) -> pa.Table:
    """Current DiaObjects inside a region, by id."""
    _, [own] = _current(con, [region])
    return by_id(con, own)


def by_id(con: Any, ids: I8) -> pa.Table:
    """Current versions of DiaObjects, in the order of their ids, which must be ascending and once each.

    Raises
    ------
    DataError
        One of them has no current version, or more than one.
    """
    rows = query(
        con,
        f'SELECT {select_list("DiaObject")} FROM "DiaObject" WHERE rowid IN (SELECT rowid FROM "DiaObject" '
        'WHERE "validityEndMjdTai" IS NULL AND "diaObjectId" IN (SELECT id FROM wanted))',
        wanted=pa.table({"id": ids}),
    )
    rows = ordered(rows, "diaObjectId")
    found = rows.column("diaObjectId").to_numpy()
    if not np.array_equal(found, ids):
        odd = np.setxor1d(found, ids)
        which = odd[0] if len(odd) else found[:-1][found[1:] == found[:-1]][0]
        raise DataError(f"PPDB DiaObject {which} has not exactly one current version; see: apflow ppdb check")
    return rows


def _current(con: Any, regions: Sequence[Region]) -> tuple[dict[str, NDArray[Any]], list[I8]]:
    """Ids and positions of the current DiaObjects about some regions, and the ids inside each, ascending."""
    hull = Region(np.concatenate([r.vertices for r in regions]))
    rows = query(con, f'SELECT "diaObjectId", ra, dec FROM "DiaObjectLast" WHERE {box_sql(hull)}')
    found = {c: rows.column(c).to_numpy() for c in ("diaObjectId", "ra", "dec")}
    order = np.argsort(found["diaObjectId"])
    found = {c: values[order] for c, values in found.items()}
    return found, [found["diaObjectId"][inside] for inside in members(found["ra"], found["dec"], regions)]


def history(
    con: Any, wanted: Sequence[Wanted], margin_arcsec: float, radius_arcsec: float, days: float
) -> dict[str, Part]:
    """See `Ppdb.getHistory`: DiaObject, DiaSource, DiaForcedSource and DrpObject."""
    current, own = _current(con, [w.region.grown(margin_arcsec) for w in wanted])
    everything = distinct(np.concatenate(own))
    parts = {"DiaObject": part_of(by_id(con, everything), [np.searchsorted(everything, ids) for ids in own])}
    near = ids_near(wanted, own, current["diaObjectId"], current["ra"], current["dec"], radius_arcsec)
    stop = np.array([w.mjd_tai for w in wanted])
    for name in ROW_ID:
        parts[name] = _rows_of(con, name, near, stop - days, stop)
    parts["DrpObject"] = drp_objects(con, [w.region for w in wanted], DRP_MARGIN_ARCSEC)
    return parts


def drp_objects(con: Any, regions: Sequence[Region], margin_arcsec: float) -> Part:
    """DRP Objects inside each of some regions grown by a margin, by id."""
    hull = Region(np.concatenate([r.vertices for r in regions])).grown(margin_arcsec)
    rows = query(con, f'SELECT {select_list("DrpObject")} FROM "DrpObject" WHERE {box_sql(hull)}')
    rows = ordered(rows, "objectId")
    ra, dec = rows.column("ra").to_numpy(), rows.column("dec").to_numpy()
    return part_of(rows, members(ra, dec, [r.grown(margin_arcsec) for r in regions] if len(ra) else regions))


def _rows_of(con: Any, name: str, ids: Sequence[I8], since: Any, until: Any) -> Part:
    """Rows of the objects of each detector within its time, by time and id."""
    every = distinct(np.concatenate(ids))
    return history_part(_select(con, name, every, since.min(), until.max()), name, ids, since, until)


def _select(con: Any, name: str, ids: I8, since: float, until: float) -> pa.Table:
    flags = [c.name for c in described(name).columns if c.datatype == "boolean"] if len(ids) > _MANY else []
    columns = ", ".join(f'"{c}"::UTINYINT AS "{c}"' if c in flags else f'"{c}"' for c in described(name).names)
    low, high = (ids[0], ids[-1]) if len(ids) else (0, 0)  # they ascend
    condition = (
        f'"diaObjectId" BETWEEN {low} AND {high} '
        'AND "diaObjectId" IN (SELECT id FROM wanted) AND "timeWithdrawnMjdTai" IS NULL '
        f'AND "midpointMjdTai" BETWEEN {float(since)!r} AND {float(until)!r}'
    )
    if name == "DiaSource" and len(ids) <= _MANY:
        # By rowid: DuckDB then reads a hundred columns only where there is a row to give.
        condition = f'rowid IN (SELECT rowid FROM "DiaSource" WHERE {condition})'
    return query(con, f'SELECT {columns} FROM "{name}" WHERE {condition}', wanted=pa.table({"id": ids}))
