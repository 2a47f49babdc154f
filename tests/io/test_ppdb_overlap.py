"""Overlapping visits in flight at once, on any PPDB: one DiaObject for one thing, whoever is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import numpy as np

from apflow.io.ppdb import Ppdb, open_ppdb
from tests.io import ppdb_night as night
from tests.io.ppdb_backends import Backend

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


def kill_while_storing(process: subprocess.Popen[str], delay_s: float) -> None:
    for line in lines(process):
        if line.startswith("store "):
            time.sleep(delay_s)
            break
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def nothing_is_twice(ppdb: Ppdb, n_visits: int) -> None:
    night.check(ppdb)
    objects = ppdb.table("DiaObject")
    assert objects["diaObjectId"].nunique() == 30  # as many as there are places
    assert len(objects) == len(ppdb.table("DiaSource")) == 30 * n_visits
    assert len(ppdb.table("DiaForcedSource")) == 30 * n_visits
    assert set(ppdb.ledger()["state"]) == {"done"} and len(ppdb.ledger()) == 3 * n_visits


def test_visits_that_wait_for_their_turn_lose_no_race(backend: Backend) -> None:
    with open_ppdb(backend.url, create=True) as ppdb, ThreadPoolExecutor(8) as pool:
        for k in range(8):
            ppdb.openVisit(night.visit(k), night.regions(), time.time() + 60.0)
        lost = list(pool.map(lambda k: night.finish(ppdb, k), reversed(range(8))))
        assert lost == [0] * 8
        nothing_is_twice(ppdb, 8)
        # Each thing was seen in the order of the visits: counted up from version to version.
        versions = ppdb.table("DiaObject").sort_values(["diaObjectId", "validityStartMjdTai"])
        assert versions["nDiaSources"].tolist() == list(range(1, 9)) * 30


def test_visits_that_do_not_wait_come_round(backend: Backend) -> None:
    with open_ppdb(backend.url, create=True) as ppdb, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda k: night.finish(ppdb, k, wait=False), (2, 0, 3, 1)))
        nothing_is_twice(ppdb, 4)


def test_workers_killed_while_they_store_lose_and_double_nothing(backend: Backend) -> None:
    with open_ppdb(backend.url, create=True) as ppdb, ThreadPoolExecutor(6) as pool:
        for k in range(6):
            ppdb.openVisit(night.visit(k), night.regions(), time.time() + 60.0)
        with other("turns", backend.url, 1, 1) as second, other("visits", backend.url, 4, 1) as fifth:
            others = [pool.submit(night.finish, ppdb, k) for k in (0, 2, 3, 5)]
            kill_while_storing(fifth, 0.005)  # it waited for nobody, and lost the race for what it had read
            kill_while_storing(second, 0.015)
            # The third visit waits for the second, which comes back.
            for k in (4, 1):
                others.append(pool.submit(night.finish, ppdb, k))
            for one in others:
                one.result(60.0)
        nothing_is_twice(ppdb, 6)


def test_two_workers_store_one_batch_at_once(backend: Backend) -> None:
    with open_ppdb(backend.url, create=True) as ppdb, ThreadPoolExecutor(4) as pool:
        results = [night.process(ppdb, 0, d) for d in range(3)]
        reports = list(pool.map(lambda _: night.store(ppdb, results), range(4)))
        assert sorted(len(r.stored) for r in reports) == [0, 0, 0, 3]
        assert sorted(len(r.already) for r in reports) == [0, 3, 3, 3]
        night.check(ppdb)


def test_a_late_visit_joins_the_objects_that_later_ones_made(ppdb: Ppdb) -> None:
    """The first visit comes after the second and third; a thing that only it saw is there for the fourth."""
    ra, dec = night.places(0)
    for k, seen in ((1, slice(0, 9)), (2, slice(0, 9)), (0, slice(0, 10)), (3, slice(0, 10))):
        region, new = night.regions()[0], night.sources(k, 0, (ra[seen], dec[seen]))
        history = night.read(ppdb, k, region, new)
        assert (history.sources["midpointMjdTai"] <= night.mjd(k)).all()
        assert night.store(ppdb, [night.result(new, k, 0, history)]).stored
    night.check(ppdb)
    sources, versions = ppdb.table("DiaSource"), ppdb.table("DiaObject")
    current = versions[versions["validityEndMjdTai"].isna()].set_index("diaObjectId")
    assert sorted(current["nDiaSources"]) == [2] + [4] * 9
    of_object = sources.groupby("diaObjectId")
    # All errors are equal: the mean is that of all sources, in whatever order they came.
    np.testing.assert_allclose(current["r_psfFluxMean"], of_object["psfFlux"].mean()[current.index], rtol=1e-6)
    np.testing.assert_allclose(current["ra"], of_object["ra"].mean()[current.index], atol=1e-3 / 3600.0)
    assert (current["firstDiaSourceMjdTai"] == night.mjd(0)).all()
    assert (current["lastDiaSourceMjdTai"] == night.mjd(3)).all()
    ordered = versions.sort_values(["diaObjectId", "validityStartMjdTai"])
    assert ordered["nDiaSources"].tolist() == (ordered.groupby("diaObjectId").cumcount() + 1).tolist()


def test_a_visit_that_died_holds_others_up_to_its_deadline_and_may_come_back(backend: Backend) -> None:
    with open_ppdb(backend.url, create=True) as ppdb, ThreadPoolExecutor(4) as pool:
        deadline = time.time() + 1.5
        ppdb.openVisit(night.visit(0), night.regions(), deadline)
        for k in (1, 2, 3):
            ppdb.openVisit(night.visit(k), night.regions(), time.time() + 60.0)
        assert not ppdb.awaitTurn(night.FIRST + 1, 0, 0.1)
        assert ppdb.awaitTurn(night.FIRST + 1, 0, 30.0)
        assert deadline <= time.time() < deadline + 5.0
        assert sum(pool.map(lambda k: night.finish(ppdb, k), (3, 2, 1))) == 0
        assert len(ppdb.table("DiaSource")) == 90
        night.finish(ppdb, 0)
        nothing_is_twice(ppdb, 4)
