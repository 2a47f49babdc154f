"""The PPDB on an lsst.dax.apdb: what the two databases hold together when a store is cut off between them.

That it does all that any PPDB does is shown by the tests of every backend.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import psycopg
import pytest

from apflow.errors import BadRequest, DataError, ServiceError
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.io.ppdb.dax.locks import Busy, FileLocks, Locks, ServerLocks
from apflow.operate.services import PostgresServer
from tests.io import ppdb_night as night
from tests.io.dax_backends import DaxPostgres, DaxSqlite, Pristine, url_of
from tests.io.ppdb_backends import Postgres

ROOT = Path(__file__).parents[2]
N_ROWS = 30  # of three detectors, in each table


@contextlib.contextmanager
def process(url: str, first: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Another process that does one visit; killed at the end."""
    command = [sys.executable, "-m", "tests.io.ppdb_night", "visits", url, str(first), "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def kill_when(child: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    until = time.monotonic() + 60.0
    while not reached():
        assert child.poll() is None and time.monotonic() < until
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()


@pytest.fixture(params=["sqlite", "postgresql"])
def apdb(
    request: pytest.FixtureRequest, postgres: PostgresServer, pristine_apdb: Pristine, tmp_path: Path
) -> tuple[DaxSqlite | DaxPostgres, str]:
    """An empty Apdb, and the URL of its companion, which is on PostgreSQL: its tables can be locked."""
    if request.param == "postgresql":
        made = DaxPostgres(postgres, tmp_path)
        return made, made.companion
    companion = Postgres(postgres).url
    return DaxSqlite(pristine_apdb, tmp_path, companion=companion), companion


@contextlib.contextmanager
def no_writing(apdb: DaxSqlite | DaxPostgres) -> Iterator[None]:
    """Let nobody write to an Apdb."""
    if isinstance(apdb, DaxSqlite):
        with contextlib.closing(sqlite3.connect(apdb.path)) as held:
            held.execute("BEGIN IMMEDIATE")
            yield
    else:
        with psycopg.connect(apdb.own) as connection:
            connection.execute('LOCK TABLE "DiaObject" IN EXCLUSIVE MODE')
            yield


def notes(companion: str) -> int:
    with psycopg.connect(companion) as connection:
        found = connection.execute("SELECT count(*) FROM metadata WHERE name LIKE 'dax:%rows'").fetchone()
    assert found is not None
    return int(found[0])


def states(ppdb: Ppdb) -> set[str]:
    return set(ppdb.ledger()["state"])


def all_is_there_once(ppdb: Ppdb, n_visits: int) -> None:
    night.check(ppdb)
    for name in ("DiaSource", "DiaObject", "DiaForcedSource", "outbox"):
        assert len(ppdb.table(name)) == N_ROWS * n_visits
    assert states(ppdb) == {"done"} and ppdb.table("metadata")["name"].str.startswith("dax:").sum() == 0


def test_a_store_killed_before_the_commit_of_the_companion_is_finished_by_a_reader(
    apdb: tuple[DaxSqlite | DaxPostgres, str],
) -> None:
    backend, companion = apdb
    with open_ppdb(backend.url) as ppdb:
        with psycopg.connect(companion) as lock:
            lock.execute("LOCK TABLE outbox IN EXCLUSIVE MODE")
            with process(backend.url) as child:
                kill_when(child, lambda: backend.execute('SELECT count(*) FROM "DiaSource"')[0][0] == N_ROWS)
        assert states(ppdb) == {"expected"} and notes(companion) == 1
        found = ppdb.getDiaObjects(night.regions()[0])  # nobody sees rows that are not in the ledger
        assert len(found) == 10 and states(ppdb) == {"stored"} and notes(companion) == 0
        assert len(ppdb.pendingAlerts()) == N_ROWS
        assert night.finish(ppdb, 0) == 0 and night.finish(ppdb, 1) == 0
        all_is_there_once(ppdb, 2)


def test_a_store_killed_before_the_apdb_had_it_is_finished_by_who_opens(
    apdb: tuple[DaxSqlite | DaxPostgres, str],
) -> None:
    backend, companion = apdb
    with no_writing(backend), process(backend.url) as child:
        kill_when(child, lambda: notes(companion) == 1)
    assert backend.execute('SELECT count(*) FROM "DiaSource"')[0][0] == 0
    with open_ppdb(backend.url) as ppdb:
        assert states(ppdb) == {"stored"}
        night.finish(ppdb, 0)
        all_is_there_once(ppdb, 1)


@pytest.mark.parametrize("apdb", ["sqlite"], indirect=True)
def test_a_store_that_another_is_at_work_on_is_left_to_it_by_who_opens(
    apdb: tuple[DaxSqlite | DaxPostgres, str],
) -> None:
    backend, companion = apdb
    with psycopg.connect(companion) as lock:
        lock.execute("LOCK TABLE outbox IN EXCLUSIVE MODE")
        with process(backend.url) as child:
            done = lambda: backend.execute('SELECT count(*) FROM "DiaSource"')[0][0] == N_ROWS  # noqa: E731
            while not done():
                assert child.poll() is None
                time.sleep(0.02)
            with open_ppdb(backend.url) as ppdb:
                assert states(ppdb) == {"expected"} and notes(companion) == 1
            lock.rollback()
            assert child.wait(30.0) == 0
    with open_ppdb(backend.url) as ppdb:
        all_is_there_once(ppdb, 1)


def test_two_processes_store_the_same_visit_once(pristine_apdb: Pristine, tmp_path: Path) -> None:
    backend = DaxSqlite(pristine_apdb, tmp_path)
    with open_ppdb(backend.url) as ppdb:
        with process(backend.url) as one, process(backend.url) as two:
            assert one.wait(60.0) == two.wait(60.0) == 0
            told = [child.stdout.read().split("stored ")[1:] for child in (one, two) if child.stdout]
        assert sum(int(line.split()[1]) for lines in told for line in lines) == 3
        all_is_there_once(ppdb, 1)


def late_visit(ppdb: Ppdb) -> pd.DataFrame:
    """All versions after visits 0, 2 and, too late, 1, whose old objects get other times than its new ones."""
    for k in (0, 2):
        night.store(ppdb, [night.process(ppdb, k, 0)])
    region, new = night.regions()[0], night.sources(1, 0)
    moved = new.assign(dec=new["dec"].where(np.arange(10) < 5, new["dec"] + 10.0 / 3600))
    result = night.result(moved, 1, 0, night.read(ppdb, 1, region, moved))
    assert result.objects["validityStartMjdTai"].nunique() == 2
    night.store(ppdb, [result])
    return ppdb.table("DiaObject")


def three_visits(url: str) -> dict[str, pd.DataFrame]:
    """What is there after three visits."""
    with open_ppdb(url, create=True) as ppdb:
        for k in range(3):
            assert night.finish(ppdb, k) == 0
        night.check(ppdb)
        (history,) = ppdb.getHistory(
            [night.Wanted(night.regions()[1], *night.places(1), night.mjd(3))], margin_arcsec=20.0, radius_arcsec=1.0
        )
        tables = {name: ppdb.table(name) for name in ("DiaObject", "DiaSource", "DiaForcedSource")}
        return {**tables, "objects": history.objects, "sources": history.sources, "forced": history.forced}


def test_a_night_on_postgresql_is_that_of_our_own_ppdb(postgres: PostgresServer, tmp_path: Path) -> None:
    found = three_visits(DaxPostgres(postgres, tmp_path).url)
    for name, expected in three_visits(f"duckdb://{tmp_path}/ours.duckdb").items():
        pd.testing.assert_frame_equal(found[name], expected)
        assert len(expected) >= 10


def test_versions_begin_when_they_say_so(pristine_apdb: Pristine, tmp_path: Path) -> None:
    with open_ppdb(DaxSqlite(pristine_apdb, tmp_path).url) as ppdb:
        versions = late_visit(ppdb)
    with open_ppdb(f"duckdb://{tmp_path}/ours.duckdb", create=True) as ppdb:
        expected = late_visit(ppdb)
    pd.testing.assert_frame_equal(versions, expected)


def test_what_is_lost_where_the_apdb_gives_last_versions_only(pristine_apdb: Pristine, tmp_path: Path) -> None:
    with open_ppdb(DaxSqlite(pristine_apdb, tmp_path, index="last_object_table").url) as ppdb:
        for k in range(3):
            assert night.store(ppdb, [night.process(ppdb, k, d) for d in range(3)]).stored
        last = ppdb.getDiaObjects(night.regions()[0])
        assert len(last) == 10 and (last["nDiaSources"] == 3).all() and last["raErr"].notna().all()
        assert last["r_psfFluxMean"].isna().all() and (last["r_psfFluxNdata"] == 0).all()
        # The rows of the last 12 months give all of it anew ...
        stored = ppdb.table("DiaObject")
        stored = stored[stored["validityEndMjdTai"].isna()]
        assert (stored["r_psfFluxNdata"] == 3).all() and stored["r_psfFluxMean"].notna().all()
        night.check(ppdb)
        assert len(ppdb.table("DiaObjectLast")) == 30
        # ... and of what was before them only the count and the position are left.
        region, new = night.regions()[0], night.sources(3, 0)
        new["midpointMjdTai"] += 400.0
        history = ppdb.getHistory(
            [night.Wanted(region, new["ra"].to_numpy(), new["dec"].to_numpy(), night.mjd(3) + 400.0)],
            margin_arcsec=20.0,
            radius_arcsec=1.0,
        )[0]
        objects = night.result(new, 3, 0, history).objects
        assert (objects["nDiaSources"] == 4).all() and (objects["r_psfFluxNdata"] == 1).all()


def test_rows_that_the_companion_knows_nothing_of_are_refused(pristine_apdb: Pristine, tmp_path: Path) -> None:
    backend = DaxSqlite(pristine_apdb, tmp_path)
    with open_ppdb(backend.url) as ppdb:
        result = night.process(ppdb, 0, 0)
        night.store(ppdb, [result])
    fresh = f"duckdb://{tmp_path}/fresh.duckdb"
    with open_ppdb(url_of(tmp_path / "apdb_config.yaml", fresh), create=True) as ppdb:
        again = night.result(result.sources, 0, 0, night.read(ppdb, 0, night.regions()[0], result.sources))
        with pytest.raises(DataError, match=f"visit {night.FIRST} detector 0: the Apdb has rows of it"):
            night.store(ppdb, [again])
        assert ppdb.ledger().empty and ppdb.table("metadata")["name"].str.startswith("dax:").sum() == 0


@pytest.fixture(params=["file", "server"])
def locks(request: pytest.FixtureRequest, postgres: PostgresServer, tmp_path: Path) -> Locks:
    return FileLocks(tmp_path / "locks") if request.param == "file" else ServerLocks(postgres.database())


def test_locks_exclude_the_same_sky_and_no_other(locks: Locks) -> None:
    def take() -> float:
        with locks.held([0, 1], 20.0):
            return time.monotonic()

    with ThreadPoolExecutor(1) as pool:
        with locks.held([3, 1], 1.0):
            with locks.held([2, 2**31 - 1], 0.0), pytest.raises(Busy, match="the same sky"), locks.held([3], 0.05):
                pass
            waiting = pool.submit(take)
            time.sleep(0.2)
            released = time.monotonic()
        assert released < waiting.result(20.0)
    with locks.held([3, 0], 0.0):
        pass


def test_a_handle_pickles_and_a_closed_one_can_be_opened_again(pristine_apdb: Pristine, tmp_path: Path) -> None:
    with open_ppdb(DaxSqlite(pristine_apdb, tmp_path).url) as ppdb:
        copy = pickle.loads(pickle.dumps(ppdb))
        night.store(copy, [night.process(ppdb, 0, 0)])
        assert ppdb.containsVisitDetector(night.FIRST, 0) and "companion" not in repr(ppdb)
        copy.close()
        assert len(ppdb.getDiaObjects(night.regions()[0])) == 10
        with pytest.raises(BadRequest, match="offers no operations"):
            ppdb.select("SELECT 1")


def config(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_urls_and_configurations_that_are_refused(tmp_path: Path, pristine_apdb: Pristine) -> None:
    for url in ("dax://config.yaml", "dax:///a.yaml?compagnon=x", "dax://host/a.yaml", "dax:///a.yaml#x"):
        with pytest.raises(BadRequest, match=r"accepted: dax:///absolute/path/config.yaml\?companion="):
            open_ppdb(url)
    with pytest.raises(BadRequest, match="is on 'dax'; accepted"):
        open_ppdb(url_of(tmp_path / "c.yaml", "dax:///c.yaml"))
    with pytest.raises(BadRequest, match=r"no\.yaml does not exist; accepted: .*apdb-cli create-sql <db_url>"):
        open_ppdb(f"dax://{tmp_path}/no.yaml", create=True)
    for text in ("x: 1", "implementation_type: sql", "- 1", "{", "implementation_type: other"):
        with pytest.raises(BadRequest, match=r"config\.yaml is no configuration of an Apdb"):
            open_ppdb(f"dax://{config(tmp_path, text)}", create=True)
    backend = DaxSqlite(pristine_apdb, tmp_path, companion=f"duckdb://{tmp_path}/none.duckdb")
    with pytest.raises(BadRequest, match=r"none\.duckdb does not exist"):
        open_ppdb(backend.url)


def test_a_database_that_is_not_there_is_a_failure_of_the_service(tmp_path: Path, pristine_apdb: Pristine) -> None:
    backend = DaxSqlite(pristine_apdb, tmp_path)
    backend.path.unlink()
    with pytest.raises(ServiceError, match="unable to open database file"):
        open_ppdb(backend.url)


def test_a_cassandra_that_does_not_answer_is_a_failure_of_the_service(tmp_path: Path) -> None:
    text = (
        "implementation_type: cassandra\ncontact_points: ['127.0.0.1']\nkeyspace: apdb\n"
        "connection_config: {port: 1, extra_parameters: {control_connection_timeout: 1}}\n"
    )
    with pytest.raises(ServiceError, match=r"Apdb on Cassandra: .*127\.0\.0\.1:1"):
        open_ppdb(f"dax://{config(tmp_path, text)}", create=True)
