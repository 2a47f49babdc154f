"""Waiting for earlier visits on the same sky, across processes and machines.

What is expected stands in the ledger. Who stores, ends or announces
detector-visits says which by NOTIFY, so that a waiter asks the database once
and then crosses off what it hears of; a slow poll makes good what it missed.
"""

from __future__ import annotations

import functools
import json
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import batched

import numpy as np
from numpy.typing import NDArray

from apflow.errors import BadRequest
from apflow.io.ppdb.postgres.bell import CHANNEL, Bell
from apflow.io.ppdb.postgres.pool import Connection, Pool
from apflow.io.ppdb.postgres.sky import pixels
from apflow.io.ppdb.turns import REACH_ARCSEC, Expected, Key, expected, from_text, to_text
from apflow.model.region import Region

#: Pixels of 27': a detector's region meets one to four.
_CELL_ORDER = 7
#: How often the database is asked all the same, when notifications come and when they don't.
_POLL_S = 5.0
_DEAF_POLL_S = 0.5
#: A notification holds at most 8,000 bytes.
_KEYS_A_NOTE = 500


def open_visit(
    connection: Connection, instrument: str, visit: int, regions: Mapping[int, Region], deadline_unix: float
) -> None:
    """See `Ppdb.openVisit`; within a transaction."""
    detectors = sorted(regions)
    places = [to_text(regions[d]) for d in detectors]
    cells = ["{" + ",".join(map(str, _cells(regions[d]).tolist())) + "}" for d in detectors]
    connection.execute(
        "INSERT INTO ledger (instrument, visit, detector, region, cells, deadline_unix, state) "
        "SELECT %s, %s, detector, region, cells::int8[], %s, 'expected' "
        "FROM unnest(%s::int2[], %s::text[], %s::text[]) AS new (detector, region, cells) "
        "ON CONFLICT (instrument, visit, detector) DO UPDATE SET region = excluded.region, cells = excluded.cells, "
        "deadline_unix = excluded.deadline_unix, state = 'expected', cause = NULL, step = NULL "
        "WHERE ledger.stored_unix IS NULL AND (ledger.state = 'expected' OR %s > coalesce(ledger.deadline_unix, 0))",
        [instrument, visit, float(deadline_unix), detectors, places, cells, time.time()],
    )
    _notify(connection, ["open", instrument, visit])


def tell_ended(connection: Connection, keys: Iterable[Key]) -> None:
    """Say, when the transaction commits, that detector-visits are stored or ended."""
    by_visit: dict[tuple[str, int], list[int]] = {}
    for instrument, visit, detector in keys:
        by_visit.setdefault((instrument, visit), []).append(detector)
    for (instrument, visit), detectors in by_visit.items():
        for some in batched(detectors, _KEYS_A_NOTE):
            _notify(connection, ["end", instrument, visit, *some])


def _notify(connection: Connection, note: Sequence[str | int]) -> None:
    connection.execute("SELECT pg_notify(%s, %s)", [CHANNEL, json.dumps(note)])


def _cells(region: Region) -> NDArray[np.int64]:
    return pixels(region.grown(REACH_ARCSEC), _CELL_ORDER)


def wait(pool: Pool, bell: Bell, visit: int, detector: int, timeout_s: float, instrument: str | None) -> bool:
    """See `Ppdb.awaitTurn`."""
    until = time.monotonic() + timeout_s
    key, region = pool.run(lambda con: _announced(con, visit, detector, instrument))
    mine, cells = expected(region.grown(REACH_ARCSEC), 0.0), _cells(region).tolist()
    before = pool.run(lambda con: _before(con, key, mine, cells))
    if not before:
        return True
    with bell.ear() as ear:
        poll_at = 0.0
        while True:
            now = time.monotonic()
            if ear.must_look(key, now >= poll_at):
                before = pool.run(lambda con: _before(con, key, mine, cells))
                poll_at = now + (_POLL_S if ear.hears else _DEAF_POLL_S) * random.uniform(0.8, 1.2)
            clock = time.time()
            gone = ear.ended
            last_deadline = max((d for k, d in before.items() if k not in gone), default=0.0)
            if last_deadline <= clock:
                return True
            if now >= until:
                return False
            ear.wait(min(until - now, poll_at - now, last_deadline - clock) + 0.001)


def _announced(connection: Connection, visit: int, detector: int, instrument: str | None) -> tuple[Key, Region]:
    rows = connection.execute(
        "SELECT instrument, region FROM ledger WHERE visit = %s AND detector = %s", [visit, detector]
    ).fetchall()
    found = [(name, region) for name, region in rows if instrument in (None, name)]
    if len(found) != 1 or found[0][1] is None:
        names = ", ".join(name for name, _ in found)
        why = f"announced by {names}: name the instrument" if len(found) > 1 else "not announced; openVisit first"
        raise BadRequest(f"visit {visit} detector {detector} is {why}")
    return (found[0][0], visit, detector), from_text(found[0][1])


def _before(connection: Connection, key: Key, mine: Expected, cells: list[int]) -> dict[Key, float]:
    """Deadlines of the detector-visits that come first."""
    rows = connection.execute(
        "SELECT visit, detector, region, deadline_unix FROM ledger WHERE instrument = %s AND visit < %s "
        "AND state = 'expected' AND deadline_unix > %s AND cells && %s::int8[]",
        [key[0], key[1], time.time(), cells],
    ).fetchall()
    return {
        (key[0], visit, detector): deadline
        for visit, detector, region, deadline in rows
        if _place(region).overlaps(mine)
    }


@functools.lru_cache(maxsize=1000)
def _place(text: str) -> Expected:
    """A region that is met again at each look."""
    return expected(from_text(text), 0.0)
