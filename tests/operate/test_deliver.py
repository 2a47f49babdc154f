"""Alerts while the broker is away: the pipeline goes on, and delivery resumes by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apflow.config import Config
from apflow.config_tables import Kafka
from apflow.io.alerts.publish import with_publication
from apflow.io.kafka.sinks import open_sink
from apflow.model.ledger import Outcome, State
from apflow.model.products import Stored
from apflow.operate.deliver import Delivery, deliver
from apflow.operate.recover import recover
from apflow.steps.batches import publish_alerts
from tests.io.mock_kafka import MockCluster, mock_cluster
from tests.io.outbox import INSTRUMENT, Night, ids_of, read_topic
from tests.io.ppdb_night import FIRST, visit
from tests.registry_double import RegistryDouble


@pytest.fixture
def night(tmp_path: Path) -> Iterator[Night]:
    made = Night(tmp_path)
    yield made
    made.close()


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    with mock_cluster() as made:
        made.create_topic("alerts")
        yield made


def config_of(night: Night, cluster: MockCluster | None = None, **kafka: object) -> Config:
    bootstrap = cluster.bootstrap if cluster else ""
    settings = Kafka(bootstrap, delivery_timeout_s=1.5, late_after_s=60.0, **kafka)  # type: ignore[arg-type]
    return Config(ppdb=night.ppdb_url, alerts=night.archive_url, kafka=settings)


def stored(*detectors: int) -> Stored:
    return Stored(visit(), tuple(Outcome(INSTRUMENT, FIRST, d, State.DONE) for d in detectors))


def wait_for(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_the_step_sends_its_own_detectors_and_notes_when(night, cluster):
    ids, others = night.add(0, 1, 10), night.add(0, 2, 10)
    config = config_of(night, cluster)
    failed = Outcome(INSTRUMENT, FIRST, 4, State.BAD_DATA, cause="no stars")
    batch = Stored(visit(), (*stored(1, 3).outcomes, failed))  # detector 3 has no alerts
    done = publish_alerts.function(batch, config)
    assert [o.published_unix is not None for o in done] == [True, True, False]
    assert [o.cause for o in done] == ["", "", "no stars"]
    assert ids_of(read_topic(cluster.bootstrap, "alerts")) == ids and night.pending() == others
    again = publish_alerts.function(batch, config)
    assert [o.published_unix is not None for o in again] == [True, True, False]
    assert len(read_topic(cluster.bootstrap, "alerts")) == 10


def test_without_a_broker_detectors_are_done_in_time_and_late_alerts_say_so(night, cluster):
    night.add(0, 1, 10, age_s=59.0)
    config = config_of(night, cluster)
    cluster.down()
    start = time.monotonic()
    (outcome,) = publish_alerts.function(stored(1), config)
    assert time.monotonic() - start < 10
    assert outcome.state is State.DONE and outcome.published_unix is None
    assert outcome.cause.startswith(f"alerts wait in the outbox: Kafka at {cluster.bootstrap}: cannot be reached")
    start = time.monotonic()
    publish_alerts.function(stored(1), config)
    assert time.monotonic() - start < 1.5  # delivery_timeout_s: it is not waited for again
    with Delivery(night.ppdb, config, pause_s=0.2) as delivery:
        wait_for(lambda: "cannot be reached" in delivery.problem)
        cluster.up()
        wait_for(lambda: not night.pending())
    assert delivery.problem == "" and delivery.delivered == 10
    messages = read_topic(cluster.bootstrap, "alerts")
    assert len(messages) == 10 and {dict(m.headers())["late"] for m in messages} == {b"1"}
    (known,) = with_publication(night.ppdb, [outcome])
    assert known.published_unix is not None and abs(known.published_unix - time.time()) < 30


def test_delivery_looks_once_more_when_the_run_ends(night, cluster):
    with Delivery(night.ppdb, config_of(night, cluster), pause_s=60.0):
        night.add(0, 1, 5)
    assert night.pending() == []


def test_delivery_registers_the_schema_when_the_registry_is_there(night, cluster):
    with RegistryDouble() as registry:
        url = registry.url
        with Delivery(night.ppdb, config_of(night, cluster, registry=url), pause_s=0.1):
            wait_for(lambda: 1101 in registry.schemas.by_id)
    night.add(0, 1, 5)
    with Delivery(night.ppdb, config_of(night, cluster, registry=url), pause_s=0.1) as delivery:
        wait_for(lambda: not night.pending())  # alerts do not wait for a registry
        wait_for(lambda: f"schema registry {url} cannot be reached" in delivery.problem)


def test_recovery_goes_on_without_a_broker_and_sends_when_there_is_one(night, cluster):
    night.add(0, 1, 5)
    night.add(0, 2, 0)
    config = config_of(night, cluster)
    outcomes = [Outcome(INSTRUMENT, FIRST, d, State.DONE) for d in (1, 2)]
    cluster.down()
    assert [o.published_unix is None for o in recover(night.ppdb, [], outcomes, config)] == [True, False]
    cluster.up()
    wait_for(lambda: not any(o.published_unix is None for o in recover(night.ppdb, [], outcomes, config)))
    assert len(read_topic(cluster.bootstrap, "alerts")) == 5


def test_without_kafka_the_archive_is_where_alerts_go(night):
    night.add(0, 1, 5)
    config = config_of(night)
    assert deliver(night.ppdb, config) == 5 and night.pending() == []
    assert open_sink(config.kafka, "11.1") is open_sink(config.kafka, "11.1")
