"""The transaction that stores a batch: who may still be stored, and the rows."""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from apflow.errors import DataError
from apflow.io.ppdb import guard
from apflow.io.ppdb.batch import Batch
from apflow.io.ppdb.interface import StoreReport
from apflow.io.ppdb.own_tables import OUTBOX
from apflow.io.ppdb.sky_index import box_sql
from apflow.io.ppdb.tables import BATCH_TABLES, MATCHES, select_list, stored_columns
from apflow.io.ppdb.turns import Key
from apflow.model import schema
from apflow.model.ledger import Outcome
from apflow.model.region import Region

#: Rows of a piece of what is read: a column of it stays in the processor's cache, and does not move as it grows.
_PIECE = 24576


def store(con: Any, batch: Batch) -> StoreReport:
    """Store a batch within the transaction that `con` has open."""
    guard.check_radius(batch)
    new, already = guard.split_stored(batch.keys, _stored(con, batch.keys))
    accepted, lost = guard.judge(batch, new, _current(con, batch, new))
    if accepted:
        _write_ledger(con, batch, accepted)
        _write_rows(con, batch, accepted)
        _write_outbox(con, batch, accepted)
    stored, before, late = (tuple(batch.keys[i][1:] for i in which) for which in (accepted, already, lost))
    return StoreReport(stored, before, late)


def query(con: Any, sql: str, **tables: pa.Table) -> pa.Table:
    """Rows of a SELECT that may read Arrow tables by name."""
    with _registered(con, tables):
        return con.sql(sql).to_arrow_table(_PIECE)


def execute(con: Any, sql: str, **tables: pa.Table) -> int:
    """Run a statement that may read Arrow tables by name; gives the number of rows it changed."""
    with _registered(con, tables):
        return int(con.execute(sql).fetchall()[0][0])


def conditions(where: Mapping[str, Sequence[int]]) -> tuple[str, dict[str, pa.Table]]:
    """WHERE clause of `Ppdb.table`, and the tables that it reads."""
    parts: list[str] = []
    tables: dict[str, pa.Table] = {}
    for column, values in where.items():
        if isinstance(values, range) and values.step == 1:
            parts.append(f'"{column}" >= {values.start} AND "{column}" < {values.stop}')
        else:
            tables[f"wanted_{column}"] = pa.table({"value": pa.array([int(v) for v in values], pa.int64())})
            parts.append(f'"{column}" IN (SELECT value FROM "wanted_{column}")')
    return (" WHERE " + " AND ".join(parts) if parts else ""), tables


@contextlib.contextmanager
def _registered(con: Any, tables: Mapping[str, pa.Table]) -> Iterator[None]:
    for name, table in tables.items():
        con.register(name, table)
    try:
        yield
    finally:
        for name in tables:
            # A failed statement aborts the transaction, and its end removes the names too.
            with contextlib.suppress(duckdb.TransactionException):
                con.unregister(name)


def keys_table(keys: Sequence[Key]) -> pa.Table:
    """Keys as an Arrow table."""
    instrument, visit, detector = zip(*keys, strict=True) if keys else ((), (), ())
    return pa.table(
        {
            "instrument": pa.array(instrument, pa.string()),
            "visit": pa.array(visit, pa.int64()),
            "detector": pa.array(detector, pa.int16()),
        }
    )


def _stored(con: Any, keys: Sequence[Key]) -> set[Key]:
    rows = query(
        con,
        "SELECT instrument, visit, detector FROM ledger JOIN new_keys USING (instrument, visit, detector) "
        "WHERE stored_unix IS NOT NULL",
        new_keys=keys_table(keys),
    )
    return {(r["instrument"], r["visit"], r["detector"]) for r in rows.to_pylist()}


