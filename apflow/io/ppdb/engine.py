"""The DuckDB database itself, in the one process that owns the file."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from apflow.errors import BadRequest, DataError, ServiceError
from apflow.io.ppdb import outbox, reading, storing
from apflow.io.ppdb.batch import Batch
from apflow.io.ppdb.interface import Statement, StoreReport, Wanted
from apflow.io.ppdb.parts import ROW_ID, Part, ordered
from apflow.io.ppdb.sky_index import box_sql
from apflow.io.ppdb.storing import execute, keys_table, query
from apflow.io.ppdb.tables import APDB_TABLES, LAYOUT, OWN_TABLES, create_statements, select_list, stamp_statements
from apflow.io.ppdb.together import Together
from apflow.io.ppdb.turns import Key, Turns, from_text, to_text
from apflow.model import schema
from apflow.model.ledger import Outcome
from apflow.model.products import Claim, OutboxRow
from apflow.model.region import Region

#: Size of the log at which DuckDB moves it into the file: each time it writes the youngest rows of all tables anew.
_CHECKPOINT = "128MB"


class Engine:
    """Requests on a DuckDB file, one at a time; only `await_turn` waits, and that outside the queue.

    Raises
    ------
    BadRequest
        The file holds no PPDB (and `create` is false), or one of another
        schema version.
    ServiceError
        The file cannot be opened.
    """

    def __init__(self, path: Path, create: bool) -> None:
        self._lock = threading.RLock()
        self._together = Together(self._lock, self._histories)
        self._turns = Turns()
        try:
            # One thread: the owner shares its cores with workers, and batches are small.
            self.connection = duckdb.connect(str(path), config={"threads": 1, "checkpoint_threshold": _CHECKPOINT})
        except duckdb.Error as error:
            raise ServiceError(f"PPDB {path} cannot be opened: {error}") from error
        try:
            self._check_schema(path, create)
            self._load_turns()
        except BaseException:
            self.connection.close()
            raise

    def _check_schema(self, path: Path, create: bool) -> None:
        tables = {r[0] for r in self.connection.execute("SELECT table_name FROM duckdb_tables()").fetchall()}
        if not tables and create:
            with self._transaction() as con:
                for statement in (*create_statements(), *stamp_statements()):
                    con.execute(statement)
            return
        if not {*APDB_TABLES, *OWN_TABLES} <= tables:
            raise BadRequest(f"{path} holds no PPDB; accepted: a file that apflow created, or none to create one")
        found = dict(self.connection.execute("SELECT name, value FROM metadata").fetchall())
        for key, accepted in (("version:schema", schema.version()), ("version:layout", LAYOUT)):
            if found.get(key) != accepted:
                raise BadRequest(f"PPDB {path} has {key} {found.get(key)}; accepted: {accepted}")

    def _load_turns(self) -> None:
        rows = self.connection.execute(
            "SELECT instrument, visit, detector, region, deadline_unix FROM ledger "
            "WHERE state = 'expected' AND region IS NOT NULL"
        ).fetchall()
        for instrument, visit, detector, region, deadline_unix in rows:
            self._turns.announce([((instrument, visit, detector), from_text(region))], deadline_unix)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        with self._lock, _errors():
            self.connection.begin()
            try:
                yield self.connection
                self.connection.commit()
            except BaseException:
                # After a failed commit or a full disk nothing is open any more.
                with contextlib.suppress(duckdb.Error):
                    self.connection.rollback()
                raise

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        with self._lock, _errors():
            yield self.connection

    def _read(self, sql: str, **tables: pa.Table) -> pa.Table:
        with self._reading() as con:
            return query(con, sql, **tables)

    def open_visit(self, instrument: str, visit: int, regions: dict[int, Region], deadline_unix: float) -> None:
        """See `Ppdb.openVisit`."""
        keys = [(instrument, visit, d) for d in regions]
        rows = keys_table(keys).append_column("region", pa.array([to_text(r) for r in regions.values()], pa.string()))
        with self._lock:  # what waiters are told comes in the order of the transactions
            with self._transaction() as con:
                execute(
                    con,
                    "INSERT INTO ledger (instrument, visit, detector, region, deadline_unix, state) "
                    f"SELECT *, {float(deadline_unix)!r}, 'expected' FROM new_visit "
                    "ON CONFLICT DO UPDATE SET region = excluded.region, deadline_unix = excluded.deadline_unix, "
                    "state = 'expected', cause = NULL, step = NULL WHERE ledger.stored_unix IS NULL AND "
                    f"(ledger.state = 'expected' OR {time.time()!r} > coalesce(ledger.deadline_unix, 0))",
                    new_visit=rows,
                )
                expected = query(
                    con,
                    "SELECT instrument, visit, detector FROM ledger JOIN new_visit USING (instrument, visit, detector) "
                    "WHERE state = 'expected'",
                    new_visit=keys_table(keys),
                )
            open_keys = {(r["instrument"], r["visit"], r["detector"]) for r in expected.to_pylist()}
            self._turns.announce([(k, regions[k[2]]) for k in keys if k in open_keys], deadline_unix)

    def await_turn(self, visit: int, detector: int, timeout_s: float, instrument: str | None) -> bool:
        """See `Ppdb.awaitTurn`."""
        # Without a word with the database, where each would wait for whoever stores.
        found = self._turns.announced(visit, detector, instrument) or self._in_ledger(visit, detector, instrument)
        if len(found) != 1:
            names = ", ".join(key[0] for key, _ in found)
            why = f"announced by {names}: name the instrument" if found else "not announced; openVisit first"
            raise BadRequest(f"visit {visit} detector {detector} is {why}")
        return self._turns.wait(*found[0], timeout_s)

    def _in_ledger(self, visit: int, detector: int, instrument: str | None) -> list[tuple[Key, Region]]:
        rows = self._read(
            "SELECT instrument, region FROM ledger WHERE region IS NOT NULL "
            f"AND visit = {int(visit)} AND detector = {int(detector)}"
        ).to_pylist()
        return [
            ((r["instrument"], visit, detector), from_text(r["region"]))
            for r in rows
            if instrument in (None, r["instrument"])
        ]

    def objects(self, region: Region) -> pa.Table:
        """Current DiaObjects inside a region."""
        with self._reading() as con:
            return reading.objects(con, region)

    def histories(
        self, wanted: Sequence[Wanted], margin_arcsec: float, radius_arcsec: float, days: float
    ) -> Mapping[str, Part]:
        """See `Ppdb.getHistory`."""
        return self._together.histories(wanted, margin_arcsec, radius_arcsec, days)

    def _histories(
        self, wanted: Sequence[Wanted], margin_arcsec: float, radius_arcsec: float, days: float
    ) -> Mapping[str, Part]:
        with self._reading() as con:
            return reading.history(con, wanted, margin_arcsec, radius_arcsec, days)

    def drp_objects(self, region: Region, margin_arcsec: float) -> Part:
        """See `Ppdb.getDrpObjects`."""
        with self._reading() as con:
            return reading.drp_objects(con, [region], margin_arcsec)

    def load_drp_objects(self, rows: pa.Table) -> int:
        """See `Ppdb.loadDrpObjects`; rows with pixelId."""
        with self._transaction() as con:
            storing.load_drp_objects(con, rows)
        return int(rows.num_rows)

    def withdraw(self, ids: list[int], mjd_tai: float) -> int:
        """See `Ppdb.withdraw`."""
        with self._transaction() as con:
            return storing.withdraw(con, ids, mjd_tai)

    def history(self, name: str, region: Region, ids: list[int] | None, since_mjd: float) -> pa.Table:
        """Rows of DiaSource or DiaForcedSource since a time: of objects, or of a region where ids are None."""
        which = box_sql(region) if ids is None else '"diaObjectId" IN (SELECT id FROM wanted)'
        # By rowid: DuckDB then reads a hundred columns only where there is a row to give.
        rows = self._read(
            f'SELECT {select_list(name)} FROM "{name}" WHERE rowid IN (SELECT rowid FROM "{name}" WHERE {which} '
            f'AND "midpointMjdTai" >= {float(since_mjd)!r} AND "timeWithdrawnMjdTai" IS NULL)',
            wanted=pa.table({"id": pa.array(ids or [], pa.int64())}),
        )
        return ordered(_inside(rows, region) if ids is None else rows, ROW_ID[name], "midpointMjdTai")

    def contains(self, visit: int, detector: int, instrument: str | None) -> bool:
        """See `Ppdb.containsVisitDetector`."""
        rows = self._read(
            "SELECT instrument FROM ledger WHERE stored_unix IS NOT NULL "
            f"AND visit = {int(visit)} AND detector = {int(detector)}"
        ).to_pylist()
        return any(instrument in (None, r["instrument"]) for r in rows)

    def store(self, batch: Batch) -> StoreReport:
        """See `Ppdb.storeBatch`."""
        with self._lock:
            with self._transaction() as con:
                report = storing.store(con, batch)
            done = {*report.stored, *report.already}
            self._turns.end(k for k in batch.keys if k[1:] in done)
        return report

    def settle(self, outcomes: Sequence[Outcome]) -> None:
        """See `Ppdb.settle`."""
        keys = [(o.instrument, o.visit, o.detector) for o in outcomes]
        with self._lock:
            with self._transaction() as con:
                storing.settle(con, keys, outcomes)
            self._turns.end(keys)

    def pending(self, limit: int | None, visit: int | None) -> list[OutboxRow]:
        """See `Ppdb.pendingAlerts`."""
        with self._reading() as con:
            return outbox.pending(con, limit, visit)

    def claim(
        self, name: str, lease_s: float, limit: int, visit: int | None, detectors: Sequence[int] | None
    ) -> list[OutboxRow]:
        """See `Ppdb.claimAlerts`."""
        with self._transaction() as con:
            return outbox.claim(con, name, lease_s, limit, visit, detectors)

    def claims(self) -> list[Claim]:
        """See `Ppdb.claims`."""
        with self._reading() as con:
            return outbox.claims(con)

    def release(self, name: str) -> None:
        """See `Ppdb.releaseAlerts`."""
        with self._transaction() as con:
            outbox.release(con, name)

    def end_lease(self, name: str) -> None:
        """See `Ppdb.endLease`."""
        with self._transaction() as con:
            outbox.end_lease(con, name)

    def refuse(self, causes: dict[int, str]) -> None:
        """See `Ppdb.refuseAlerts`."""
        with self._transaction() as con:
            outbox.refuse(con, causes)

    def mark_published(self, alert_ids: list[int], when_unix: float) -> None:
        """See `Ppdb.markPublished`."""
        with self._transaction() as con:
            outbox.mark_published(con, alert_ids, when_unix)

    def table(self, name: str, where: Mapping[str, Sequence[int]]) -> pa.Table:
        """Rows of a table; see `Ppdb.table`."""
        if name not in (*APDB_TABLES, *OWN_TABLES):
            raise BadRequest(f"the PPDB has no table {name!r}; accepted: {', '.join((*APDB_TABLES, *OWN_TABLES))}")
        order = "ALL" if name in OWN_TABLES else "1, 2"
        conditions, wanted = storing.conditions(where)
        return self._read(f'SELECT {select_list(name)} FROM "{name}"{conditions} ORDER BY {order}', **wanted)

    def select(self, sql: str) -> pa.Table:
        """See `Ppdb.select`."""
        return self._read(sql)

    def change(self, statements: Sequence[Statement]) -> None:
        """See `Ppdb.change`."""
        with self._transaction() as con:
            for statement in statements:
                statement.check(execute(con, statement.sql, **statement.tables))

    def sizes(self) -> dict[str, int]:
        """See `Ppdb.sizes`: blocks of the file, some of which tables share."""
        [block_bytes] = self._read("SELECT block_size AS n FROM pragma_database_size()").column("n").to_pylist()
        count = "SELECT count(DISTINCT block_id) AS n FROM pragma_storage_info('{}') WHERE block_id >= 0"
        return {
            name: block_bytes * self._read(count.format(name)).column("n").to_pylist()[0]
            for name in (*APDB_TABLES, *OWN_TABLES)
        }

    def close(self) -> None:
        """Let go of the file, when the request under way is through."""
        self._turns.close()
        with self._lock:
            self.connection.close()


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except duckdb.ConstraintException as error:
        raise DataError(f"PPDB: {error}") from error
    except duckdb.Error as error:
        raise ServiceError(f"PPDB: {error}") from error


def _inside(rows: pa.Table, region: Region) -> pa.Table:
    keep = region.contains(rows.column("ra").to_numpy(), rows.column("dec").to_numpy())
    return rows.filter(pa.array(keep))
