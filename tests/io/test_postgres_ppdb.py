"""What only the PPDB on PostgreSQL has: a server that may be killed, full or far away, and waiting across machines."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from apflow.errors import BadRequest, ServiceError
from apflow.io.ppdb import open_ppdb
from apflow.io.ppdb.postgres.server import PostgresPpdb
from apflow.model.ledger import Outcome, State
from apflow.operate.services import PostgresServer
from tests.io import ppdb_night as night
from tests.io.ppdb_backends import Postgres

ROOT = Path(__file__).parents[2]


@pytest.fixture
def backend(postgres: PostgresServer) -> Postgres:
    return Postgres(postgres)


@pytest.fixture
def ppdb(backend: Postgres) -> Iterator[PostgresPpdb]:
    with PostgresPpdb(backend.url, create=True, patience_s=1.0) as opened:
        yield opened


@pytest.fixture
def mortal() -> Iterator[PostgresServer]:
    """A server that a test may kill."""
    with PostgresServer() as server:
        yield server


def announce(ppdb: PostgresPpdb, k: int) -> None:
    ppdb.openVisit(night.visit(k), night.regions(), time.time() + 60.0)


def transactions(backend: Postgres) -> int:
    time.sleep(1.1)  # sessions report once a second
    ((count,),) = backend.execute("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
    return int(count)


def test_a_server_that_is_killed_and_comes_back_lost_and_doubled_nothing(mortal: PostgresServer) -> None:
    url = mortal.database()
    with open_ppdb(url, create=True) as ppdb, ThreadPoolExecutor(4) as pool:
        for k in range(8):
            ppdb.openVisit(night.visit(k), night.regions(), time.time() + 120.0)
        visits = [pool.submit(night.finish, ppdb, k) for k in range(8)]
        for _ in range(3):
            time.sleep(0.25)
            mortal.kill()
            mortal.start()
        for visit in visits:
            visit.result(60.0)
        night.check(ppdb)
        assert len(ppdb.table("DiaSource")) == 240 and ppdb.table("DiaObject")["diaObjectId"].nunique() == 30


def test_a_waiter_outlives_the_server(mortal: PostgresServer) -> None:
    with open_ppdb(mortal.database(), create=True) as ppdb, ThreadPoolExecutor(1) as pool:
        announce(ppdb, 0)
        announce(ppdb, 1)
        waiting = pool.submit(ppdb.awaitTurn, night.FIRST + 1, 0, 60.0)
        time.sleep(0.5)
        mortal.kill()
        time.sleep(0.5)
        mortal.start()
        assert not waiting.done()
        night.store(ppdb, [night.process(ppdb, 0, d) for d in range(3)])
        assert waiting.result(10.0)


def test_a_server_that_stays_away_is_an_error_in_time(mortal: PostgresServer) -> None:
    with PostgresPpdb(mortal.database(), create=True, patience_s=1.0) as ppdb:
        announce(ppdb, 0)
        mortal.kill()
        for request in (ppdb.ledger, lambda: ppdb.awaitTurn(night.FIRST, 0, 5.0)):
            start = time.monotonic()
            with pytest.raises(ServiceError, match=r"PPDB .* cannot be reached"):
                request()
            assert time.monotonic() - start < 4.5


def test_urls_are_refused_with_what_is_accepted(postgres: PostgresServer, backend: Postgres) -> None:
    with pytest.raises(BadRequest, match="no tables of a PPDB"):
        open_ppdb(postgres.database())
    with pytest.raises(BadRequest, match="does not exist"):
        open_ppdb(postgres.url_of("no_such_database"))
    with pytest.raises(BadRequest, match="holds a password") as error:
        open_ppdb(backend.url.replace("apflow@", "apflow:hush@"))
    assert "hush" not in str(error.value)


def test_a_database_that_is_read_only_takes_nothing_and_says_so(backend: Postgres) -> None:
    with PostgresPpdb(backend.url, create=True, patience_s=0.2) as ppdb:
        results = [night.process(ppdb, 0, d) for d in range(2)]
    name = backend.url.rpartition("/")[2].partition("?")[0]
    backend.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
    with PostgresPpdb(backend.url, patience_s=0.2) as ppdb:
        with pytest.raises(ServiceError, match="read-only"):
            night.store(ppdb, results)
        assert ppdb.table("DiaSource").empty
    backend.execute(f"BEGIN READ WRITE; ALTER DATABASE {name} RESET ALL; COMMIT")
    with PostgresPpdb(backend.url) as ppdb:
        assert len(night.store(ppdb, results).stored) == 2


def test_a_database_that_is_full_takes_nothing_and_says_so(ppdb: PostgresPpdb, backend: Postgres) -> None:
    results = [night.process(ppdb, 0, d) for d in range(2)]
    backend.execute(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$"
    )
    backend.execute("CREATE TRIGGER full_disk BEFORE INSERT ON outbox EXECUTE FUNCTION full_disk()")
    with pytest.raises(ServiceError, match="No space left on device"):
        night.store(ppdb, results)
    assert ppdb.table("DiaSource").empty and ppdb.ledger().empty
    backend.execute("DROP TRIGGER full_disk ON outbox")
    assert len(night.store(ppdb, results).stored) == 2
    night.check(ppdb)


def test_who_waits_in_another_process_hears_at_once(ppdb: PostgresPpdb, backend: Postgres) -> None:
    announce(ppdb, 0)
    announce(ppdb, 1)
    script = (
        "import sys, time\nfrom apflow.io.ppdb import open_ppdb\nppdb = open_ppdb(sys.argv[1])\n"
        "print('waits', flush=True)\nassert ppdb.awaitTurn(int(sys.argv[2]), 0, 30.0)\nprint(time.time(), flush=True)"
    )
    command = [sys.executable, "-c", script, backend.url, str(night.FIRST + 1)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as waiter:
        assert waiter.stdout is not None and waiter.stdout.readline() == "waits\n"
        time.sleep(1.0)
        night.store(ppdb, [night.process(ppdb, 0, 0)])
        stored = time.time()
        assert float(waiter.stdout.readline()) - stored < 2.0  # a poll would take 4 s or more


def test_a_focal_plane_that_waits_is_no_load(ppdb: PostgresPpdb, backend: Postgres) -> None:
    for k in range(2):
        announce(ppdb, k)
    before = transactions(backend)
    with ThreadPoolExecutor(189) as pool:
        waiting = [pool.submit(ppdb.awaitTurn, night.FIRST + 1, i % 3, 30.0) for i in range(189)]
        time.sleep(1.5)
        for d in range(3):
            night.store(ppdb, [night.process(ppdb, 0, d)])
        assert all(w.result(10.0) for w in waiting)
    # Each asks who it is and whom it waits for, and again when listening has begun.
    assert transactions(backend) - before < 189 * 4
    ((connections,),) = backend.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()")
    assert connections <= 10


def test_a_listener_that_is_cut_off_listens_again(ppdb: PostgresPpdb, backend: Postgres) -> None:
    announce(ppdb, 0)
    announce(ppdb, 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ppdb.awaitTurn, night.FIRST + 1, 0, 30.0)
        time.sleep(0.5)
        cut = backend.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
            "AND datname = current_database()"
        )
        assert (True,) in cut
        ppdb.settle([Outcome("LSSTCam", night.FIRST, d, State.FAILED) for d in range(3)])
        assert waiting.result(10.0)


def test_a_visit_announced_late_is_waited_for(ppdb: PostgresPpdb) -> None:
    announce(ppdb, 2)
    announce(ppdb, 1)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ppdb.awaitTurn, night.FIRST + 2, 0, 30.0)
        time.sleep(0.3)
        announce(ppdb, 0)
        ppdb.settle([Outcome("LSSTCam", night.FIRST + 1, 0, State.FAILED)])
        time.sleep(0.5)
        assert not waiting.done()
        ppdb.settle([Outcome("LSSTCam", night.FIRST, 0, State.FAILED)])
        assert waiting.result(3.0)


def test_batches_in_any_order_do_not_deadlock(ppdb: PostgresPpdb) -> None:
    # The same detectors in opposite orders, and again while they are being stored.
    results = [night.process(ppdb, 0, d) for d in range(6)]
    batches = [results[:4], results[3::-1], results[2:], results[:1:-1]] * 2
    with ThreadPoolExecutor(8) as pool:
        reports = list(pool.map(lambda batch: night.store(ppdb, batch), batches))
    assert sorted(key for r in reports for key in r.stored) == [(night.FIRST, d) for d in range(6)]
    night.check(ppdb)


def test_handles_pickle_and_fork_without_their_connections(ppdb: PostgresPpdb, backend: Postgres) -> None:
    again = pickle.loads(pickle.dumps(ppdb))
    night.store(again, [night.process(ppdb, 0, 0)])
    # In a process of its own: forking a process with threads warns, and pytest has many.
    script = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from apflow.io.ppdb import open_ppdb
from tests.io import ppdb_night as night
ppdb = open_ppdb(sys.argv[1])
child = os.fork()
for k in range(1, 4):
    night.store(ppdb, [night.process(ppdb, k, 1 if child else 2)])
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
"""
    subprocess.run([sys.executable, "-c", script, backend.url], cwd=ROOT, check=True, timeout=60)
    night.check(ppdb)
    assert len(ppdb.table("DiaSource")) == 70


