"""SASL/SCRAM over TLS with a real broker: in by the right password, out by a clear error."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

import pytest

from apflow.config_tables import Kafka
from apflow.errors import ServiceError
from apflow.io.alerts.publish import publish
from apflow.io.kafka.consume import AlertConsumer
from apflow.io.kafka.producer import KafkaSink
from apflow.io.kafka.transactions import TransactionalSink
from apflow.operate.services import KafkaBroker

from .outbox import ids_of, read_topic


@pytest.fixture
def kafka(kafka_broker: KafkaBroker) -> Kafka:
    return Kafka(
        kafka_broker.sasl_bootstrap,
        "secured",
        transactional_id="test",
        delivery_timeout_s=10.0,
        security_protocol="SASL_SSL",
        username=kafka_broker.username,
        password_file=str(kafka_broker.password_file),
        ca_file=str(kafka_broker.certificate),
    )


@pytest.fixture(scope="module", autouse=True)
def topic(kafka_broker: KafkaBroker) -> None:
    kafka_broker.create_topic("secured", partitions=2)


def test_alerts_pass_with_password_and_certificate(night, kafka_broker, kafka):
    ids = night.add(0, 1, 20)
    assert publish(night.ppdb, night.archive, KafkaSink(kafka, "11.1")) == 20
    more = night.add(0, 2, 20)
    assert publish(night.ppdb, night.archive, TransactionalSink(kafka, "11.1")) == 20
    assert ids_of(read_topic(kafka_broker.bootstrap, "secured")) == ids + more
    with AlertConsumer(kafka) as consumer:
        assert len([*consumer.until_idle(2.0)]) == 40


@pytest.mark.parametrize("sink_of", [KafkaSink, TransactionalSink])
def test_a_wrong_password_is_told_and_never_shown(night, kafka, tmp_path: Path, caplog, sink_of):
    secret = "correct-horse-battery"
    (tmp_path / "password").write_text(secret + "\n")
    ids = night.add(0, 1, 5)
    wrong = dataclasses.replace(kafka, password_file=str(tmp_path / "password"))
    sink = sink_of(wrong, "11.1")
    with caplog.at_level(logging.DEBUG), pytest.raises(ServiceError) as caught:
        publish(night.ppdb, night.archive, sink)
    told = str(caught.value)
    assert f"Kafka at {wrong.bootstrap}: refuses the credentials of user 'apflow'; check kafka.username" in told
    assert secret not in told + repr(sink) + repr(vars(sink)) + caplog.text
    assert night.pending() == ids and night.ppdb.claims() == []
    with pytest.raises(ServiceError, match="refuses the credentials"):
        AlertConsumer(wrong)


def test_a_certificate_that_is_not_trusted_is_told(night, kafka):
    ids = night.add(0, 1, 5)
    with pytest.raises(ServiceError, match=r"does not complete the TLS handshake; check kafka.ca_file"):
        publish(night.ppdb, night.archive, KafkaSink(dataclasses.replace(kafka, ca_file=""), "11.1"))
    assert night.pending() == ids


def test_a_broker_that_asks_for_more_than_it_gets_is_told(night, kafka):
    night.add(0, 1, 5)
    plain = dataclasses.replace(kafka, security_protocol="PLAINTEXT")
    with pytest.raises(ServiceError, match=f"Kafka at {kafka.bootstrap}: "):
        publish(night.ppdb, night.archive, KafkaSink(plain, "11.1"))
