"""Who sends which alert: the outbox in DuckDB, within the transaction that `con` has open."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from apflow.io.ppdb.own_tables import OUTBOX
from apflow.io.ppdb.storing import execute, query
from apflow.model.products import Claim, OutboxRow

PENDING = "published_unix IS NULL AND withdrawn_mjd_tai IS NULL AND refused IS NULL"
#: What an `OutboxRow` is made of; of a database that is older than trimming, nothing was trimmed.
COLUMNS = ", ".join(f'o."{c}"' for c in OUTBOX if c != "trimmed") + ", coalesce(o.trimmed, 0) AS trimmed"
_ORDER = "ORDER BY visit, detector, alert_id"


def pending(con: Any, limit: int | None, visit: int | None) -> list[OutboxRow]:
    """See `Ppdb.pendingAlerts`."""
    rows = query(
        con,
        f"SELECT {COLUMNS} FROM outbox o WHERE {PENDING}{_of(visit, None)} {_ORDER}"
        + ("" if limit is None else f" LIMIT {int(limit)}"),
    )
    return [OutboxRow(**r) for r in rows.to_pylist()]


def claim(
    con: Any, name: str, lease_s: float, limit: int, visit: int | None, detectors: Sequence[int] | None
) -> list[OutboxRow]:
    """See `Ppdb.claimAlerts`."""
    mine = pa.table({"name": pa.array([name], pa.string())})
    held = f"FROM outbox o WHERE claim = (SELECT name FROM mine) AND {PENDING}"
    if not query(con, f"SELECT 1 {held} LIMIT 1", mine=mine).num_rows:
        execute(
            con,
            f"UPDATE outbox SET claim = (SELECT name FROM mine), claimed_until_unix = {time.time() + lease_s!r} "
            f"WHERE alert_id IN (SELECT alert_id FROM outbox WHERE {PENDING} AND claim IS NULL"
            f"{_of(visit, detectors)} {_ORDER} LIMIT {int(limit)})",
            mine=mine,
        )
    arrived = "(SELECT max(arrived_unix) FROM ledger l WHERE l.visit = o.visit AND l.detector = o.detector)"
    rows = query(con, f"SELECT {COLUMNS}, {arrived} AS arrived_unix {held} {_ORDER}", mine=mine)
    return [OutboxRow(**r) for r in rows.to_pylist()]


def _of(visit: int | None, detectors: Sequence[int] | None) -> str:
    found = "" if visit is None else f" AND visit = {int(visit)}"
    if detectors is not None:
        found += f" AND detector IN ({', '.join(str(int(d)) for d in detectors) or 'NULL'})"
    return found


def claims(con: Any) -> list[Claim]:
    """See `Ppdb.claims`."""
    rows = query(
        con,
        "SELECT claim, min(claimed_until_unix) AS until, list(alert_id ORDER BY alert_id) AS ids "
        f"FROM outbox WHERE {PENDING} AND claim IS NOT NULL GROUP BY claim ORDER BY claim",
    )
    return [Claim(r["claim"], r["until"] - time.time(), tuple(r["ids"])) for r in rows.to_pylist()]


def release(con: Any, name: str) -> None:
    """See `Ppdb.releaseAlerts`."""
    _change(con, name, "claim = NULL, claimed_until_unix = NULL")


def end_lease(con: Any, name: str) -> None:
    """See `Ppdb.endLease`."""
    _change(con, name, "claimed_until_unix = 0")


def _change(con: Any, name: str, values: str) -> None:
    mine = pa.table({"name": pa.array([name], pa.string())})
    execute(con, f"UPDATE outbox SET {values} WHERE {PENDING} AND claim = (SELECT name FROM mine)", mine=mine)


def refuse(con: Any, causes: Mapping[int, str]) -> None:
    """See `Ppdb.refuseAlerts`."""
    execute(
        con,
        "UPDATE outbox SET refused = r.cause, claim = NULL, claimed_until_unix = NULL FROM refusals r "
        "WHERE outbox.alert_id = r.id AND published_unix IS NULL",
        refusals=pa.table({"id": pa.array(causes, pa.int64()), "cause": pa.array(causes.values(), pa.string())}),
    )


def mark_published(con: Any, ids: Sequence[int], when_unix: float) -> None:
    """See `Ppdb.markPublished`."""
    sent = pa.table({"id": pa.array(ids, pa.int64())})
    execute(
        con,
        f"UPDATE outbox SET published_unix = {float(when_unix)!r}, claim = NULL, claimed_until_unix = NULL "
        "WHERE published_unix IS NULL AND alert_id IN (SELECT id FROM sent)",
        sent=sent,
    )
    execute(
        con,
        f"UPDATE ledger SET published_unix = {float(when_unix)!r} WHERE published_unix IS NULL "
        "AND stored_unix IS NOT NULL AND (visit, detector) IN "
        "(SELECT visit, detector FROM outbox WHERE alert_id IN (SELECT id FROM sent)) AND NOT EXISTS "
        f"(SELECT 1 FROM outbox o WHERE o.visit = ledger.visit AND o.detector = ledger.detector "
        f"AND o.published_unix IS NULL AND o.withdrawn_mjd_tai IS NULL AND o.refused IS NULL)",
        sent=sent,
    )
