"""Who sends which alert: the outbox, within the transaction that `con` has open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from apflow.io.ppdb.outbox import COLUMNS, PENDING
from apflow.io.ppdb.own_tables import OUTBOX
from apflow.io.ppdb.postgres.pool import Connection
from apflow.model.products import Claim, OutboxRow

_ORDER = "ORDER BY visit, detector, alert_id"


def pending(con: Connection, limit: int | None, visit: int | None) -> list[OutboxRow]:
    """See `Ppdb.pendingAlerts`."""
    rows = con.execute(
        f"SELECT {COLUMNS} FROM outbox o WHERE {PENDING} AND (%s::int8 IS NULL OR visit = %s) {_ORDER} LIMIT %s",
        [visit, visit, limit],
    )
    return [_row(row) for row in rows]


def _row(values: Sequence[Any]) -> OutboxRow:
    return OutboxRow(**dict(zip((*OUTBOX, "arrived_unix"), values, strict=False)))


def claim(
    con: Connection, name: str, lease_s: float, limit: int, visit: int | None, detectors: Sequence[int] | None
) -> list[OutboxRow]:
    """See `Ppdb.claimAlerts`."""
    held = f"FROM outbox o WHERE claim = %s AND {PENDING}"
    if con.execute(f"SELECT 1 {held} LIMIT 1", [name]).fetchone() is None:
        con.execute(
            "UPDATE outbox SET claim = %s, claimed_until_unix = extract(epoch FROM clock_timestamp()) + %s "
            f"WHERE alert_id IN (SELECT alert_id FROM outbox WHERE {PENDING} AND claim IS NULL "
            "AND (%s::int8 IS NULL OR visit = %s) AND (%s::int2[] IS NULL OR detector = ANY(%s::int2[])) "
            f"{_ORDER} LIMIT %s FOR UPDATE SKIP LOCKED)",
            [name, lease_s, visit, visit, detectors and list(detectors), detectors and list(detectors), limit],
        )
    arrived = "(SELECT max(arrived_unix) FROM ledger l WHERE l.visit = o.visit AND l.detector = o.detector)"
    return [_row(row) for row in con.execute(f"SELECT {COLUMNS}, {arrived} {held} {_ORDER}", [name])]


def claims(con: Connection) -> list[Claim]:
    """See `Ppdb.claims`."""
    rows = con.execute(
        "SELECT claim, min(claimed_until_unix) - extract(epoch FROM clock_timestamp())::float8, "
        f"array_agg(alert_id ORDER BY alert_id) FROM outbox WHERE {PENDING} AND claim IS NOT NULL "
        "GROUP BY claim ORDER BY claim"
    )
    return [Claim(name, left_s, tuple(ids)) for name, left_s, ids in rows]


def release(con: Connection, name: str) -> None:
    """See `Ppdb.releaseAlerts`."""
    con.execute(f"UPDATE outbox SET claim = NULL, claimed_until_unix = NULL WHERE {PENDING} AND claim = %s", [name])


def end_lease(con: Connection, name: str) -> None:
    """See `Ppdb.endLease`."""
    con.execute(f"UPDATE outbox SET claimed_until_unix = 0 WHERE {PENDING} AND claim = %s", [name])


def refuse(con: Connection, causes: Mapping[int, str]) -> None:
    """See `Ppdb.refuseAlerts`."""
    con.execute(
        "UPDATE outbox SET refused = r.cause, claim = NULL, claimed_until_unix = NULL "
        "FROM unnest(%s::int8[], %s::text[]) AS r (id, cause) WHERE alert_id = r.id AND published_unix IS NULL",
        [list(causes), list(causes.values())],
    )


def mark_published(con: Connection, ids: Sequence[int], when_unix: float) -> None:
    """See `Ppdb.markPublished`."""
    # Whoever marks the rest of a detector's alerts waits here: neither would see what the other has not committed.
    con.execute(
        "SELECT FROM ledger WHERE (visit, detector) IN (SELECT visit, detector FROM outbox "
        "WHERE alert_id = ANY(%s::int8[])) ORDER BY instrument, visit, detector FOR UPDATE",
        [list(ids)],
    )
    con.execute(
        "UPDATE outbox SET published_unix = %s, claim = NULL, claimed_until_unix = NULL "
        "WHERE published_unix IS NULL AND alert_id = ANY(%s::int8[])",
        [when_unix, list(ids)],
    )
    con.execute(
        "UPDATE ledger SET published_unix = %s FROM (SELECT DISTINCT visit, detector FROM outbox "
        "WHERE alert_id = ANY(%s::int8[])) AS sent WHERE ledger.visit = sent.visit AND ledger.detector = sent.detector "
        "AND published_unix IS NULL AND stored_unix IS NOT NULL AND NOT EXISTS (SELECT 1 FROM outbox o WHERE "
        "o.visit = ledger.visit AND o.detector = ledger.detector AND o.published_unix IS NULL "
        "AND o.withdrawn_mjd_tai IS NULL AND o.refused IS NULL)",
        [when_unix, list(ids)],
    )


def withdraw(con: Connection, ids: Sequence[int], mjd_tai: float) -> int:
    """See `Ppdb.withdraw`."""
    done = con.execute(
        'UPDATE "DiaSource" SET "timeWithdrawnMjdTai" = %s '
        'WHERE "timeWithdrawnMjdTai" IS NULL AND "diaSourceId" = ANY(%s::int8[])',
        [mjd_tai, list(ids)],
    )
    con.execute(
        "UPDATE outbox SET withdrawn_mjd_tai = %s WHERE published_unix IS NULL AND withdrawn_mjd_tai IS NULL "
        "AND alert_id = ANY(%s::int8[])",
        [mjd_tai, list(ids)],
    )
    return done.rowcount
