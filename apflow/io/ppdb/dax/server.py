"""The PPDB on an Apdb and a companion; see `apflow.io.ppdb.open_ppdb`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pandas as pd

from apflow.errors import BadRequest, ServiceError
from apflow.io.ppdb.dax import sql
from apflow.io.ppdb.dax.door import Door
from apflow.io.ppdb.dax.locks import FileLocks, Locks, ServerLocks, numbers_about, numbers_of_keys
from apflow.io.ppdb.dax.storing import Store
from apflow.io.ppdb.drp import DRP_MARGIN_ARCSEC
from apflow.io.ppdb.interface import Ppdb, StoreReport, Wanted
from apflow.io.ppdb.parts import ids_near
from apflow.io.ppdb.turns import from_text
from apflow.model import schema
from apflow.model.ids import mid_night, visit_detector_of
from apflow.model.ledger import Outcome
from apflow.model.products import Claim, DetectorResult, History, OutboxRow
from apflow.model.region import Region
from apflow.model.visit import Visit

_ACCEPTED = "dax:///absolute/path/config.yaml?companion=<percent-encoded duckdb:// or postgresql:// URL>"
#: Later than any observation, and no later than a date that astropy and databases take.
_EVER_MJD = 1.0e5
#: A pointing error moves a detector's sources beyond the region that was announced.
_POINTING_ARCSEC = 60.0


class DaxPpdb(Ppdb):
    """DiaObjects, DiaSources and DiaForcedSources of any lsst.dax.apdb; all else in a companion.

    The companion is a PPDB of ours on DuckDB or PostgreSQL: ledger, turns,
    outbox, DRP Objects, matches with them, units and descriptions. Only
    detectors that are stored through it are known to it. Pickles as its URL.

    Parameters
    ----------
    url : `str`
        ``dax:///absolute/path/config.yaml?companion=<percent-encoded URL>``;
        without a companion, ``<config>.companion.duckdb`` beside the configuration.
    create : `bool`
        Make the companion. The Apdb is a DBA's to make, by apdb-cli.
    """

    def __init__(self, url: str, create: bool = False) -> None:
        from apflow.io.ppdb import open_ppdb

        self._url = url
        path, companion = _parsed(url)
        self._door = Door(path)
        self._companion = open_ppdb(companion, create)
        self._store = Store(self._door, self._companion, _locks_of(companion))
        self._store.recover(wait=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return DaxPpdb, (self._url,)

    def __repr__(self) -> str:
        return f"DaxPpdb('dax://{self._door.path}')"

    def openVisit(self, visit: Visit, regions: Mapping[int, Region], deadline_unix: float) -> None:
        """See `Ppdb`."""
        self._companion.openVisit(visit, regions, deadline_unix)

    def awaitTurn(self, visit_id: int, detector: int, timeout_s: float, instrument: str | None = None) -> bool:
        """See `Ppdb`."""
        return self._companion.awaitTurn(visit_id, detector, timeout_s, instrument)

    def getDiaObjects(self, region: Region, margin_arcsec: float = 0.0) -> pd.DataFrame:
        """See `Ppdb`. Columns that the Apdb does not give for the last versions are null, counts 0."""
        wide = region.grown(margin_arcsec) if margin_arcsec else region
        self._store.recover(numbers_about(wide))
        return self._door.objects(wide)

    def getDiaSources(
        self, region: Region, object_ids: Sequence[int] | None, visit_time_mjd: float, days: float = 365.0
    ) -> pd.DataFrame:
        """See `Ppdb`; an Apdb on Cassandra gives nothing later than the visit."""
        return self._since("DiaSource", region, object_ids, visit_time_mjd, days)

    def getDiaForcedSources(
        self, region: Region, object_ids: Sequence[int] | None, visit_time_mjd: float, days: float = 365.0
    ) -> pd.DataFrame:
        """See `Ppdb`; an Apdb on Cassandra gives nothing later than the visit."""
        return self._since("DiaForcedSource", region, object_ids, visit_time_mjd, days)

    def _since(self, name: str, region: Region, ids: Sequence[int] | None, mjd: float, days: float) -> pd.DataFrame:
        self._store.recover(numbers_about(region))
        # Cassandra opens each partition in time up to then.
        until = _EVER_MJD if self._door.transactional else mjd
        return _standing(self._door.history(name, region, ids, mjd - days, until))

    def getHistory(
        self, wanted: Sequence[Wanted], *, margin_arcsec: float, radius_arcsec: float, days: float = 365.0
    ) -> list[History]:
        """See `Ppdb`; an Apdb is asked detector by detector."""
        regions = [w.region.grown(margin_arcsec) for w in wanted]
        if regions:
            self._store.recover(frozenset().union(*map(numbers_about, regions)))
        return [self._history(w, r, radius_arcsec, days) for w, r in zip(wanted, regions, strict=True)]

    def _history(self, wanted: Wanted, region: Region, radius_arcsec: float, days: float) -> History:
        objects = self._door.objects(region)
        ids, ra, dec = (objects[c].to_numpy() for c in ("diaObjectId", "ra", "dec"))
        (near,) = ids_near([wanted], [ids], ids, ra, dec, radius_arcsec)
        span = (wanted.mjd_tai - days, wanted.mjd_tai)
        sources, forced = (
            _standing(self._door.history(name, region, near.tolist(), *span))
            for name in ("DiaSource", "DiaForcedSource")
        )
        return History(objects, sources, forced, self._companion.getDrpObjects(wanted.region, DRP_MARGIN_ARCSEC))

    def getDrpObjects(self, region: Region, margin_arcsec: float = 60.0) -> pd.DataFrame:
        """See `Ppdb`."""
        return self._companion.getDrpObjects(region, margin_arcsec)

    def loadDrpObjects(self, objects: pd.DataFrame) -> int:
        """See `Ppdb`."""
        return self._companion.loadDrpObjects(objects)

    def getOrbits(self, designations: Sequence[str]) -> pd.DataFrame:
        """See `Ppdb`; they are loaded into the companion."""
        return self._companion.getOrbits(designations)

    def withdraw(self, dia_source_ids: Sequence[int], mjd_tai: float) -> int:
        """See `Ppdb`; an Apdb wants positions, so sources are looked for where the ledger has their detector."""
        wanted = {int(i) for i in dia_source_ids}
        found = _standing(self._sources_of({visit_detector_of(i) for i in wanted}))
        found = found[found["diaSourceId"].isin(wanted)]
        if len(found):
            self._door.withdraw(found, mjd_tai)
        self._companion.withdraw(sorted(wanted), mjd_tai)  # their alerts
        return len(found)

    def _sources_of(self, detectors: set[tuple[int, int]]) -> pd.DataFrame:
        parts = []
        for visit, detector in sorted(detectors):
            rows = self._companion.table("ledger", {"visit": [visit], "detector": [detector]})
            night = mid_night(visit) if len(rows) else 0.0
            for text in rows["region"].dropna():
                region = from_text(text).grown(_POINTING_ARCSEC)
                self._store.recover(numbers_about(region))
                parts.append(self._door.history("DiaSource", region, None, night - 1.0, night + 1.0))
        return pd.concat(parts) if parts else schema.empty("DiaSource")

    def containsVisitDetector(self, visit: int, detector: int, instrument: str | None = None) -> bool:
        """See `Ppdb`."""
        return self._companion.containsVisitDetector(visit, detector, instrument)

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
        return self._store.store(results, outbox, processed_mjd_tai, radius_arcsec)

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """See `Ppdb`."""
        with contextlib.suppress(ServiceError):  # what was begun waits for the Apdb; who waits for this does not
            self._store.recover(numbers_of_keys((o.instrument, o.visit, o.detector) for o in outcomes))
        self._companion.settle(outcomes)

    def pendingAlerts(self, limit: int | None = None, visit: int | None = None) -> list[OutboxRow]:
        """See `Ppdb`."""
        return self._companion.pendingAlerts(limit, visit)

    def claimAlerts(
        self,
        claim: str,
        lease_s: float,
        limit: int,
        visit: int | None = None,
        detectors: Sequence[int] | None = None,
    ) -> list[OutboxRow]:
        """See `Ppdb`."""
        return self._companion.claimAlerts(claim, lease_s, limit, visit, detectors)

    def claims(self) -> list[Claim]:
        """See `Ppdb`."""
        return self._companion.claims()

    def releaseAlerts(self, claim: str) -> None:
        """See `Ppdb`."""
        self._companion.releaseAlerts(claim)

    def endLease(self, claim: str) -> None:
        """See `Ppdb`."""
        self._companion.endLease(claim)

    def refuseAlerts(self, causes: Mapping[int, str]) -> None:
        """See `Ppdb`."""
        self._companion.refuseAlerts(causes)

    def markPublished(self, alert_ids: Sequence[int], when_unix: float) -> None:
        """See `Ppdb`."""
        self._companion.markPublished(alert_ids, when_unix)

    def ledger(self) -> pd.DataFrame:
        """See `Ppdb`."""
        return self._companion.ledger()

    def table(self, name: str, where: Mapping[str, Sequence[int]] | None = None) -> pd.DataFrame:
        """See `Ppdb`; the tables of the Apdb itself only where it is on SQL."""
        if name not in sql.TABLES:
            return self._companion.table(name, where)
        self._store.recover()
        return sql.table(self._door, name, where or {})

    def close(self) -> None:
        """See `Ppdb`."""
        self._door.close()
        self._companion.close()


def _standing(rows: pd.DataFrame) -> pd.DataFrame:
    """Rows that are not withdrawn."""
    withdrawn = rows["timeWithdrawnMjdTai"].notna().to_numpy()
    return rows[~withdrawn].reset_index(drop=True) if withdrawn.any() else rows


def _parsed(url: str) -> tuple[Path, str]:
    """Path of the configuration and URL of the companion."""
    parts = urlsplit(url)
    query = parse_qs(parts.query, keep_blank_values=True)
    path = Path(unquote(parts.path))
    if parts.scheme != "dax" or parts.netloc or not path.is_absolute() or set(query) - {"companion"} or parts.fragment:
        raise BadRequest(f"PPDB {parts.scheme}://{parts.netloc}{parts.path}: accepted: {_ACCEPTED}")
    companion = query.get("companion", [f"duckdb://{path.with_suffix('.companion.duckdb')}"])[-1]
    if not companion.startswith(("duckdb:///", "postgresql://")):
        raise BadRequest(
            f"companion of PPDB dax://{parts.path} is on {companion.partition(':')[0]!r}; accepted: {_ACCEPTED}"
        )
    return path.resolve(), companion


def _locks_of(companion: str) -> Locks:
    if companion.startswith("duckdb://"):
        return FileLocks(Path(companion.removeprefix("duckdb://") + ".locks"))
    return ServerLocks(companion)