def test_months_are_made_before_their_rows_come(ppdb: PostgresPpdb, backend: Postgres) -> None:
    night.store(ppdb, [night.process(ppdb, 0, 0)])
    names = {name for (name,) in backend.execute("SELECT relname FROM pg_class WHERE relname LIKE 'Dia%\\_20%'")}
    assert {"DiaSource_2025_04", "DiaSource_2025_05", "DiaObject_2025_04", "DiaForcedSource_2025_05"} <= names
    ((rest,),) = backend.execute('SELECT count(*) FROM "DiaSource_rest"')
    assert rest == 0


def test_a_user_without_the_right_to_make_tables_stores_all_the_same(backend: Postgres) -> None:
    open_ppdb(backend.url, create=True).close()
    name = backend.url.rpartition("/")[2].partition("?")[0]
    backend.execute(f"CREATE ROLE writer_{name} LOGIN")
    backend.execute(f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO writer_{name}")
    with open_ppdb(backend.url.replace("apflow@", f"writer_{name}@")) as ppdb:
        assert night.store(ppdb, [night.process(ppdb, 0, 0)]).stored
        night.check(ppdb)


def test_versions_are_appended_and_closed_by_a_view(ppdb: PostgresPpdb, backend: Postgres) -> None:
    for k in range(2):
        night.store(ppdb, [night.process(ppdb, k, 0)])
    stored = backend.execute('SELECT count("validityEndMjdTai"), count(*) FROM "DiaObject"')
    closed = backend.execute('SELECT count("validityEndMjdTai"), count(*) FROM "DiaObjectVersion"')
    assert (stored[0], closed[0]) == ((0, 20), (10, 20))
    with psycopg.connect(backend.url) as connection:
        plan = connection.execute('EXPLAIN SELECT * FROM "DiaObjectVersion" WHERE "diaObjectId" = 5').fetchall()
    assert "Index" in str(plan)


def test_all_connections_are_let_go(backend: Postgres) -> None:
    threads = threading.active_count()
    with open_ppdb(backend.url, create=True) as ppdb, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: ppdb.ledger(), range(20)))
    until = time.monotonic() + 10
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    while backend.execute(others) != [(0,)]:  # a server process ends a moment after its connection
        assert time.monotonic() < until
        time.sleep(0.05)
    assert threading.active_count() <= threads