def _current(con: Any, batch: Batch, which: Sequence[int]) -> pa.Table:
    """Current versions of the objects that detectors are about, and of all others near their sources."""
    columns = ", ".join(f'"{c}"' for c in guard.VERSION_COLUMNS)
    sources = batch.rows["DiaSource"].of(which)
    parts = []
    if sources.num_rows:
        places = Region(np.stack([sources.column(c).to_numpy() for c in ("ra", "dec")], -1))
        around = box_sql(places, batch.radius_arcsec)
        parts.append(query(con, f'SELECT {columns} FROM "DiaObjectLast" WHERE {around}'))
    wanted = np.array(guard.wanted_ids(batch, which), np.int64)
    if parts:  # almost all of them
        wanted = np.setdiff1d(wanted, parts[0].column("diaObjectId").to_numpy(), assume_unique=True)
    if len(wanted):
        by_id = f'SELECT {columns} FROM "DiaObjectLast" WHERE "diaObjectId" IN (SELECT id FROM wanted)'
        parts.append(query(con, by_id, wanted=pa.table({"id": wanted})))
    return pa.concat_tables(parts) if parts else query(con, f'SELECT {columns} FROM "DiaObjectLast" LIMIT 0')


def _write_ledger(con: Any, batch: Batch, accepted: Sequence[int]) -> None:
    alerts = Counter((a.visit, a.detector) for a in batch.outbox)
    offsets = batch.rows["DiaSource"].offsets
    rows = keys_table([batch.keys[i] for i in accepted])
    rows = rows.append_column("n_sources", pa.array([offsets[i + 1] - offsets[i] for i in accepted], pa.int32()))
    n_alerts = [alerts[batch.keys[i][1:]] for i in accepted]
    rows = rows.append_column("n_alerts", pa.array(n_alerts, pa.int32()))
    rows = rows.append_column("arrived_unix", pa.array([batch.arrived_unix[i] for i in accepted], pa.float64()))
    execute(
        con,
        "INSERT INTO ledger (instrument, visit, detector, n_sources, n_alerts, arrived_unix, state, stored_unix) "
        f"SELECT *, 'stored', {time.time()!r} FROM new_ledger "
        "ON CONFLICT DO UPDATE SET state = excluded.state, cause = NULL, step = NULL, "
        "n_sources = excluded.n_sources, n_alerts = excluded.n_alerts, "
        "arrived_unix = excluded.arrived_unix, stored_unix = excluded.stored_unix",
        new_ledger=rows,
    )


def _write_rows(con: Any, batch: Batch, accepted: Sequence[int]) -> None:
    for name in BATCH_TABLES:
        rows = batch.rows[name].of(accepted)
        if not rows.num_rows:
            continue
        if name == "DiaObject":
            _supersede(con, rows)
        again = " ON CONFLICT DO NOTHING" if name == MATCHES else ""
        try:
            execute(con, f'INSERT INTO "{name}" BY NAME SELECT * FROM new_rows{again}', new_rows=rows)
        except duckdb.ConstraintException as error:
            key = ", ".join(schema.table(name).primary_key)
            raise DataError(f"PPDB {name}: a row with this {key} is stored already: {error}") from error


def _supersede(con: Any, versions: pa.Table) -> None:
    """Close the current versions that others follow, and make these the last ones."""
    execute(
        con,
        'UPDATE "DiaObject" o SET "validityEndMjdTai" = n."validityStartMjdTai" FROM new_rows n '
        'WHERE o."diaObjectId" = n."diaObjectId" AND o."validityEndMjdTai" IS NULL',
        new_rows=versions.select(["diaObjectId", "validityStartMjdTai"]),
    )
    names = [c.name for c in stored_columns("DiaObjectLast") if c.name != "diaObjectId"]
    execute(
        con,
        f'INSERT INTO "DiaObjectLast" SELECT {select_list("DiaObjectLast")}, "pixelId" FROM new_rows '
        "ON CONFLICT DO UPDATE SET " + ", ".join(f'"{n}" = excluded."{n}"' for n in names),
        new_rows=_last(versions),
    )


def _last(versions: pa.Table) -> pa.Table:
    """The newest of each object, where two detectors of a batch made versions of one."""
    ids, start = (versions.column(c).to_numpy() for c in ("diaObjectId", "validityStartMjdTai"))
    order = np.lexsort([start, ids])
    last = np.append(ids[order][1:] != ids[order][:-1], True)
    return versions if last.all() else versions.take(pa.array(order[last]))


