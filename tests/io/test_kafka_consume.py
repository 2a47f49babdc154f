"""Alerts from a real broker: framing and schema checked, nothing taken twice by a group."""

from __future__ import annotations

import io
import json
import struct
import zlib

import fastavro
import pytest
from confluent_kafka import Producer

from apflow.config_tables import Kafka
from apflow.errors import DataError, ServiceError
from apflow.io.alerts.publish import publish
from apflow.io.alerts.schema import frame
from apflow.io.kafka.consume import AlertConsumer, Decoder, Received
from apflow.io.kafka.producer import KafkaSink
from apflow.io.kafka.registry import Registry
from apflow.operate.services import KafkaBroker

from .test_alerts_packets import build, decode


@pytest.fixture
def kafka(kafka_broker: KafkaBroker, request: pytest.FixtureRequest) -> Kafka:
    topic = f"read-{zlib.crc32(request.node.nodeid.encode())}"
    kafka_broker.create_topic(topic, partitions=3)
    return Kafka(kafka_broker.bootstrap, topic)


def send(kafka: Kafka, *values: bytes) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap})
    for value in values:
        producer.produce(kafka.topic, value)
    assert producer.flush(10) == 0


def test_alerts_come_back_as_the_records_that_were_sent(night, kafka):
    packets = build()
    night.add_packets(0, 94, packets)
    publish(night.ppdb, night.archive, KafkaSink(kafka, "11.1"))
    with AlertConsumer(kafka) as consumer:
        found = [*consumer.until_idle(2.0)]
    records = [Decoder(kafka)(r) for r in found]
    assert sorted(records, key=lambda r: r["diaSourceId"]) == decode(packets)
    assert {r.headers["detector"] for r in found} == {"94"} and {r.key for r in found} == {b"7", b"8", b"9"}


def test_a_group_goes_on_where_it_committed(kafka):
    send(kafka, *(b"%d" % i for i in range(10)))
    with AlertConsumer(kafka, group=kafka.topic) as consumer:
        first = [r.value for r in consumer.until_idle(3.0)]
        consumer.commit()
    send(kafka, b"10")
    with AlertConsumer(kafka, group=kafka.topic) as consumer:
        assert [r.value for r in consumer.until_idle(3.0)] == [b"10"]
        consumer.commit()
        consumer.commit()  # nothing new
    assert sorted(first) == [b"%d" % i for i in range(10)]


def test_without_a_group_one_begins_at_the_start_or_at_the_end(kafka):
    send(kafka, b"old")
    with AlertConsumer(kafka, from_start=False) as late, AlertConsumer(kafka) as early:
        assert [r.value for r in early.until_idle(1.5)] == [b"old"]
        assert late.receive(1.0) == []
        send(kafka, b"new")
        assert [r.value for r in late.until_idle(1.5)] == [b"new"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "no Confluent framing"),
        (b"Obj\x01 a container", "no Confluent framing"),
        (struct.pack(">bi", 0, 77) + b"x", "schema 77 is not in lsst-alert-packet; kafka.registry is empty"),
        (frame(build()[0].datum[:-9]), "no datum of schema 1101"),
        (frame(build()[0].datum + b"12"), "2 bytes follow the datum of schema 1101"),
    ],
)
def test_what_is_no_alert_is_told_with_its_place(value, message):
    with pytest.raises(DataError, match=rf"alerts\[3\]@17: {message}"):
        Decoder(Kafka())(Received(value, None, {}, "alerts[3]@17"))


def test_a_schema_that_is_not_installed_comes_from_the_registry(schema_registry):
    kafka = Kafka(registry=schema_registry.url)
    schema = {"type": "record", "name": "other", "fields": [{"name": "diaSourceId", "type": "long"}]}
    given = Registry(kafka)._ask("POST", "/subjects/consumed/versions", {"schema": json.dumps(schema)})["id"]
    assert given < 100  # no version of ours
    datum = io.BytesIO()
    fastavro.schemaless_writer(datum, schema, {"diaSourceId": 5})
    received = Received(frame(datum.getvalue(), given), None, {}, "t[0]@0")
    assert Decoder(kafka)(received) == {"diaSourceId": 5}
    with pytest.raises(DataError, match=f"schema 99999 is not in lsst-alert-packet, nor in registry {kafka.registry}"):
        Decoder(kafka)(Received(frame(b"x", 99999), None, {}, "t[0]@0"))


def test_a_topic_that_is_missing_is_named(kafka):
    with pytest.raises(ServiceError, match="has no topic 'elsewhere'"):
        AlertConsumer(kafka, topic="elsewhere")
