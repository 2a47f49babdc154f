"""What is read for association: a few requests, whatever the number of detectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from psycopg import sql

from apflow.errors import BadRequest
from apflow.io.ppdb.drp import DRP_MARGIN_ARCSEC
from apflow.io.ppdb.interface import Wanted
from apflow.io.ppdb.parts import I8, ROW_ID, Part, history_part, ids_near, ordered, part_of
from apflow.io.ppdb.postgres import ddl
from apflow.io.ppdb.postgres.copy import columns_sql, copy_out, fetch, ids_sql
from apflow.io.ppdb.postgres.pool import Connection
from apflow.io.ppdb.postgres.sky import regions_condition
from apflow.io.ppdb.sky_index import members
from apflow.io.ppdb.tables import OWN_TABLES, described
from apflow.model.region import Region

#: Up to so many objects are asked for by a prepared statement, which costs no planning; more come by COPY.
_FEW = 500
_LAST = ("diaObjectId", "validityStartMjdTai", "ra", "dec")


def _copy(con: Connection, name: str, query: sql.Composable, columns: Sequence[str]) -> pa.Table:
    kinds = ddl.types(name)
    return copy_out(con.cursor(), query, columns, [kinds[c] for c in columns])


def _by_pixel(con: Connection, name: str, regions: Sequence[Region], columns: Sequence[str], key: str) -> pa.Table:
    """Rows about some regions, in the order of a key."""
    query = sql.SQL("SELECT {} FROM {} WHERE {}").format(
        columns_sql(columns), sql.Identifier(name), regions_condition(regions)
    )
    return ordered(_copy(con, name, query, columns), key)


def _of_objects(
    con: Connection, name: str, ids: I8, condition: str, bounds: Sequence[Any], also: NDArray[Any] | None = None
) -> pa.Table:
    """Rows of a table in months by diaObjectId, and by validityStartMjdTai where `also` gives it."""
    names = list(described(name).names)
    kinds = [ddl.types(name)[c] for c in names]
    listed, table = columns_sql(names, "t"), sql.Identifier(name)
    if also is None:
        wanted, match = "unnest({}) AS w (id)", 't."diaObjectId" = w.id'
    else:
        wanted = "unnest({}, {}) AS w (id, start)"
        match = 't."diaObjectId" = w.id AND t."validityStartMjdTai" = w.start'
    text = f"SELECT {{}} FROM {wanted} JOIN {{}} t ON {match} WHERE {condition}"
    if len(ids) <= _FEW:
        arrays = [sql.SQL("%s::int8[]")] + ([] if also is None else [sql.SQL("%s::float8[]")])
        values = [ids.tolist()] + ([] if also is None else [also.tolist()])
        query = sql.SQL(text).format(listed, *arrays, table)
        return fetch(con.cursor(), query, names, kinds, [*values, *bounds])
    arrays = [ids_sql(ids)] + ([] if also is None else [_floats_sql(also)])
    query = sql.SQL(text).format(listed, *arrays, table)
    return copy_out(con.cursor(), query, names, kinds, list(bounds) or None)


def _floats_sql(values: NDArray[np.float64]) -> sql.SQL:
    return sql.SQL("'{" + ",".join(map(repr, values.tolist())) + "}'::float8[]")


def objects(con: Connection, region: Region) -> pa.Table:
    """Current DiaObjects inside a region, by id."""
    last, [own] = _current(con, [region])
    return _versions(con, last, own)


def _current(con: Connection, regions: Sequence[Region]) -> tuple[pa.Table, list[I8]]:
    """Current versions about some regions by id, and indices of those inside each."""
    last = _by_pixel(con, "DiaObjectLast", regions, _LAST, "diaObjectId")
    return last, members(last.column("ra").to_numpy(), last.column("dec").to_numpy(), regions)


def _versions(con: Connection, last: pa.Table, which: I8) -> pa.Table:
    """The whole rows of current versions, by id."""
    ids, start = (last.column(c).to_numpy()[which] for c in _LAST[:2])
    return ordered(_of_objects(con, "DiaObject", ids, "true", (), start), "diaObjectId")


def history(
    con: Connection, wanted: Sequence[Wanted], margin_arcsec: float, radius_arcsec: float, days: float
) -> dict[str, Part]:
    """See `Ppdb.getHistory`: DiaObject, DiaSource, DiaForcedSource and DrpObject."""
    last, inside = _current(con, [w.region.grown(margin_arcsec) for w in wanted])
    known, ra, dec = (last.column(c).to_numpy() for c in ("diaObjectId", "ra", "dec"))
    every = np.unique(np.concatenate(inside))
    parts = {"DiaObject": part_of(_versions(con, last, every), [np.searchsorted(every, i) for i in inside])}
    near = ids_near(wanted, [known[i] for i in inside], known, ra, dec, radius_arcsec)
    stop = np.array([w.mjd_tai for w in wanted])
    ids = np.unique(np.concatenate(near))
    for name in ROW_ID:
        rows = _since(con, name, ids, float(stop.min() - days), float(stop.max()))
        parts[name] = history_part(rows, name, near, stop - days, stop)
    parts["DrpObject"] = drp_objects(con, [w.region.grown(DRP_MARGIN_ARCSEC) for w in wanted])
    return parts


def _since(con: Connection, name: str, ids: I8, since_mjd: float, until_mjd: float) -> pa.Table:
    condition = 't."midpointMjdTai" BETWEEN %s AND %s AND t."timeWithdrawnMjdTai" IS NULL'
    return _of_objects(con, name, ids, condition, (since_mjd, until_mjd))


def rows_since(con: Connection, name: str, region: Region, ids: Sequence[int] | None, since_mjd: float) -> pa.Table:
    """DiaSources or DiaForcedSources since a time: of objects, or of a region where ids are None; by time and id."""
    if ids is not None:
        rows = _since(con, name, np.unique(np.array(ids, np.int64)), since_mjd, np.inf)
        return ordered(rows, ROW_ID[name], "midpointMjdTai")
    names = described(name).names
    # Histories have no index of the sky: this reads whole months, and nothing asks for it in the night.
    query = sql.SQL("SELECT {} FROM {} WHERE {} AND {} >= {} AND {} IS NULL").format(
        columns_sql(names),
        sql.Identifier(name),
        regions_condition([region]),
        sql.Identifier("midpointMjdTai"),
        since_mjd,
        sql.Identifier("timeWithdrawnMjdTai"),
    )
    rows = _copy(con, name, query, names)
    keep = region.contains(rows.column("ra").to_numpy(), rows.column("dec").to_numpy())
    return ordered(rows.filter(pa.array(keep)), ROW_ID[name], "midpointMjdTai")


def drp_objects(con: Connection, regions: Sequence[Region]) -> Part:
    """DRP Objects inside each of some regions, by id."""
    rows = _by_pixel(con, "DrpObject", regions, described("DrpObject").names, "objectId")
    return part_of(rows, members(rows.column("ra").to_numpy(), rows.column("dec").to_numpy(), regions))


def table(con: Connection, name: str, where: Mapping[str, Sequence[int]]) -> pa.Table:
    """See `Ppdb.table`."""
    if name not in ddl.TABLES:
        raise BadRequest(f"the PPDB has no table {name!r}; accepted: {', '.join(ddl.TABLES)}")
    names = described(name).names
    order = range(1, (len(names) if name in OWN_TABLES else 2) + 1)
    query = sql.SQL("SELECT {} FROM {}{} ORDER BY {}").format(
        columns_sql(names),
        sql.Identifier(ddl.VERSIONS if name == "DiaObject" else name),
        _where(where),
        sql.SQL(", ").join(sql.SQL(str(i)) for i in order),
    )
    return _copy(con, name, query, names)


def _where(where: Mapping[str, Sequence[int]]) -> sql.Composable:
    parts = []
    for column, values in where.items():
        if isinstance(values, range) and values.step == 1:
            part = sql.SQL("{0} >= {1} AND {0} < {2}").format(
                sql.Identifier(column), sql.Literal(values.start), sql.Literal(values.stop)
            )
        else:
            part = sql.SQL("{} = ANY({})").format(sql.Identifier(column), ids_sql([int(v) for v in values]))
        parts.append(part)
    return sql.SQL(" WHERE ") + sql.SQL(" AND ").join(parts) if parts else sql.SQL("")
