"""The embedded PPDB: the owner of a DuckDB file uses it directly, other processes ask the owner."""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from apflow.errors import BadRequest, ServiceError
from apflow.io.ppdb import ownership
from apflow.io.ppdb.batch import prepare
from apflow.io.ppdb.blocks import uncollected
from apflow.io.ppdb.drp import conform_drp
from apflow.io.ppdb.engine import Engine
from apflow.io.ppdb.interface import Ppdb, Statement, StoreReport, Wanted
from apflow.io.ppdb.ownership import Server
from apflow.io.ppdb.parts import Part
from apflow.io.ppdb.tables import APDB_TABLES, cut, to_arrow, to_frame
from apflow.model.ledger import Outcome
from apflow.model.products import Claim, DetectorResult, History, OutboxRow
from apflow.model.region import Region
from apflow.model.visit import Visit

#: How long a lost owner is looked for, or one that is starting is waited for: on a busy machine it takes seconds.
_PATIENCE_S = 12.0
#: How long an answer may take, beyond what the request itself waits.
_ANSWER_S = 120.0


@dataclass(eq=False)
class _Use:
    """A database that this process owns, and how many handles use it."""

    server: Server
    handles: int = 0

    def drop(self) -> None:
        """A handle is gone."""
        self.handles -= 1


