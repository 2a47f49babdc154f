"""What is read for association: a few requests, whatever the number of detectors."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from psycopg import sql

from apflow.errors import BadRequest
from apflow.io.ppdb.parts import I8, ROW_ID, Part, ordered, part_of
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


def _by_pixel(con: Connection, name: str, regions: Sequence[Region], columns: Sequence[str], key: str) -> pa.Table:
    """Rows about some regions, in the order of a key."""
    kinds = ddl.types(name)
    query = sql.SQL("SELECT {} FROM {} WHERE {}").format(
        columns_sql(columns), sql.Identifier(name), regions_condition(regions)
    )
    return ordered(copy_out(con.cursor(), query, columns, [kinds[c] for c in columns]), key)


class _Asked(NamedTuple):
    """A SELECT with ``{ids}`` and its columns; made once, since quoting a hundred names takes a millisecond."""

    text: str
    names: tuple[str, ...]
    kinds: tuple[str, ...]


@functools.cache
def _asked(name: str, wanted: str, condition: str) -> _Asked:
    names = described(name).names
    query = sql.SQL("SELECT {} FROM {} JOIN {} t ON {}").format(
        columns_sql(names, "t"), sql.SQL(wanted), sql.Identifier(name), sql.SQL(condition)
    )
    return _Asked(query.as_string(), names, tuple(ddl.types(name)[c] for c in names))


def _rows(con: Connection, asked: _Asked, arrays: Sequence[NDArray[Any]], bounds: Sequence[float]) -> pa.Table:
    """Rows of objects that are named in arrays."""
    few = len(arrays[0]) <= _FEW
    given = [sql.SQL("%s") if few else _array_sql(a) for a in arrays]
    query = sql.SQL(asked.text).format(*given)
    if few:
        return fetch(con.cursor(), query, asked.names, asked.kinds, [*(a.tolist() for a in arrays), *bounds])
    return copy_out(con.cursor(), query, asked.names, asked.kinds, list(bounds) or None)


def _array_sql(values: NDArray[Any]) -> sql.SQL:
    """Many values as a literal, where bind parameters cannot be had."""
    return sql.SQL("'{" + ",".join(map(repr, values.tolist())) + "}'")


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
    asked = _asked(
        "DiaObject",
        "unnest({}::int8[], {}::float8[]) AS w (id, start)",
        't."diaObjectId" = w.id AND t."validityStartMjdTai" = w.start',
    )
    arrays = [last.column(c).to_numpy()[which] for c in _LAST[:2]]
    return ordered(_rows(con, asked, arrays, ()), "diaObjectId")


def _since(con: Connection, name: str, ids: I8, since_mjd: float, until_mjd: float) -> pa.Table:
    asked = _asked(
        name,
        "unnest({}::int8[]) AS w (id)",
        't."diaObjectId" = w.id AND t."midpointMjdTai" BETWEEN %s AND %s AND t."timeWithdrawnMjdTai" IS NULL',
    )
    return _rows(con, asked, [ids], (since_mjd, until_mjd))


def rows_of(con: Connection, name: str, ids: Sequence[int], since_mjd: float) -> pa.Table:
    """DiaSources or DiaForcedSources of objects since a time, by time and id."""
    rows = _since(con, name, np.unique(np.array(ids, np.int64)), since_mjd, np.inf)
    return ordered(rows, ROW_ID[name], "midpointMjdTai")


def rows_inside(con: Connection, name: str, region: Region, since_mjd: float) -> pa.Table:
    """DiaSources or DiaForcedSources inside a region since a time, by time and id.

    Histories have no index of the sky: this reads whole months, and nothing asks for it in the night.
    """
    names, kinds = described(name).names, ddl.types(name)
    query = sql.SQL('SELECT {} FROM {} WHERE {} AND "midpointMjdTai" >= {} AND "timeWithdrawnMjdTai" IS NULL').format(
        columns_sql(names), sql.Identifier(name), regions_condition([region]), since_mjd
    )
    rows = copy_out(con.cursor(), query, names, [kinds[c] for c in names])
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
    kinds = ddl.types(name)
    return copy_out(con.cursor(), query, names, [kinds[c] for c in names])


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
