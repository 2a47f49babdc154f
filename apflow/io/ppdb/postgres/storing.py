"""The transaction that stores a batch.

Two stores that may disagree about an object, or about who stores a
detector-visit, come one after the other: each first takes advisory locks on the
cells of sky about its sources and on its detector-visits, all in one order.
What it reads after that is what all before it committed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import psycopg
import pyarrow as pa
from psycopg import sql

from apflow.errors import DataError
from apflow.io.ppdb import guard
from apflow.io.ppdb.batch import Batch
from apflow.io.ppdb.interface import StoreReport
from apflow.io.ppdb.own_tables import OUTBOX
from apflow.io.ppdb.postgres import ddl
from apflow.io.ppdb.postgres.copy import columns_sql, copy_in, copy_out, encode, ids_sql
from apflow.io.ppdb.postgres.pool import Connection, Pool
from apflow.io.ppdb.postgres.sky import cells_condition
from apflow.io.ppdb.postgres.turns import tell_ended
from apflow.io.ppdb.sky_index import distinct
from apflow.io.ppdb.tables import BATCH_TABLES, MATCHES
from apflow.io.ppdb.turns import Key
from apflow.model.ledger import Outcome

#: Cells of sky that are locked, 14': a detector touches a few, so that those of one raft hold up no other.
_LOCK_ORDER = 8
_COPIED = tuple(name for name in BATCH_TABLES if name != MATCHES)
#: Savepoint before the rows of a batch.
_ALL = "before_rows"
#: Detector-visits in the order in which every transaction locks them.
_KEYS = "unnest(%s::text[], %s::int8[], %s::int2[]) AS k (instrument, visit, detector)"


def store(con: Connection, batch: Batch, pool: Pool) -> StoreReport:
    """Store a batch within the transaction that `con` has open.

    Another connection looks who may be stored while the rows of all go in,
    since nearly always all may; where not, the rows are taken back.
    """
    guard.check_radius(batch)
    every = range(len(batch.keys))
    with ThreadPoolExecutor(1) as encoder, ThreadPoolExecutor(1) as judge:
        ahead = {name: encoder.submit(_encoded, name, batch) for name in _COPIED}
        _lock(con, batch)
        with pool.helpers(con, 1) as helpers:
            # What other batches did is committed, since this one has its locks; of its own rows the helper sees none.
            verdict = judge.submit(_verdict, helpers[0], batch) if helpers else _done(_verdict(con, batch))
            refused = _try_rows(con, batch, every, ahead)
            accepted, already, lost = verdict.result()
        if len(accepted) == len(every):
            if refused is not None:
                raise refused
        else:
            con.execute(f"ROLLBACK TO SAVEPOINT {_ALL}")
            _write_rows(con, batch, accepted, ahead)
        if accepted:
            _write_ledger(con, batch, accepted)
            _write_outbox(con, batch, accepted)
            tell_ended(con, [batch.keys[i] for i in accepted])
    stored, before, late = (tuple(batch.keys[i][1:] for i in which) for which in (accepted, already, lost))
    return StoreReport(stored, before, late)


def _done[T](value: T) -> Future[T]:
    future: Future[T] = Future()
    future.set_result(value)
    return future


def _verdict(con: Connection, batch: Batch) -> tuple[list[int], list[int], list[int]]:
    """Detectors to store, that are stored already, and that lost a race."""
    new, already = guard.split_stored(batch.keys, _stored(con, batch.keys))
    accepted, lost = guard.judge(batch, new, _current(con, batch, new))
    _check_ids(con, batch.rows["DiaSource"].of(accepted))
    return accepted, already, lost


def _try_rows(
    con: Connection, batch: Batch, every: Sequence[int], ahead: Mapping[str, Future[bytes]]
) -> Exception | None:
    """Write all rows behind a savepoint; an error that rows of before explain is not raised yet."""
    con.execute(f"SAVEPOINT {_ALL}")
    try:
        _write_rows(con, batch, every, ahead)
    except (psycopg.errors.IntegrityError, psycopg.errors.CardinalityViolation) as error:
        return error  # rows that are there already, or two of this batch that meet
    return None


def _lock(con: Connection, batch: Batch) -> None:
    every = range(len(batch.keys))
    shift = 2 * (guard.NEAR_ORDER - _LOCK_ORDER)
    cells = distinct(guard.cells_near(batch, every, ("DiaSource", "DiaObject")) >> shift)
    # Below zero, detector-visits never meet cells; two instruments' with one id merely take turns.
    visits = {-(visit << 8 | detector) for _, visit, detector in batch.keys}
    con.execute("SELECT pg_advisory_xact_lock(k) FROM unnest(%s::int8[]) AS k", [sorted({*cells.tolist(), *visits})])


def _columns(keys: Sequence[Key]) -> list[list[str] | list[int]]:
    return [[k[0] for k in keys], [k[1] for k in keys], [k[2] for k in keys]]


def _stored(con: Connection, keys: Sequence[Key]) -> set[Key]:
    rows = con.execute(
        f"SELECT instrument, visit, detector FROM ledger JOIN {_KEYS} USING (instrument, visit, detector) "
        "WHERE stored_unix IS NOT NULL",
        _columns(keys),
    ).fetchall()
    return {(instrument, visit, detector) for instrument, visit, detector in rows}


def _current(con: Connection, batch: Batch, which: Sequence[int]) -> pa.Table:
    """Current versions of the objects that detectors are about, and of all others near their sources."""
    near = _versions(con, cells_condition(guard.cells_near(batch, which), guard.NEAR_ORDER))
    wanted = np.array(guard.wanted_ids(batch, which), np.int64)
    # Almost all of them lie near a source; to look for each by its id would take three times as long as the cells.
    rest = np.setdiff1d(wanted, near.column("diaObjectId").to_numpy(), assume_unique=True)
    if not len(rest):
        return near
    return pa.concat_tables([near, _versions(con, sql.SQL('"diaObjectId" = ANY({})').format(ids_sql(rest)))])


def _versions(con: Connection, condition: sql.Composable) -> pa.Table:
    kinds = ddl.types("DiaObjectLast")
    query = sql.SQL('SELECT {} FROM "DiaObjectLast" WHERE {}').format(columns_sql(guard.VERSION_COLUMNS), condition)
    return copy_out(con.cursor(), query, guard.VERSION_COLUMNS, [kinds[c] for c in guard.VERSION_COLUMNS])


def _write_ledger(con: Connection, batch: Batch, accepted: Sequence[int]) -> None:
    alerts = Counter((a.visit, a.detector) for a in batch.outbox)
    offsets = batch.rows["DiaSource"].offsets
    con.execute(
        "INSERT INTO ledger (instrument, visit, detector, n_sources, n_alerts, arrived_unix, state, stored_unix) "
        "SELECT *, 'stored', %s FROM unnest(%s::text[], %s::int8[], %s::int2[], %s::int4[], %s::int4[], %s::float8[]) "
        "ORDER BY 1, 2, 3 "
        "ON CONFLICT (instrument, visit, detector) DO UPDATE SET state = excluded.state, cause = NULL, step = NULL, "
        "n_sources = excluded.n_sources, n_alerts = excluded.n_alerts, "
        "arrived_unix = excluded.arrived_unix, stored_unix = excluded.stored_unix",
        [
            time.time(),
            *_columns([batch.keys[i] for i in accepted]),
            [offsets[i + 1] - offsets[i] for i in accepted],
            [alerts[batch.keys[i][1:]] for i in accepted],
            [batch.arrived_unix[i] for i in accepted],
        ],
    )


def _write_rows(con: Connection, batch: Batch, accepted: Sequence[int], ahead: Mapping[str, Future[bytes]]) -> None:
    """The rows of some detectors; those of `ahead` are of all."""
    for name in BATCH_TABLES:
        rows = batch.rows[name].of(accepted)
        if not rows.num_rows:
            continue
        if name == MATCHES:
            _upsert(con, name, rows, "ON CONFLICT DO NOTHING")
        elif len(accepted) == len(batch.keys):
            copy_in(con.cursor(), name, rows, data=ahead[name].result())
        else:
            _copy(con, name, rows)
        if name == "DiaObject":
            _replace(con, "DiaObjectLast", rows.select(list(ddl.types("DiaObjectLast"))), "diaObjectId")


def _encoded(name: str, batch: Batch) -> bytes:
    rows = batch.rows[name].table
    kinds = ddl.types(name)
    return encode(rows, [kinds[c] for c in rows.column_names]) if rows.num_rows else b""


def _copy(con: Connection, name: str, rows: pa.Table, target: str | None = None) -> None:
    kinds = ddl.types(name)
    copy_in(con.cursor(), target or name, rows, [kinds[c] for c in rows.column_names])


def _upsert(con: Connection, name: str, rows: pa.Table, conflict: str) -> None:
    """COPY cannot meet rows that are there: it goes to a table of this session, and from there."""
    new = sql.Identifier(f"new_{name}")
    con.execute(
        sql.SQL("CREATE TEMP TABLE IF NOT EXISTS {} (LIKE {}) ON COMMIT DELETE ROWS").format(new, sql.Identifier(name))
    )
    _copy(con, name, rows, f"new_{name}")
    listed = columns_sql(rows.column_names)
    con.execute(
        sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {} {}").format(
            sql.Identifier(name), listed, listed, new, sql.SQL(conflict)
        )
    )


def _replace(con: Connection, name: str, rows: pa.Table, key: str) -> None:
    changes = ", ".join(f'"{c}" = excluded."{c}"' for c in rows.column_names if c != key)
    _upsert(con, name, rows, f'ON CONFLICT ("{key}") DO UPDATE SET {changes}')


def _check_ids(con: Connection, rows: pa.Table) -> None:
    """Refuse ids that another visit has: the key of a table that is partitioned by month holds the time too.

    A day about the visit is looked through, since an id holds the day.
    """
    if not rows.num_rows:
        return
    ids, mjd = (rows.column(c).to_numpy() for c in ("diaSourceId", "midpointMjdTai"))
    unique, count = np.unique(ids, return_counts=True)
    twice = (
        con.execute(
            sql.SQL(
                'SELECT "diaSourceId" FROM "DiaSource" '
                'WHERE "diaSourceId" = ANY({}) AND "midpointMjdTai" BETWEEN {} AND {}'
            ).format(ids_sql(ids), float(mjd.min()) - 1.0, float(mjd.max()) + 1.0),
            prepare=False,
        ).fetchone()
        or unique[count > 1].tolist()
    )
    if twice:
        raise DataError(f"PPDB DiaSource: a row with this diaSourceId is stored already: {twice[0]}")


def _write_outbox(con: Connection, batch: Batch, accepted: Sequence[int]) -> None:
    stored = {batch.keys[i][1:] for i in accepted}
    rows = [a for a in batch.outbox if (a.visit, a.detector) in stored]
    if rows:
        _copy(con, "outbox", pa.table({n: pa.array([getattr(a, n) for a in rows]) for n in OUTBOX}))


def settle(con: Connection, outcomes: Sequence[Outcome]) -> None:
    """Write terminal states and step records within the transaction that `con` has open."""
    outcomes = sorted(outcomes, key=lambda o: (o.instrument, o.visit, o.detector))
    keys = [(o.instrument, o.visit, o.detector) for o in outcomes]
    waited_for = con.execute(
        f"SELECT instrument, visit, detector FROM ledger JOIN {_KEYS} USING (instrument, visit, detector) "
        "WHERE state = 'expected'",
        _columns(keys),
    ).fetchall()
    fields = {
        **{"state": "text", "cause": "text", "step": "text", "n_sources": "int4", "n_alerts": "int4"},
        **{"arrived_unix": "float8", "published_unix": "float8"},
    }
    arrays = ", ".join(f"%s::{kind}[]" for kind in ("text", "int8", "int2", *fields.values()))
    con.execute(
        f"INSERT INTO ledger (instrument, visit, detector, {', '.join(fields)}) SELECT * FROM unnest({arrays}) "
        "ON CONFLICT (instrument, visit, detector) DO UPDATE SET "
        "state = excluded.state, cause = excluded.cause, step = excluded.step, "
        "n_sources = greatest(excluded.n_sources, ledger.n_sources), "
        "n_alerts = greatest(excluded.n_alerts, ledger.n_alerts), "
        "arrived_unix = coalesce(excluded.arrived_unix, ledger.arrived_unix), "
        "published_unix = coalesce(ledger.published_unix, excluded.published_unix) "
        "WHERE ledger.state <> 'done' OR excluded.state = 'done'",
        [*_columns(keys), [str(o.state) for o in outcomes]]
        + [[getattr(o, name) for o in outcomes] for name in list(fields)[1:]],
    )
    steps = [(key, s) for key, o in zip(keys, outcomes, strict=True) for s in o.steps]
    if steps:
        names = ("step", "start_unix", "stop_unix", "core_s", "worker")
        con.execute(
            f"INSERT INTO step_record (instrument, visit, detector, {', '.join(names)}) SELECT * "
            "FROM unnest(%s::text[], %s::int8[], %s::int2[], %s::text[], "
            "%s::float8[], %s::float8[], %s::float8[], %s::text[]) ON CONFLICT DO NOTHING",
            [*_columns([k for k, _ in steps]), *([getattr(s, n) for _, s in steps] for n in names)],
        )
    tell_ended(con, [(instrument, visit, detector) for instrument, visit, detector in waited_for])


def load_drp_objects(con: Connection, rows: pa.Table) -> None:
    """Add DRP Objects, or put them in the place of those that have their ids."""
    _replace(con, "DrpObject", rows, "objectId")
