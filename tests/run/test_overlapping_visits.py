"""Visits of one sky all in flight at once, by the graph's own steps on a real cluster, while workers are killed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client

from apflow.cluster.local import local_cluster
from apflow.config import Config
from apflow.io.ppdb import open_ppdb
from apflow.operate.deliver import deliver

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from overlap_graph import SKY, WARM_UP, play
from overlap_tally import tally

VISITS = range(4)
KILLS = 3


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
