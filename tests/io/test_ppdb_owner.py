"""One process owns the file, others reach it through that one; either may be killed."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest

from apflow.errors import BadRequest, DataError, ServiceError
from apflow.io.ppdb import embedded, open_ppdb
from apflow.model.ledger import Outcome, State
from tests.io import ppdb_night as night

ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def other(*arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Another process that runs `ppdb_night.main`; killed at the end."""
    command = [sys.executable, "-m", "tests.io.ppdb_night", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def lines(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


@pytest.fixture
def url(tmp_path: Path) -> str:
    folder = tmp_path / ("a long name " * 10)
    folder.mkdir()
    return f"duckdb://{folder}/ppdb.duckdb"


def test_clients_of_an_owner_share_one_database(url: str) -> None:
    with other("serve", url) as owner:
        lines(owner).readline()
        with open_ppdb(url) as ppdb, open_ppdb(url) as second:
            ppdb.openVisit(night.visit(0), night.regions(), time.time() + 30.0)
            again = pickle.loads(pickle.dumps(ppdb))
            results = [night.process(ppdb, 0, d) for d in range(3)]
            assert len(night.store(second, results).stored) == 3
            night.check(again)
            with pytest.raises(BadRequest, match="no table 'x'"):
                ppdb.table("x")
            bad = dataclasses.replace(results[0], sources=results[0].sources.assign(flux=1.0))
            with pytest.raises(DataError, match="no column 'flux'"):
                night.store(ppdb, [bad])
            again.close()
        assert owner.poll() is None
        card = Path(url.removeprefix("duckdb://") + ".owner")
        assert card.stat().st_mode & 0o777 == 0o600 and json.loads(card.read_text())["pid"] == owner.pid


def test_waiting_clients_hold_up_nobody(url: str) -> None:
    with other("serve", url) as owner:
        lines(owner).readline()
        with open_ppdb(url) as ppdb, ThreadPoolExecutor(40) as pool:
            for k in range(2):
                ppdb.openVisit(night.visit(k), night.regions(), time.time() + 30.0)
            waiting = [pool.submit(ppdb.awaitTurn, night.FIRST + 1, d, 20.0) for d in range(3) for _ in range(12)]
            results = [night.process(ppdb, 0, d) for d in range(2)]
            assert not any(w.done() for w in waiting)
            night.store(ppdb, results)
            assert all(w.result(5.0) for w in waiting[:24])
            assert not any(w.done() for w in waiting[24:])
            ppdb.settle([Outcome("LSSTCam", night.FIRST, 2, State.FAILED, "worker lost")])
            assert all(w.result(5.0) for w in waiting[24:])


def test_a_killed_owner_is_replaced_by_whoever_asks_next(url: str) -> None:
    with other("serve", url) as owner:
        lines(owner).readline()
        ppdb = open_ppdb(url)
        results = [night.process(ppdb, 0, d) for d in range(3)]
        night.store(ppdb, results[:2])
        socket = json.loads(Path(url.removeprefix("duckdb://") + ".owner").read_text())["address"]
        os.kill(owner.pid, signal.SIGKILL)
        owner.wait()
        report = night.store(ppdb, results)
        assert report.stored == ((night.FIRST, 2),) and len(report.already) == 2
        assert not Path(socket).parent.exists()
        with other("visits", url, 1, 1) as client:  # and it serves others now
            assert [line.split()[0] for line in lines(client)] == ["open", "store", "stored"]
        night.check(ppdb)
        assert len(ppdb.ledger()) == 6
        ppdb.close()


def test_who_waits_while_the_owner_closes_goes_on_with_the_next(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_PATIENCE_S", 1.0)  # less than they wait
    with other("serve", url, 3) as owner:
        lines(owner).readline()
        with open_ppdb(url) as ppdb, ThreadPoolExecutor(3) as pool:
            for k in range(2):
                ppdb.openVisit(night.visit(k), night.regions(), time.time() + 30.0)
            waiting = [pool.submit(ppdb.awaitTurn, night.FIRST + 1, d, 20.0) for d in range(3)]
            assert owner.wait(20.0) == 0
            ppdb.settle([Outcome("LSSTCam", night.FIRST, d, State.FAILED, "worker lost") for d in range(3)])
            assert all(w.result(10.0) for w in waiting)


def test_an_owner_that_hangs_is_an_error_not_a_wait(url: str) -> None:
    # A lock without a server behind it: an owner that never came up.
    path = Path(url.removeprefix("duckdb://"))
    open_ppdb(url, create=True).close()
    with path.with_name(path.name + ".owner").open("r+") as sidecar:
        fcntl.flock(sidecar, fcntl.LOCK_EX)
        start = time.monotonic()
        with pytest.raises(ServiceError, match="owner cannot be reached"):
            open_ppdb(url)
    assert time.monotonic() - start < 15.0
    open_ppdb(url).close()


def test_a_forked_child_asks_its_parent(url: str) -> None:
    # In a process of its own: forking a process with threads warns, and pytest has many.
    script = """
import os, sys, time, warnings
warnings.simplefilter("ignore", DeprecationWarning)
from apflow.io.ppdb import open_ppdb
from tests.io import ppdb_night as night
ppdb = open_ppdb(sys.argv[1], create=True)
child = os.fork()
result = night.process(ppdb, 0, 1 if child else 0)
night.store(ppdb, [result])
if child:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    night.check(ppdb)
    assert len(ppdb.ledger()) == 2
    ppdb.close()
"""
    subprocess.run([sys.executable, "-c", script, url], cwd=ROOT, check=True, timeout=60)
    with open_ppdb(url) as ppdb:
        assert len(ppdb.table("DiaSource")) == 20


def test_killed_in_the_middle_nothing_is_half_stored(url: str) -> None:
    stored, first = 0, 0
    for delay_s in (0.01, 0.03, 0.06):
        with other("visits", url, first, 50) as owner:
            for line in lines(owner):
                what, k = line.split()[:2]
                if what == "store" and int(k) == first + 1:
                    time.sleep(delay_s)
                    break
            os.kill(owner.pid, signal.SIGKILL)
            owner.wait()
        with open_ppdb(url) as ppdb:
            night.check(ppdb)
            ledger = ppdb.ledger()
            count = int(ledger["stored_unix"].notna().sum())
            assert count % 3 == 0 and count >= stored + 3
            stored, first = count, int(ledger["visit"].max()) - night.FIRST + (count == len(ledger))
            assert len(ppdb.pendingAlerts()) == 10 * count


def test_many_processes_race_and_nothing_is_twice(url: str) -> None:
    # No turns are awaited: every visit may lose to every other, and must come round.
    with open_ppdb(url, create=True) as ppdb:

        def run(k: int) -> int:
            tries = 0
            left = [0, 1]
            while left:
                tries += 1
                report = night.store(ppdb, [night.process(ppdb, k, d) for d in left])
                left = [d for _, d in report.lost_race]
            return tries

        with other("visits", url, 20, 3) as racer, ThreadPoolExecutor(3) as pool:
            tries = list(pool.map(run, range(4)))
            reports = lines(racer).read().splitlines()
        assert sum(tries) >= 4 and reports[-1].startswith("stored 22")
        night.check(ppdb)
        current = ppdb.getDiaObjects(night.regions()[0])
        assert len(current) == 10
        assert threading.active_count() < 50