class _Owned:
    """The databases that this process owns."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._uses: dict[Path, _Use] = {}

    def acquire(self, path: Path, create: bool) -> _Use | None:
        """The database, where this process owns it or can take it; None where another process owns it."""
        with self._lock:
            if path in self._uses:
                return self._uses[path]
            if not create and not path.exists():
                raise BadRequest(f"PPDB {path} does not exist; accepted: one that was created before")
            if not path.parent.is_dir():
                raise BadRequest(f"PPDB {path}: folder {path.parent} does not exist")
            fd = ownership.take(path)
            if fd is None:
                return None
            try:
                self._uses[path] = _Use(Server(path, fd, Engine(path, create)))
            except BaseException:
                os.close(fd)
                raise
            return self._uses[path]

    def close_unused(self, path: Path) -> None:
        """Close a database that no handle uses any more."""
        with self._lock:
            if path in self._uses and self._uses[path].handles <= 0:
                self._uses.pop(path).server.close()

    def close(self) -> None:
        """At the end of the process."""
        while self._uses:
            self._uses.popitem()[1].server.close()

    def forget(self) -> None:
        """In a forked child, which owns nothing."""
        for use in self._uses.values():
            use.server.forget()
        self._lock, self._uses = threading.Lock(), {}


_owned = _Owned()
atexit.register(_owned.close)
os.register_at_fork(after_in_child=_owned.forget)
#: Each thread of a client has connections of its own, shared by its handles: waiting for a turn holds up nobody.
_thread = threading.local()


def _connections() -> dict[tuple[int, Path], Connection]:
    """This thread's connections by process and file: a forked child must not use its parent's."""
    if not hasattr(_thread, "connections"):
        _thread.connections = {}
    found: dict[tuple[int, Path], Connection] = _thread.connections
    return found


class EmbeddedPpdb(Ppdb):
    """A DuckDB file; see `apflow.io.ppdb.open_ppdb`.

    Pickles as its path. A process that owns the file keeps it until the last
    handle is closed; a handle that is merely forgotten counts no more, but
    does not close it. When the owner is gone, whoever asks next takes over.
    """

    def __init__(self, path: Path, create: bool = False) -> None:
        self._path = path
        self._use: _Use | None = None
        self._lock = threading.Lock()
        self._closed = False
        self._backend(time.monotonic() + _PATIENCE_S, create)

    def __reduce__(self) -> tuple[Any, ...]:
        return EmbeddedPpdb, (self._path,)

    def _owned_engine(self, create: bool) -> Engine | None:
        with self._lock:
            if self._use is None or self._use.server.pid != os.getpid():
                self._use = _owned.acquire(self._path, create)
                if self._use is not None:
                    self._use.handles += 1
                    self._forgotten = weakref.finalize(self, self._use.drop)
            return None if self._use is None else self._use.server.engine

    def _backend(self, until: float, create: bool = False) -> Engine | Connection:
        if self._closed:
            raise BadRequest(f"PPDB {self._path} is used after close()")
        pause = 0.02
        while True:
            connection = _connections().get((os.getpid(), self._path))
            if connection is not None:
                return connection
            engine = self._owned_engine(create)
            if engine is not None:
                return engine
            try:
                return _connections().setdefault((os.getpid(), self._path), ownership.reach(self._path))
            except OSError as error:
                if time.monotonic() > until:
                    raise ServiceError(f"PPDB {self._path}: its owner cannot be reached: {error}") from error
                time.sleep(pause)
                pause = min(2 * pause, 0.5)

    def _ask(self, request: str, *arguments: Any, waits_s: float = 0.0) -> Any:
        until = time.monotonic() + _PATIENCE_S
        while True:
            backend = self._backend(until)
            if isinstance(backend, Engine):
                return getattr(backend, request)(*arguments)
            asked = time.monotonic()
            try:
                backend.send((request, arguments))
                if not backend.poll(_ANSWER_S + waits_s):
                    raise ServiceError(f"PPDB {self._path}: no answer to {request} within {_ANSWER_S + waits_s:g} s")
                succeeded, value = backend.recv()
            except (OSError, EOFError) as error:
                self._drop()
                until += time.monotonic() - asked  # patience is for finding an owner, whatever the last one took
                if time.monotonic() > until:
                    raise ServiceError(f"PPDB {self._path}: its owner is gone: {error}") from error
                continue
            except BaseException:
                self._drop()  # an answer that comes later would be taken for that of the next request
                raise
            if succeeded:
                return value
            raise value

    def _drop(self) -> None:
        connection = _connections().pop((os.getpid(), self._path), None)
        if connection is not None:
            connection.close()

    def openVisit(self, visit: Visit, regions: Mapping[int, Region], deadline_unix: float) -> None:
        """See `Ppdb`."""
        self._ask("open_visit", visit.instrument, visit.visit, dict(regions), deadline_unix)

    def awaitTurn(self, visit_id: int, detector: int, timeout_s: float, instrument: str | None = None) -> bool:
        """See `Ppdb`."""
        return bool(self._ask("await_turn", visit_id, detector, timeout_s, instrument, waits_s=timeout_s))

    def getDiaObjects(self, region: Region, margin_arcsec: float = 0.0) -> pd.DataFrame:
        """See `Ppdb`."""
        wide = region.grown(margin_arcsec) if margin_arcsec else region
        return to_frame(self._ask("objects", wide), "DiaObject")

    def getDiaSources(
        self, region: Region, object_ids: Sequence[int] | None, visit_time_mjd: float, days: float = 365.0
    ) -> pd.DataFrame:
        """See `Ppdb`."""
        return self._history("DiaSource", region, object_ids, visit_time_mjd - days)

    def getDiaForcedSources(
        self, region: Region, object_ids: Sequence[int] | None, visit_time_mjd: float, days: float = 365.0
    ) -> pd.DataFrame:
        """See `Ppdb`."""
        return self._history("DiaForcedSource", region, object_ids, visit_time_mjd - days)

    def _history(self, name: str, region: Region, ids: Sequence[int] | None, since_mjd: float) -> pd.DataFrame:
        wanted = None if ids is None else [int(i) for i in ids]
        return to_frame(self._ask("history", name, region, wanted, since_mjd), name)

    def getHistory(
        self, wanted: Sequence[Wanted], *, margin_arcsec: float, radius_arcsec: float, days: float = 365.0
    ) -> list[History]:
        """See `Ppdb`."""
        if not wanted:
            return []
        parts = self._ask("histories", list(wanted), margin_arcsec, radius_arcsec, days)
        with uncollected():
            columns = [_cut(parts[name], name) for name in ("DiaObject", "DiaSource", "DiaForcedSource", "DrpObject")]
            return [History(*frames) for frames in zip(*columns, strict=True)]

    def getDrpObjects(self, region: Region, margin_arcsec: float = 60.0) -> pd.DataFrame:
        """See `Ppdb`."""
        return _cut(self._ask("drp_objects", region, margin_arcsec), "DrpObject")[0]

    def loadDrpObjects(self, objects: pd.DataFrame) -> int:
        """See `Ppdb`."""
        return int(self._ask("load_drp_objects", to_arrow(conform_drp(objects), "DrpObject")))

    def withdraw(self, dia_source_ids: Sequence[int], mjd_tai: float) -> int:
        """See `Ppdb`."""
        return int(self._ask("withdraw", [int(i) for i in dia_source_ids], mjd_tai))

    def containsVisitDetector(self, visit: int, detector: int, instrument: str | None = None) -> bool:
        """See `Ppdb`."""
        return bool(self._ask("contains", visit, detector, instrument))

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
        report: StoreReport = self._ask("store", prepare(results, outbox, processed_mjd_tai, radius_arcsec))
        return report

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """See `Ppdb`."""
        if outcomes:
            self._ask("settle", list(outcomes))

    def pendingAlerts(self, limit: int | None = None, visit: int | None = None) -> list[OutboxRow]:
        """See `Ppdb`."""
        rows: list[OutboxRow] = self._ask("pending", limit, visit)
        return rows

    def claimAlerts(
        self,
        claim: str,
        lease_s: float,
        limit: int,
        visit: int | None = None,
        detectors: Sequence[int] | None = None,
    ) -> list[OutboxRow]:
        """See `Ppdb`."""
        rows: list[OutboxRow] = self._ask("claim", claim, lease_s, limit, visit, detectors)
        return rows

    def claims(self) -> list[Claim]:
        """See `Ppdb`."""
        found: list[Claim] = self._ask("claims")
        return found

    def releaseAlerts(self, claim: str) -> None:
        """See `Ppdb`."""
        self._ask("release", claim)

    def endLease(self, claim: str) -> None:
        """See `Ppdb`."""
        self._ask("end_lease", claim)

    def refuseAlerts(self, causes: Mapping[int, str]) -> None:
        """See `Ppdb`."""
        self._ask("refuse", {int(i): cause for i, cause in causes.items()})

    def markPublished(self, alert_ids: Sequence[int], when_unix: float) -> None:
        """See `Ppdb`."""
        self._ask("mark_published", [int(i) for i in alert_ids], when_unix)

    def ledger(self) -> pd.DataFrame:
        """See `Ppdb`."""
        rows = self.table("ledger")
        return rows.assign(cause=rows["cause"].fillna(""), step=rows["step"].fillna(""))

    def table(self, name: str, where: Mapping[str, Sequence[int]] | None = None) -> pd.DataFrame:
        """See `Ppdb`."""
        rows = self._ask("table", name, dict(where or {}))
        return to_frame(rows, name) if name in APDB_TABLES else rows.to_pandas()

    def select(self, sql: str) -> pa.Table:
        """See `Ppdb`."""
        return self._ask("select", sql)

    def change(self, statements: Sequence[Statement]) -> None:
        """See `Ppdb`."""
        self._ask("change", list(statements))

    def sizes(self) -> dict[str, int]:
        """See `Ppdb`."""
        found: dict[str, int] = self._ask("sizes")
        return found

    def close(self) -> None:
        """See `Ppdb`."""
        self._drop()
        with self._lock:
            self._closed = True
            if self._use is not None and self._use.server.pid == os.getpid():
                self._forgotten()
                _owned.close_unused(self._path)
            self._use = None


def _cut(part: Part, name: str) -> list[pd.DataFrame]:
    return cut(part.rows, part.take, part.offsets, name)
