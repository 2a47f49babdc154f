"""Partitions by month of the tables that grow: made ahead, and a rest for rows of no month."""

from __future__ import annotations

import datetime as dt
import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg import sql

from apflow.errors import BadRequest
from apflow.io.ppdb.postgres.connect import errors

type Connection = psycopg.Connection[tuple[Any, ...]]

#: The partitioned tables and the time, MJD TAI, that decides a row's month.
BY = {"DiaObject": "validityStartMjdTai", "DiaSource": "midpointMjdTai", "DiaForcedSource": "midpointMjdTai"}
_ZERO = dt.date(1858, 11, 17)
_REST = "rest"
#: A century: more months than that are a mistake in the request.
_MAX_MONTHS = 1200
#: Partitions c of the tables p that the connection sees.
_FROM_PARTITIONS = (
    "FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid JOIN pg_class p ON p.oid = i.inhparent "
    "WHERE p.oid = ANY(ARRAY(SELECT to_regclass(quote_ident(t)) FROM unnest(%s::text[]) t))"
)


@dataclass(frozen=True)
class Partition:
    """A partition; the rest, for rows of no month that has a partition, has neither beginning nor end.

    Attributes
    ----------
    table, name
        Names of the table and of the partition.
    from_mjd_tai, to_mjd_tai
        Its month: rows with ``from_mjd_tai <= t < to_mjd_tai``.
    rows
        Estimate of the last VACUUM or ANALYZE; None if there was none yet.
    size_bytes
        On disk, with indexes.
    """

    table: str
    name: str
    from_mjd_tai: float | None
    to_mjd_tai: float | None
    rows: int | None
    size_bytes: int


def rest_statement(table: str) -> sql.Composed:
    """SQL that makes the partition for rows of no month, so that none is ever refused."""
    return sql.SQL("CREATE TABLE {} PARTITION OF {} DEFAULT").format(
        sql.Identifier(f"{table}_{_REST}"), sql.Identifier(table)
    )


def _months(mjd_from: float, mjd_to: float) -> Iterator[tuple[str, int, int]]:
    """Months that a span of time touches: suffix of the partition's name, first MJD, MJD after the last."""
    try:
        first = (_ZERO + dt.timedelta(days=int(mjd_from // 1))).replace(day=1)
        last = _ZERO + dt.timedelta(days=int(mjd_to // 1))
    except (OverflowError, ValueError) as error:
        raise BadRequest(f"partitions from MJD {mjd_from} to {mjd_to}; accepted: days of the calendar") from error
    n = 12 * (last.year - first.year) + last.month - first.month + 1
    if not 0 < n <= _MAX_MONTHS:
        raise BadRequest(f"partitions from MJD {mjd_from} to {mjd_to}; accepted: 1 to {_MAX_MONTHS} months, in order")
    count = first.year * 12 + first.month - 1
    days = [dt.date(m // 12, m % 12 + 1, 1) for m in range(count, count + n + 1)]
    for begin, end in itertools.pairwise(days):
        yield f"{begin:%Y_%m}", (begin - _ZERO).days, (end - _ZERO).days


def ensure(connection: Connection, mjd_from: float, mjd_to: float) -> list[str]:
    """Make the partitions of all months from one time to another that are not there; gives their names. Commits.

    Any number of callers may do so at once, also while rows are read and
    written. Rows of such a month that wait in the rest move.

    Parameters
    ----------
    connection
        Outside a transaction, or one that may take the locks until it ends.
    mjd_from, mjd_to
        First and last time, MJD TAI.

    Raises
    ------
    BadRequest
        The times are not in order, or more than a century apart.
    ServiceError
        A transaction held the rest for longer than 2 s; nothing was made.
    """
    wanted = [(t, f"{t}_{suffix}", lo, hi) for suffix, lo, hi in _months(mjd_from, mjd_to) for t in BY]
    with errors():
        missing = _missing(connection, wanted)
        if not missing:
            return []
        with connection.transaction():
            connection.execute("SELECT pg_advisory_xact_lock(hashtext('apflow ppdb partitions'))")
            # Readers queue behind a lock that is waited for: rather give up and come back.
            connection.execute("SET LOCAL lock_timeout = '2s'")
            missing = _missing(connection, wanted)
            for table, name, low, high in missing:
                _make(connection, table, name, low, high)
    return [name for _, name, _, _ in missing]


type _Wanted = list[tuple[str, str, int, int]]


def _missing(connection: Connection, wanted: _Wanted) -> _Wanted:
    with connection.transaction():
        rows = connection.execute(f"SELECT c.relname {_FROM_PARTITIONS}", [list(BY)]).fetchall()
    there = {name for (name,) in rows}
    return [w for w in wanted if w[1] not in there]


def _make(connection: Connection, table: str, name: str, low: int, high: int) -> None:
    parts = {
        "table": sql.Identifier(table),
        "new": sql.Identifier(name),
        "rest": sql.Identifier(f"{table}_{_REST}"),
        "by": sql.Identifier(BY[table]),
        "low": sql.Literal(low),
        "high": sql.Literal(high),
    }
    # Making the table as a partition would lock all readers out of all months; attaching it needs the rest alone.
    for text in (
        "LOCK TABLE {rest} IN ACCESS EXCLUSIVE MODE",
        "CREATE TABLE {new} (LIKE {table} INCLUDING DEFAULTS INCLUDING CONSTRAINTS)",
        "WITH moved AS (DELETE FROM {rest} WHERE {by} >= {low} AND {by} < {high} RETURNING *) "
        "INSERT INTO {new} SELECT * FROM moved",
        "ALTER TABLE {table} ATTACH PARTITION {new} FOR VALUES FROM ({low}) TO ({high})",
    ):
        connection.execute(sql.SQL(text).format(**parts), prepare=False)


_BOUNDS = re.compile(r"FROM \('?([-\d.e+]+)'?\) TO \('?([-\d.e+]+)'?\)")


def listing(connection: Connection) -> list[Partition]:
    """All partitions, by table and time; the rest last."""
    with errors(), connection.transaction():
        rows = connection.execute(
            "SELECT p.relname, c.relname, pg_get_expr(c.relpartbound, c.oid), c.reltuples, "
            f"pg_total_relation_size(c.oid) {_FROM_PARTITIONS}",
            [list(BY)],
        ).fetchall()
    found = []
    for table, name, bound, estimate, size in rows:
        match = _BOUNDS.search(bound)
        low, high = (float(match[1]), float(match[2])) if match else (None, None)
        found.append(Partition(table, name, low, high, int(estimate) if estimate >= 0 else None, size))
    order = list(BY)
    return sorted(found, key=lambda p: (order.index(p.table), p.from_mjd_tai is None, p.from_mjd_tai or 0.0))
