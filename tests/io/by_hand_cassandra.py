"""The PPDB on a real Cassandra, for those who ask: ``pytest tests/io/by_hand_cassandra.py``.

It takes about a minute and is no part of the suite. Java 17 and Maven are needed.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest
from lsst.dax.apdb.cassandra import ApdbCassandra

from apflow.errors import BadRequest, ServiceError
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.operate.services import PostgresServer
from tests.io import ppdb_night as night
from tests.io.cassandra_node import CassandraNode
from tests.io.dax_backends import url_of
from tests.io.ppdb_backends import Postgres
from tests.io.test_ppdb_dax import kill_when, notes, process, states

pytestmark = pytest.mark.filterwarnings("default")  # those of the driver are its own


@pytest.fixture(scope="module")
def node() -> Iterator[CassandraNode]:
    with CassandraNode() as started:
        yield started


@pytest.fixture(params=["tables by time", "one table"])
def url(request: pytest.FixtureRequest, node: CassandraNode, postgres: PostgresServer, tmp_path: Path) -> str:
    """An empty Apdb, with a companion on PostgreSQL."""
    by_time = request.param == "tables by time"
    config = ApdbCassandra.init_database(
        ("127.0.0.1",),
        f"apdb_{uuid.uuid4().hex[:12]}",
        port=node.port,
        replication_factor=1,
        time_partition_tables=by_time,
        time_partition_start="2025-04-01T00:00:00" if by_time else None,
        time_partition_end="2025-07-30T00:00:00" if by_time else None,
    )
    config.save(str(tmp_path / "apdb_config.yaml"))
    return url_of(tmp_path / "apdb_config.yaml", Postgres(postgres).url)


def counts(ppdb: Ppdb, n_visits: int) -> None:
    """Each thing of each detector once, with all of its past."""
    for detector, region in night.regions().items():
        objects = ppdb.getDiaObjects(region)
        assert len(objects) == 10 and (objects["nDiaSources"] == n_visits).all()
        for rows in (
            ppdb.getDiaSources(region, objects["diaObjectId"].tolist(), night.mjd(9)),
            ppdb.getDiaSources(region, None, night.mjd(9)),
            ppdb.getDiaForcedSources(region, None, night.mjd(9)),
        ):
            assert len(rows) == 10 * n_visits and (rows["detector"] == detector).all()
            assert set(rows["diaObjectId"]) == set(objects["diaObjectId"])
    assert len(ppdb.pendingAlerts()) == 30 * n_visits
    assert set(ppdb.ledger()["n_sources"]) == {10}


def test_a_night(url: str) -> None:
    with open_ppdb(url) as ppdb:
        for k in range(3):
            assert night.finish(ppdb, k) == 0
        counts(ppdb, 3)
        result = night.process(ppdb, 3, 0)
        assert night.store(ppdb, [result]).stored and night.store(ppdb, [result]).already
        late = night.process(ppdb, 4, 0)
        assert night.store(ppdb, [night.process(ppdb, 5, 0)]).stored
        assert night.store(ppdb, [late]).lost_race
        ids = result.sources["diaSourceId"].tolist()
        assert ppdb.withdraw(ids[:4], 60786.0) == 4 and ppdb.withdraw(ids[:5], 60786.0) == 1
        assert not set(ids[:5]) & set(ppdb.getDiaSources(night.regions()[0], None, night.mjd(9))["diaSourceId"])
        with pytest.raises(BadRequest, match="cannot be read as a whole"):
            ppdb.table("DiaObject")


def test_a_store_killed_between_the_databases_is_finished(url: str) -> None:
    companion = parse_qs(urlsplit(url).query)["companion"][0]
    with open_ppdb(url) as ppdb:
        night.finish(ppdb, 0)
        with psycopg.connect(companion) as lock:
            lock.execute("LOCK TABLE outbox IN EXCLUSIVE MODE")
            with process(url, 1) as child:
                kill_when(child, lambda: notes(companion) == 1)
        night.finish(ppdb, 1)
        assert states(ppdb) == {"done"} and notes(companion) == 0
        counts(ppdb, 2)


def test_a_cassandra_that_is_gone_is_waited_for(url: str, node: CassandraNode) -> None:
    with open_ppdb(url) as ppdb:
        night.finish(ppdb, 0)
        result = night.process(ppdb, 1, 0)
        node.kill()
        with pytest.raises(ServiceError, match="Apdb on Cassandra"):
            ppdb.getDiaObjects(night.square())
        node.start()
        assert night.store(ppdb, [result]).stored
