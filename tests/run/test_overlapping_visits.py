"""Visits of one sky all in flight at once, by the graph's own steps on a real cluster, while workers are killed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from distributed import Client

from apflow.cluster.local import local_cluster
from apflow.config import Config
from apflow.io.ppdb import open_ppdb
from apflow.operate.deliver import deliver
from apflow.operate.services import PostgresServer
from apflow.run.on_dask import DaskRunner

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from overlap_graph import SKY, WARM_UP, graph, play
from overlap_tally import tally

VISITS = range(4)
KILLS = 3
STANDSTILL_S = 6.0


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    """Two compute workers and a gather worker, each a process."""
    with local_cluster(2, warm_up=WARM_UP) as cluster, Client(cluster) as client:
        client.wait_for_workers(3)
        yield client


@pytest.fixture(params=["duckdb", "postgresql"])
def config(request: pytest.FixtureRequest, tmp_path: Path) -> Config:
    """A PPDB and an archive, both empty."""
    if request.param == "duckdb":
        return Config(camera="lsstcam", butler=str(tmp_path))
    return Config(camera="lsstcam", butler=str(tmp_path), ppdb=request.getfixturevalue("postgres").database())


def test_overlapping_visits_make_one_object_for_one_thing_whoever_is_killed(client: Client, config: Config) -> None:
    with open_ppdb(config.ppdb_url, create=True) as ppdb:
        killed = play(client, config, VISITS, KILLS, 0.7)
        deliver(ppdb, config)
        found = tally(ppdb, config, SKY, VISITS)
    assert killed.total() == KILLS
    assert (found.lost, found.duplicated, found.wrong) == (0, 0, 0), found.notes
    assert found.expected > 100 * len(VISITS)


def test_a_database_that_stands_still_delays_visits_and_loses_none(
    client: Client, postgres: PostgresServer, tmp_path: Path
) -> None:
    """Visits come faster than they are stored: for a while nobody can read or write a table."""
    config = Config(camera="lsstcam", butler=str(tmp_path), ppdb=postgres.database())
    detectors = list(SKY.detectors)
    with open_ppdb(config.ppdb_url, create=True) as ppdb, DaskRunner(client, gather_after_s=0.3) as runner:
        handles = []
        with psycopg.connect(config.ppdb_url) as slow:
            slow.execute('LOCK TABLE "DiaSource" IN ACCESS EXCLUSIVE MODE')
            for k in VISITS:
                handles.append(runner.start(graph, SKY.visit(k), detectors, config))
                time.sleep(STANDSTILL_S / len(VISITS))
            assert not any(handle.done() for handle in handles)
        outcomes = [outcome for handle in handles for outcome in handle.result(60)]
        deliver(ppdb, config)
        found = tally(ppdb, config, SKY, VISITS)
    assert {outcome.state for outcome in outcomes} == {"done"}
    assert (found.lost, found.duplicated, found.wrong) == (0, 0, 0), found.notes


def test_a_visit_is_not_kept_out_by_later_ones_that_were_started_before_it(client: Client, config: Config) -> None:
    """It was announced, and is run anew: all places are held by chains that wait for it to be stored."""
    detectors = list(SKY.detectors)

    def waiting(dask_scheduler: Any) -> int:
        return sum(t.prefix.name.startswith("read_history") for t in dask_scheduler.tasks.values() if t.processing_on)

    with open_ppdb(config.ppdb_url, create=True) as ppdb, DaskRunner(client, gather_after_s=0.3) as runner:
        ppdb.openVisit(SKY.visit(0), SKY.regions(0), time.time() + 60.0)
        later = runner.start(graph, SKY.visit(1), detectors, config)
        end = time.monotonic() + 20.0
        while client.run_on_scheduler(waiting) < len(detectors) and time.monotonic() < end:
            time.sleep(0.1)
        outcomes = [*runner.start(graph, SKY.visit(0), detectors, config).result(30), *later.result(30)]
        deliver(ppdb, config)
        found = tally(ppdb, config, SKY, range(2))
    assert {outcome.state for outcome in outcomes} == {"done"}
    assert (found.lost, found.duplicated, found.wrong) == (0, 0, 0), found.notes
