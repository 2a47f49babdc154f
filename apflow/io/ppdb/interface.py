"""What a PPDB is, whatever stands behind it.

PPDB is DMTN-092's word for the live database of DiaSources and DiaObjects;
Rubin now calls it the APDB and its public copy the PPDB. Names of methods
follow ``lsst.dax.apdb.Apdb`` where it has them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
import pandas as pd
import pyarrow as pa
from numpy.typing import NDArray

from apflow.errors import BadRequest
from apflow.io.ppdb.tables import select_list, to_frame
from apflow.model.ledger import Outcome
from apflow.model.products import Claim, DetectorResult, History, OutboxRow
from apflow.model.region import Region
from apflow.model.visit import Visit

if TYPE_CHECKING:
    from apflow.io.ppdb.postgres.partitions import Partition


@dataclass(frozen=True)
class StoreReport:
    """What became of each detector of a batch, as (visit, detector).

    Attributes
    ----------
    stored
        Rows and outbox are committed by this call.
    already
        An earlier call stored them; nothing was written now.
    lost_race
        The objects they read are no longer current; nothing was written. Read
        the history again, associate again, store again.
    """

    stored: tuple[tuple[int, int], ...] = ()
    already: tuple[tuple[int, int], ...] = ()
    lost_race: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, eq=False)
class Wanted:
    """What the association of one detector-visit reads.

    Attributes
    ----------
    region
        Sky region of the detector.
    ra, dec
        Positions of its new DiaSources, degrees.
    mjd_tai
        Mid-exposure of the visit; the history ends there.
    """

    region: Region
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    mjd_tai: float


@dataclass(frozen=True, eq=False)
class Statement:
    """A statement of `Ppdb.change`, the tables that it reads by name, and how many rows it must change."""

    sql: str
    tables: Mapping[str, pa.Table] = field(default_factory=dict)
    rows: int | None = None

    def check(self, n: int) -> None:
        """Refuse what changed `n` rows where it must change another number.

        Raises
        ------
        BadRequest
            The rows are not as they were when the statement was made.
        """
        if self.rows is not None and n != self.rows:
            raise BadRequest("PPDB: it was changed by others meanwhile; nothing was written: start again")


class Ppdb(ABC):
    """The PPDB as steps see it; safe to use from many threads.

    Attributes
    ----------
    versions
        Name of the table or view of all DiaObject versions with
        validityEndMjdTai, for `select`.

    Every method may raise `ServiceError` when the database cannot be reached,
    and then may be called again: each is idempotent.
    """

    versions: ClassVar[str] = "DiaObject"

    @abstractmethod
    def openVisit(self, visit: Visit, regions: Mapping[int, Region], deadline_unix: float) -> None:
        """Announce the detector-visits to expect, with their sky regions.

        Later visits on the same sky wait for them (see `awaitTurn`) until
        `deadline_unix`. Announcing again changes nothing for detectors that
        are stored or ended, unless their deadline is past (a new attempt).
        """

    @abstractmethod
    def awaitTurn(self, visit_id: int, detector: int, timeout_s: float, instrument: str | None = None) -> bool:
        """Wait for earlier visits on the same sky.

        Returns when every announced detector-visit of the same instrument with
        a smaller visit id whose region overlaps this one's is stored, ended,
        or past its deadline. `instrument` is needed only where two instruments
        announced the same visit id.

        Returns
        -------
        bool
            False if `timeout_s` passed first.

        Raises
        ------
        BadRequest
            The detector-visit was not announced.
        """

    @abstractmethod
    def getDiaObjects(self, region: Region, margin_arcsec: float = 0.0) -> pd.DataFrame:
        """Current DiaObject versions inside a region grown by a margin."""

    @abstractmethod
    def getDiaSources(
        self, region: Region, object_ids: Sequence[int] | None, visit_time_mjd: float, days: float = 365.0
    ) -> pd.DataFrame:
        """DiaSources since ``visit_time_mjd - days``: of the objects, or of the region where ids are None.

        Withdrawn rows are left out. Ordered by time and id.
        """

    @abstractmethod
    def getDiaForcedSources(
        self, region: Region, object_ids: Sequence[int] | None, visit_time_mjd: float, days: float = 365.0
    ) -> pd.DataFrame:
        """DiaForcedSources; arguments as for `getDiaSources`."""

    @abstractmethod
    def getHistory(
        self, wanted: Sequence[Wanted], *, margin_arcsec: float, radius_arcsec: float, days: float = 365.0
    ) -> list[History]:
        """All that association reads, for one detector or for many in one request.

        For each detector: the current DiaObjects of its region grown by
        `margin_arcsec`; the DiaSources and DiaForcedSources, of the last `days`
        up to its time and not withdrawn, of those objects that lie within
        `radius_arcsec` of one of its sources; and the DRP Objects of the region
        grown by 60 arcsec.
        """

    @abstractmethod
    def getDrpObjects(self, region: Region, margin_arcsec: float = 60.0) -> pd.DataFrame:
        """DRP Objects inside a region grown by a margin; columns as in `History.drp`."""

    @abstractmethod
    def loadDrpObjects(self, objects: pd.DataFrame) -> int:
        """Add DRP Objects (columns as in `History.drp`); one that is there is replaced. Gives the number of rows."""

    def getOrbits(self, designations: Sequence[str]) -> pd.DataFrame:
        """Rows of mpc_orbits by designation, with times as datetime64; none for a designation that is not there."""
        names = ", ".join("'" + d.replace("'", "''") + "'" for d in sorted(set(designations))) or "NULL"
        rows = self.select(f"SELECT {select_list('mpc_orbits')} FROM mpc_orbits WHERE designation IN ({names})")
        times = {c: rows.column(c).to_pandas() for c in rows.column_names if pa.types.is_timestamp(rows[c].type)}
        return to_frame(rows, "mpc_orbits").assign(**times)

    @abstractmethod
    def withdraw(self, dia_source_ids: Sequence[int], mjd_tai: float) -> int:
        """Set timeWithdrawnMjdTai of DiaSources that are not withdrawn yet; gives how many.

        Alerts of theirs that are still in the outbox are not sent any more.
        """

    @abstractmethod
    def containsVisitDetector(self, visit: int, detector: int, instrument: str | None = None) -> bool:
        """Whether a detector-visit is stored, with or without sources."""

    @abstractmethod
    def storeBatch(
        self,
        results: Sequence[DetectorResult],
        outbox: Sequence[OutboxRow],
        processed_mjd_tai: float,
        *,
        radius_arcsec: float = 1.0,
    ) -> StoreReport:
        """Store detectors and the outbox of their alerts in one transaction.

        A detector is stored only if what it was associated with still stands:
        each DiaObject in its ``guard`` has the version named there, and no
        other current DiaObject lies within `radius_arcsec` (that of the
        association) of one of its sources. So two overlapping visits never
        make two DiaObjects for one thing. Outbox rows of detectors that are
        not stored are dropped.

        Raises
        ------
        DataError
            A table does not conform to the schema, or an id is taken. Nothing
            is stored: store detectors one by one to find and keep the others.
        """

    @abstractmethod
    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """Write the terminal states of detector-visits and the records of their steps.

        A detector-visit that is ``done`` stays so; any other state gives way
        to the newest.
        """

    @abstractmethod
    def pendingAlerts(self, limit: int | None = None, visit: int | None = None) -> list[OutboxRow]:
        """Alerts, of all visits or one, that are not published, withdrawn or refused; oldest visit first."""

    @abstractmethod
    def claimAlerts(
        self,
        claim: str,
        lease_s: float,
        limit: int,
        visit: int | None = None,
        detectors: Sequence[int] | None = None,
    ) -> list[OutboxRow]:
        """Take pending alerts that nobody has claimed, so that no two publishers send the same one.

        They stay claimed until they are marked or released, beyond the lease
        too: see `claims`. Asking again under the same name gives the same rows.

        Parameters
        ----------
        claim
            A name that is used once.
        lease_s
            How long the publisher may take, by the clock of the database.
        limit
            The most alerts to take, oldest visit first.
        visit, detectors
            Only alerts of these.

        Returns
        -------
        rows
            With `OutboxRow.arrived_unix`.
        """

    @abstractmethod
    def claims(self) -> list[Claim]:
        """What is claimed and still pending, lease over or not."""

    @abstractmethod
    def releaseAlerts(self, claim: str) -> None:
        """Give back what is still pending of a claim."""

    @abstractmethod
    def endLease(self, claim: str) -> None:
        """Say that a claim's publisher is done with it, and does not know what became of the alerts."""

    @abstractmethod
    def refuseAlerts(self, causes: Mapping[int, str]) -> None:
        """Note that alerts cannot be sent, with the cause: they are pending no more."""

    @abstractmethod
    def markPublished(self, alert_ids: Sequence[int], when_unix: float) -> None:
        """Note that alerts have left; the first time counts.

        A stored detector-visit of theirs without any alert pending gets its
        `published_unix` in the ledger.
        """

    @abstractmethod
    def ledger(self) -> pd.DataFrame:
        """One row a detector-visit: state (``expected``, ``stored``, or terminal), cause, step, counts and times."""

    @abstractmethod
    def table(self, name: str, where: Mapping[str, Sequence[int]] | None = None) -> pd.DataFrame:
        """A table, or rows of it: of apdb.yaml, or ``outbox``, ``step_record``, ``column_info``, ``metadata``.

        Parameters
        ----------
        name
            The table.
        where
            Accepted values of columns of integers, all of which must hold; a
            `range` stands for its values.
        """

    def select(self, sql: str) -> pa.Table:
        """Rows of a SELECT in the SQL that DuckDB and PostgreSQL share; for operations, not for steps."""
        raise self._not_ours()

    def change(self, statements: Sequence[Statement]) -> None:
        """Run statements in one transaction, all or none; for operations, not for steps."""
        raise self._not_ours()

    def sizes(self) -> dict[str, int]:
        """Bytes on disk by table, about."""
        raise self._not_ours()

    def partitions(self) -> list[Partition]:
        """The partitions of the tables that grow, by table and time; none where the backend has none."""
        return []

    def makePartitions(self, mjd_from: float, mjd_to: float) -> list[str]:
        """Make the partitions of all months of a span of time that are not there, where there are any; their names."""
        return []

    def _not_ours(self) -> BadRequest:
        return BadRequest(f"{self!r} offers no operations; accepted: a PPDB on duckdb:// or postgresql://")

    @abstractmethod
    def close(self) -> None:
        """Let go of the database; the handle may not be used again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()
