"""Nothing is lost, whoever is killed: the benchmarks' flood of alerts, in small.

Broker, publisher, worker and database are real processes that end by SIGKILL.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from apflow.config import Config
from apflow.config_tables import Kafka
from apflow.io.alerts.publish import ArchiveSink, publish, settle_abandoned
from apflow.io.kafka.transactions import TransactionalSink
from apflow.operate.services import KafkaBroker
from tests.io.ppdb_backends import Backend

from .outbox import Night, ids_of, read_topic

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from alert_flood import EACH, configuration
from bench_alerts_kills import Flood, tally_of
from bench_alerts_soak import soak


@pytest.fixture
def kafka(kafka_broker: KafkaBroker, request: pytest.FixtureRequest) -> Kafka:
    """Settings with a topic of the test's own."""
    topic = f"flood-{zlib.crc32(request.node.nodeid.encode())}"
    kafka_broker.create_topic(topic, partitions=5)
    return Kafka(kafka_broker.bootstrap, topic)


@pytest.fixture
def config(pristine_ppdb: Path, tmp_path: Path, kafka: Kafka) -> Config:
    """An empty DuckDB file, and an archive beside it."""
    path = tmp_path / "ppdb.duckdb"
    path.write_bytes(pristine_ppdb.read_bytes())
    return configuration(tmp_path, f"duckdb://{path}", kafka)


@pytest.fixture
def flood(config: Config, kafka_broker: KafkaBroker) -> Iterator[Flood]:
    """A first visit, on its way to the topic."""
    started = Flood(config, kafka_broker, None, EACH, publishers=1)
    yield started
    started.close()
    kafka_broker.start()  # other tests need it


def until(flood: Flood, reached: Callable[[], bool]) -> None:
    """Let the flood run on until something is reached: well within the lease of a claim."""
    deadline = time.monotonic() + 60.0
    while not reached():
        flood.step()
        assert time.monotonic() < deadline, f"{flood.n_marked} of {flood.n} marked; {flood.journals[-1].failures}"


def test_nothing_is_lost_whoever_is_killed(flood, kafka, kafka_broker):
    until(flood, lambda: flood.n_marked == EACH)
    kafka_broker.kill()
    flood.n = 2 * EACH
    until(flood, lambda: flood.n_open == EACH)
    time.sleep(0.5)  # all of it is queued, and nothing can be acknowledged
    flood.kill("publisher")
    assert flood.n_marked == EACH
    kafka_broker.start()
    flood.n = 3 * EACH
    until(flood, lambda: len(flood.stored) == 2 and flood.is_storing)
    time.sleep(0.05)
    flood.kill("worker")
    until(flood, lambda: flood.n_marked >= 2 * EACH)
    flood.kill("database")
    until(flood, lambda: flood.is_done)
    tally, _ = tally_of(kafka, flood.n)
    assert tally.lost(flood.n) == 0 and tally.different == 0 and len(tally.copies) == flood.n
    assert tally.explained(flood.journals)[2] == 0


def test_alerts_that_are_read_as_they_come_are_there_once(config, kafka_broker):
    samples, (lost, duplicated, different) = soak(config, kafka_broker, 3 * EACH, idle_s=1.0)
    assert samples[-1].published == 3 * EACH and (lost, duplicated, different) == (0, 0, 0)


def test_claims_are_given_back_when_their_publisher_is_dead_or_says_so(backend: Backend, tmp_path):
    night, sink = Night(tmp_path, backend.url), ArchiveSink()
    ids = night.add(0, 1, 40)
    with subprocess.Popen(["true"]) as gone, subprocess.Popen(["true"]) as zombie:
        gone.wait()
        while psutil.Process(zombie.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        mine = sink.new_claim()
        names = [mine, "another-machine:1:x", *(mine.replace(f":{os.getpid()}:", f":{p.pid}:") for p in (gone, zombie))]
        for claim in names:
            assert len(night.ppdb.claimAlerts(claim, 600.0, 10)) == 10
        assert publish(night.ppdb, night.archive, sink) == 0
        settle_abandoned(night.ppdb, sink)
    assert publish(night.ppdb, night.archive, sink) == 20 and night.pending() == ids[:20]
    night.ppdb.endLease(mine)
    settle_abandoned(night.ppdb, sink)
    assert publish(night.ppdb, night.archive, sink) == 10 and night.pending() == ids[10:20]
    night.close()


def test_a_claim_whose_publisher_died_before_it_sent_anything_is_given_back(night, kafka):
    ids = night.add(0, 1, 20)
    dead, sink = (TransactionalSink(replace(kafka, transactional_id="test"), "11.1") for _ in range(2))
    night.ppdb.claimAlerts(dead.new_claim(), 0.0, 100)
    settle_abandoned(night.ppdb, sink)
    assert publish(night.ppdb, night.archive, sink) == 20 and ids_of(read_topic(kafka.bootstrap, kafka.topic)) == ids