def _write_outbox(con: Any, batch: Batch, accepted: Sequence[int]) -> None:
    stored = {batch.keys[i][1:] for i in accepted}
    rows = [a for a in batch.outbox if (a.visit, a.detector) in stored]
    if rows:
        table = pa.table({n: pa.array([getattr(a, n) for a in rows]) for n in OUTBOX})
        execute(con, "INSERT INTO outbox BY NAME SELECT * FROM new_outbox", new_outbox=table)


def settle(con: Any, keys: Sequence[Key], outcomes: Sequence[Outcome]) -> None:
    """Write terminal states and step records."""
    fields = {
        "state": pa.string(),
        "cause": pa.string(),
        "step": pa.string(),
        "n_sources": pa.int32(),
        "n_alerts": pa.int32(),
        "arrived_unix": pa.float64(),
        "published_unix": pa.float64(),
    }
    rows = keys_table(keys)
    for name, kind in fields.items():
        rows = rows.append_column(name, pa.array([getattr(o, name) for o in outcomes], kind))
    execute(
        con,
        f"INSERT INTO ledger (instrument, visit, detector, {', '.join(fields)}) SELECT * FROM outcomes "
        "ON CONFLICT DO UPDATE SET state = excluded.state, cause = excluded.cause, step = excluded.step, "
        "n_sources = greatest(excluded.n_sources, ledger.n_sources), "
        "n_alerts = greatest(excluded.n_alerts, ledger.n_alerts), "
        "arrived_unix = coalesce(excluded.arrived_unix, ledger.arrived_unix), "
        "published_unix = coalesce(ledger.published_unix, excluded.published_unix) "
        "WHERE ledger.state <> 'done' OR excluded.state = 'done'",
        outcomes=rows,
    )
    steps = [(key, s) for key, o in zip(keys, outcomes, strict=True) for s in o.steps]
    if steps:
        table = keys_table([key for key, _ in steps])
        for name in ("step", "start_unix", "stop_unix", "core_s", "worker"):
            table = table.append_column(name, pa.array([getattr(s, name) for _, s in steps]))
        execute(con, "INSERT INTO step_record SELECT * FROM steps ON CONFLICT DO NOTHING", steps=table)


def load_drp_objects(con: Any, rows: pa.Table) -> None:
    """Add DRP Objects, or put them in the place of those that have their ids."""
    names = [c.name for c in stored_columns("DrpObject") if c.name != "objectId"]
    execute(
        con,
        # In the order of the sky, so that a region lies in few places of the file.
        'INSERT INTO "DrpObject" BY NAME SELECT * FROM new_rows ORDER BY "pixelId" ON CONFLICT DO UPDATE SET '
        + ", ".join(f'"{n}" = excluded."{n}"' for n in names),
        new_rows=rows,
    )


def withdraw(con: Any, ids: Sequence[int], mjd_tai: float) -> int:
    """Withdraw DiaSources, and their alerts that have not left; gives the number of DiaSources."""
    wanted = pa.table({"id": pa.array(ids, pa.int64())})
    standing = query(
        con,
        'SELECT "diaSourceId" AS id FROM "DiaSource" '
        'WHERE "timeWithdrawnMjdTai" IS NULL AND "diaSourceId" IN (SELECT id FROM wanted)',
        wanted=wanted,
    )
    execute(
        con,
        f'UPDATE "DiaSource" SET "timeWithdrawnMjdTai" = {float(mjd_tai)!r} '
        'WHERE "diaSourceId" IN (SELECT id FROM standing)',
        standing=standing,
    )
    execute(
        con,
        f"UPDATE outbox SET withdrawn_mjd_tai = {float(mjd_tai)!r} WHERE published_unix IS NULL "
        "AND withdrawn_mjd_tai IS NULL AND alert_id IN (SELECT id FROM wanted)",
        wanted=wanted,
    )
    return int(standing.num_rows)
