"""Brokers that fail, refuse and delay: librdkafka's mock cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from confluent_kafka import KafkaError

from apflow.config_tables import Kafka
from apflow.errors import BadRequest, ServiceError
from apflow.io.alerts.publish import publish
from apflow.io.kafka.embedded import embedded
from apflow.io.kafka.producer import KafkaSink
from apflow.io.kafka.sinks import open_sink
from apflow.io.kafka.transactions import TransactionalSink

from .mock_kafka import INIT_PRODUCER_ID, PRODUCE, MockCluster, mock_cluster
from .outbox import ids_of, read_topic


@pytest.fixture
def cluster() -> Iterator[MockCluster]:
    with mock_cluster() as made:
        made.create_topic("alerts")
        yield made


def settings(cluster: MockCluster, **changes: object) -> Kafka:
    standard = {"bootstrap": cluster.bootstrap, "delivery_timeout_s": 4.0, "transactional_id": "test"}
    return Kafka(**{**standard, **changes})  # type: ignore[arg-type]


SINKS = pytest.mark.parametrize("sink_of", [KafkaSink, TransactionalSink])


@SINKS
def test_a_broker_that_fails_for_a_moment_gets_each_alert_once(night, cluster, sink_of):
    ids = night.add(0, 1, 50)
    cluster.fail(PRODUCE, *[KafkaError.NOT_LEADER_FOR_PARTITION] * 3, KafkaError.NOT_ENOUGH_REPLICAS)
    sink = sink_of(settings(cluster), "11.1")
    assert publish(night.ppdb, night.archive, sink) == 50
    assert ids_of(read_topic(cluster.bootstrap, "alerts")) == ids
    assert night.pending() == [] and (0, 1) in night.published()
    sink.close()


@SINKS
def test_a_slow_broker_is_waited_for_within_the_time(night, cluster, sink_of):
    night.add(0, 1, 10)
    cluster.set_delay(150)
    sink = sink_of(settings(cluster), "11.1")
    assert publish(night.ppdb, night.archive, sink) == 10
    sink.close()


@SINKS
def test_without_a_broker_alerts_wait_and_go_when_it_is_there(night, cluster, sink_of):
    ids = night.add(0, 1, 20)
    sink = sink_of(settings(cluster, delivery_timeout_s=1.5), "11.1")
    cluster.down()
    start = time.monotonic()
    with pytest.raises(ServiceError, match=rf"{cluster.bootstrap}.*cannot be reached.*check that it runs"):
        publish(night.ppdb, night.archive, sink)
    assert time.monotonic() - start < 8
    start = time.monotonic()
    with pytest.raises(ServiceError):  # the batches after the first do not wait
        publish(night.ppdb, night.archive, sink)
    assert time.monotonic() - start < 1.5
    assert night.pending() == ids and night.ppdb.claims() == []
    cluster.up()
    deadline = time.monotonic() + 20
    while night.pending() and time.monotonic() < deadline:
        time.sleep(0.5)
        try:
            publish(night.ppdb, night.archive, sink)
        except ServiceError:
            continue
    assert ids_of(read_topic(cluster.bootstrap, "alerts")) == ids
    sink.close()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, r"does not allow it to this client; grant .*'alerts'"),
        (KafkaError.UNKNOWN_TOPIC_OR_PART, r"has no topic 'alerts' and does not create it; create it"),
    ],
)
def test_a_topic_that_cannot_be_written_to_is_named(night, cluster, code, message):
    ids = night.add(0, 1, 5)
    cluster.fail_topic("alerts", code)
    with pytest.raises(ServiceError, match=f"Kafka at {cluster.bootstrap}: {message}"):
        publish(night.ppdb, night.archive, KafkaSink(settings(cluster), "11.1"))
    assert night.pending() == ids


def test_a_refusal_while_sending_is_named_too(night, cluster):
    ids = night.add(0, 1, 5)
    cluster.fail(PRODUCE, *[KafkaError.TOPIC_AUTHORIZATION_FAILED] * 10)
    with pytest.raises(ServiceError, match="does not allow it"):
        publish(night.ppdb, night.archive, KafkaSink(settings(cluster), "11.1"))
    assert night.pending() == ids


def test_a_transactional_id_that_is_not_allowed_is_named(night, cluster):
    night.add(0, 1, 5)
    cluster.fail(INIT_PRODUCER_ID, *[KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED] * 3)
    with pytest.raises(ServiceError, match=r"grant .* transactional ids and groups that begin with 'test'"):
        publish(night.ppdb, night.archive, TransactionalSink(settings(cluster), "11.1"))


def test_nothing_of_a_password_is_ever_shown(night, tmp_path):
    secret = "correct-horse-battery"
    (tmp_path / "password").write_text(secret + "\n")
    with mock_cluster() as cluster:
        kafka = settings(
            cluster, security_protocol="SASL_PLAINTEXT", username="u", password_file=str(tmp_path / "password")
        )
        sink = KafkaSink(kafka, "11.1")
        night.add(0, 1, 1)
        with pytest.raises(ServiceError) as caught:
            publish(night.ppdb, night.archive, sink)
    assert secret not in repr(vars(sink)) + repr(kafka) + str(caught.value) + repr(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"delivery_timeout_s": 0.0}, "delivery_timeout_s 0 is not accepted: up to 400"),
        ({"security_protocol": "TLS"}, "security_protocol 'TLS'.*PLAINTEXT, SSL"),
        ({"security_protocol": "SASL_SSL", "password_file": "/nowhere"}, "password_file '/nowhere' cannot be read"),
        ({"security_protocol": "SSL", "ca_file": "/nowhere.crt"}, "ca_file '/nowhere.crt'"),
        ({"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "ROT13", "password_file": __file__}, "ROT13"),
    ],
)
def test_settings_that_cannot_work_are_refused_by_name(night, cluster, changes, message):
    ids = night.add(0, 1, 1)
    with pytest.raises(BadRequest, match=message):
        publish(night.ppdb, night.archive, KafkaSink(settings(cluster, **changes), "11.1"))
    assert night.pending() == ids and night.ppdb.claims() == []


def test_an_embedded_cluster_is_shared_by_those_who_are_given_its_address(night):
    ids = night.add(0, 1, 5)
    with embedded(Kafka(bootstrap="embedded")) as kafka:
        assert kafka.bootstrap.startswith("127.0.0.1:")
        assert publish(night.ppdb, night.archive, open_sink(kafka, "11.1")) == 5
        assert ids_of(read_topic(kafka.bootstrap, kafka.topic)) == ids
        assert open_sink(kafka, "11.1") is open_sink(kafka, "11.1")
        open_sink(kafka, "11.1").close()
