"""The PPDB on a PostgreSQL server, from any number of processes and machines."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from apflow.errors import BadRequest
from apflow.io.ppdb.batch import Batch, prepare
from apflow.io.ppdb.blocks import uncollected
from apflow.io.ppdb.drp import conform_drp
from apflow.io.ppdb.interface import Ppdb, Statement, StoreReport, Wanted
from apflow.io.ppdb.postgres import ddl, operating, outbox, partitions, reading, storing, turns
from apflow.io.ppdb.postgres.connect import display
from apflow.io.ppdb.postgres.history import histories
from apflow.io.ppdb.postgres.pool import LOOK_UP, READ, WRITE, Connection
from apflow.io.ppdb.postgres.shared import Shared, shared
from apflow.io.ppdb.tables import APDB_TABLES, cut, to_arrow, to_frame
from apflow.model.ledger import Outcome
from apflow.model.products import Claim, DetectorResult, History, OutboxRow
from apflow.model.region import Region
from apflow.model.visit import Visit

#: How long a server that cannot be reached is tried.
PATIENCE_S = 30.0


class PostgresPpdb(Ppdb):
    """A PPDB by URL; see `apflow.io.ppdb.open_ppdb`.

    Handles are cheap: all of a process share its connections, which are
    opened on demand. A handle pickles as its URL.

    Parameters
    ----------
    url : `str`
        ``postgresql://...``, without password.
    create : `bool`
        Make the tables in an empty database.
    patience_s : `float`
        How long a server that cannot be reached is tried, seconds.
    """

    versions = ddl.VERSIONS

    def __init__(self, url: str, create: bool = False, patience_s: float = PATIENCE_S) -> None:
        self._url = url
        self._patience_s = patience_s
        self._closed = False
        mine = self._shared
        if create or not mine.checked:
            mine.pool.run(ddl.create if create else ddl.check_version)
            mine.checked = True

    def __reduce__(self) -> tuple[Any, ...]:
        return PostgresPpdb, (self._url, False, self._patience_s)

    def __repr__(self) -> str:
        return f"PostgresPpdb({display(self._url)!r})"

    @property
    def _shared(self) -> Shared:
        """Looked up at each call, since a forked child must not have its parent's."""
        if self._closed:
            raise BadRequest(f"PPDB {display(self._url)} is used after close()")
        return shared(self._url, self._patience_s)

    def _read[T](self, function: Callable[..., T], *arguments: Any) -> T:
        """Call a function with a connection and arguments, in a transaction that sees one moment."""
        return self._shared.pool.transaction(READ, lambda con: function(con, *arguments))

    def _look_up[T](self, function: Callable[..., T], *arguments: Any) -> T:
        return self._shared.pool.transaction(LOOK_UP, lambda con: function(con, *arguments))

    def _write[T](self, function: Callable[..., T], *arguments: Any) -> T:
        return self._shared.pool.transaction(WRITE, lambda con: function(con, *arguments))

    def openVisit(self, visit: Visit, regions: Mapping[int, Region], deadline_unix: float) -> None:
        """See `Ppdb`."""
        self._write(turns.open_visit, visit.instrument, visit.visit, regions, deadline_unix)

    def awaitTurn(self, visit_id: int, detector: int, timeout_s: float, instrument: str | None = None) -> bool:
        """See `Ppdb`."""
        mine = self._shared
        return turns.wait(mine.pool, mine.bell, visit_id, detector, timeout_s, instrument)

    def getDiaObjects(self, region: Region, margin_arcsec: float = 0.0) -> pd.DataFrame:
        """See `Ppdb`."""
        return to_frame(self._look_up(reading.objects, _grown(region, margin_arcsec)), "DiaObject")

    def getDiaSources(
        self, region: Region, object_ids: Sequence[int] | None, visit_time_mjd: float, days: float = 365.0
    ) -> pd.DataFrame:
        """See `Ppdb`."""
        return self._since("DiaSource", region, object_ids, visit_time_mjd - days)

    def getDiaForcedSources(
        self, region: Region, object_ids: Sequence[int] | None, visit_time_mjd: float, days: float = 365.0
    ) -> pd.DataFrame:
        """See `Ppdb`."""
        return self._since("DiaForcedSource", region, object_ids, visit_time_mjd - days)

    def _since(self, name: str, region: Region, ids: Sequence[int] | None, since_mjd: float) -> pd.DataFrame:
        if ids is None:
            return to_frame(self._read(reading.rows_inside, name, region, since_mjd), name)
        return to_frame(self._look_up(reading.rows_of, name, ids, since_mjd), name)

    def getHistory(
        self, wanted: Sequence[Wanted], *, margin_arcsec: float, radius_arcsec: float, days: float = 365.0
    ) -> list[History]:
        """See `Ppdb`."""
        if not wanted:
            return []
        with uncollected():
            return self._look_up(histories, self._shared.pool, wanted, margin_arcsec, radius_arcsec, days)

    def getDrpObjects(self, region: Region, margin_arcsec: float = 60.0) -> pd.DataFrame:
        """See `Ppdb`."""
        part = self._look_up(reading.drp_objects, [_grown(region, margin_arcsec)])
        return cut(part.rows, part.take, part.offsets, "DrpObject")[0]

    def loadDrpObjects(self, objects: pd.DataFrame) -> int:
        """See `Ppdb`."""
        # In the order of the sky, so that a region lies in few blocks.
        rows = to_arrow(conform_drp(objects), "DrpObject").sort_by("pixelId")
        self._write(storing.load_drp_objects, rows)
        return int(rows.num_rows)

    def withdraw(self, dia_source_ids: Sequence[int], mjd_tai: float) -> int:
        """See `Ppdb`."""
        return self._write(outbox.withdraw, [int(i) for i in dia_source_ids], mjd_tai)

    def containsVisitDetector(self, visit: int, detector: int, instrument: str | None = None) -> bool:
        """See `Ppdb`."""
        return self._shared.pool.run(lambda con: _contains(con, visit, detector, instrument))

    def storeBatch(
        self,
        results: Sequence[DetectorResult],
        outbox: Sequence[OutboxRow],
        processed_mjd_tai: float,
        *,
        radius_arcsec: float = 1.0,
    ) -> StoreReport:
        """See `Ppdb`."""
        if not results:
            return StoreReport()
        batch = prepare(results, outbox, processed_mjd_tai, radius_arcsec, lazily=True)
        self._make_months(batch)
        return self._write(storing.store, batch, self._shared.pool)

    def _make_months(self, batch: Batch) -> None:
        sources = batch.rows["DiaSource"].table
        if sources.num_rows:
            span = pc.min_max(sources.column("midpointMjdTai"))
            self._shared.make_months(span["min"].as_py(), span["max"].as_py())

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """See `Ppdb`."""
        if outcomes:
            self._write(storing.settle, outcomes)

    def pendingAlerts(self, limit: int | None = None, visit: int | None = None) -> list[OutboxRow]:
        """See `Ppdb`."""
        return self._read(outbox.pending, limit, visit)

    def claimAlerts(
        self,
        claim: str,
        lease_s: float,
        limit: int,
        visit: int | None = None,
        detectors: Sequence[int] | None = None,
    ) -> list[OutboxRow]:
        """See `Ppdb`."""
        return self._write(outbox.claim, claim, lease_s, limit, visit, detectors)

    def claims(self) -> list[Claim]:
        """See `Ppdb`."""
        return self._read(outbox.claims)

    def releaseAlerts(self, claim: str) -> None:
        """See `Ppdb`."""
        self._write(outbox.release, claim)

    def endLease(self, claim: str) -> None:
        """See `Ppdb`."""
        self._write(outbox.end_lease, claim)

    def refuseAlerts(self, causes: Mapping[int, str]) -> None:
        """See `Ppdb`."""
        self._write(outbox.refuse, causes)

    def markPublished(self, alert_ids: Sequence[int], when_unix: float) -> None:
        """See `Ppdb`."""
        self._write(outbox.mark_published, [int(i) for i in alert_ids], float(when_unix))

    def ledger(self) -> pd.DataFrame:
        """See `Ppdb`."""
        rows = self.table("ledger")
        return rows.assign(cause=rows["cause"].fillna(""), step=rows["step"].fillna(""))

    def table(self, name: str, where: Mapping[str, Sequence[int]] | None = None) -> pd.DataFrame:
        """See `Ppdb`."""
        rows = self._read(reading.table, name, where or {})
        return to_frame(rows, name) if name in APDB_TABLES else rows.to_pandas()

    def select(self, sql: str) -> pa.Table:
        """See `Ppdb`."""
        return self._read(operating.select, sql)

    def change(self, statements: Sequence[Statement]) -> None:
        """See `Ppdb`."""
        self._write(operating.change, statements)

    def sizes(self) -> dict[str, int]:
        """See `Ppdb`."""
        return self._read(operating.sizes)

    def partitions(self) -> list[partitions.Partition]:
        """See `Ppdb`."""
        return self._shared.pool.run(partitions.listing)

    def makePartitions(self, mjd_from: float, mjd_to: float) -> list[str]:
        """See `Ppdb`."""
        return self._shared.pool.run(lambda con: partitions.ensure(con, mjd_from, mjd_to))

    def close(self) -> None:
        """See `Ppdb`; other handles of this process go on, with new connections."""
        if not self._closed:
            mine = self._shared
            mine.checked = False
            mine.pool.close()
            self._closed = True


def _grown(region: Region, margin_arcsec: float) -> Region:
    return region.grown(margin_arcsec) if margin_arcsec else region


def _contains(con: Connection, visit: int, detector: int, instrument: str | None) -> bool:
    found = con.execute(
        "SELECT instrument FROM ledger WHERE stored_unix IS NOT NULL AND visit = %s AND detector = %s",
        [visit, detector],
    ).fetchall()
    return any(instrument in (None, name) for (name,) in found)
