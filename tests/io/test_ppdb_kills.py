"""Processes and servers killed at chosen moments while visits overlap: `benchmarks/bench_ppdb_kills.py`, in small."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from apflow.config import Config
from apflow.io.ppdb import open_ppdb
from apflow.io.ppdb.interface import Statement
from apflow.operate.services import PostgresServer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from overlap_kills import Night, Point
from overlap_servers import DuckDb, Postgres
from overlap_sky import Sky
from overlap_tally import tally
from overlap_worker import run_visit


@pytest.fixture(params=["duckdb", "postgresql"])
def night(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Night]:
    """Three processes and a server, all of which may die."""
    if request.param == "duckdb":
        with Night(Sky(), tmp_path, DuckDb(tmp_path)) as made:
            yield made
        return
    with PostgresServer() as server, Night(Sky(), tmp_path, Postgres(server, tmp_path)) as made:
        yield made


def test_who_is_killed_loses_and_doubles_nothing(night: Night) -> None:
    night.run(Point("awaitTurn", "waiting"), "worker")
    night.run(Point("storeBatch", "unanswered"), "worker")
    night.run(Point("settle", "uncommitted"), "worker")
    if night.server.kind == "postgresql":  # a new owner of a file is slow to start
        night.run(Point("storeBatch", "uncommitted"), "server")
        night.run(Point("claimAlerts", "unanswered"), "server")
    night.run(Point("storeBatch", "unanswered"), "server")
    found = night.tally()
    assert (found.lost, found.duplicated, found.wrong) == (0, 0, 0), found.notes
    assert found.expected > 100 * len(night.visits) and not night.failures


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        ('DELETE FROM "DiaForcedSource" WHERE "diaForcedSourceId" = (SELECT min(f."diaForcedSourceId") '
         'FROM "DiaForcedSource" f)', "unforced"),
        ('DELETE FROM "DiaSource" WHERE "diaSourceId" = (SELECT min(s."diaSourceId") FROM "DiaSource" s)', "lost"),
        ("UPDATE outbox SET published_unix = NULL WHERE alert_id = (SELECT min(alert_id) FROM outbox)", "lost"),
        ("UPDATE outbox SET checksum = 1 WHERE alert_id = (SELECT max(alert_id) FROM outbox)", "lost"),
        ('UPDATE "DiaSource" SET "diaObjectId" = "diaSourceId" WHERE "diaSourceId" = '
         '(SELECT max(s."diaSourceId") FROM "DiaSource" s)', "duplicated"),
        ('UPDATE "DiaObject" SET "nDiaSources" = 7 WHERE "diaObjectId" = '
         '(SELECT min(o."diaObjectId") FROM "DiaObject" o)', "duplicated"),
    ],
    ids=["forced row", "source", "not published", "other bytes", "second object", "version"],
)  # fmt: skip
def test_the_tally_sees_damage(stored: tuple[Config, Path], tmp_path: Path, damage: str, seen: str) -> None:
    config, path = stored
    shutil.copy(path, tmp_path)
    with open_ppdb(f"duckdb://{tmp_path / path.name}") as ppdb:
        assert tally(ppdb, config, Sky(), [0, 1]).notes == []
        ppdb.change([Statement(damage)])
        assert getattr(tally(ppdb, config, Sky(), [0, 1]), seen) >= 1


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """Two visits that nobody disturbed."""
    folder = tmp_path_factory.mktemp("stored")
    path = folder / "ppdb.duckdb"
    config = Config(camera="lsstcam", butler=str(folder), ppdb=f"duckdb://{path}")
    with open_ppdb(config.ppdb_url, create=True):
        for k in range(2):
            run_visit(lambda line: None, Sky(), config, k)
    return config, path
