"""Events from a real Kafka: Avro with a real registry, JSON, and what a crash leaves to read again."""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka import Producer

from apflow.config import Config
from apflow.config_tables import Invocation, Kafka
from apflow.errors import ServiceError
from apflow.io.next_visit import KafkaDoor, Notice
from apflow.io.next_visit.kafka import topics
from apflow.model.next_visit import NextVisit, NextVisitCanceled, StartIntegration
from apflow.operate.services import KafkaBroker, SchemaRegistry
from tests.model.test_next_visit import NEXT_VISIT, START

#: As SAL has it.
SCHEMA = {
    "type": "record",
    "name": "logevent_nextVisit",
    "namespace": "lsst.sal.ScriptQueue",
    "fields": [
        *[
            {"name": name, "type": kind}
            for names, kind in (
                (("salIndex", "scriptSalIndex", "coordinateSystem", "rotationSystem", "dome", "nimages"), "int"),
                (("totalCheckpoints", "private_seqNum", "private_origin"), "int"),
                (("groupId", "filters", "instrument", "survey", "private_identity", "private_revCode"), "string"),
                (("startTime", "cameraAngle", "duration"), "double"),
                (("private_sndStamp", "private_rcvStamp", "private_efdStamp", "private_kafkaStamp"), "double"),
            )
            for name in names
        ],
        {"name": "position", "type": {"type": "array", "items": "double"}},
    ],
}
_names = itertools.count()


@pytest.fixture
def config(kafka_broker: KafkaBroker, tmp_path: Path) -> Config:
    """Settings with topics of the test's own."""
    n = next(_names)
    own = [kafka_broker.create_topic(f"events-{n}-{what}", partitions=1) for what in ("next", "cancel", "start")]
    invocation = Invocation(
        group_id=f"events-{n}", next_visit_topic=own[0], cancel_topic=own[1], integration_topic=own[2]
    )
    return Config(butler=str(tmp_path), kafka=Kafka(bootstrap=kafka_broker.bootstrap), invocation=invocation)


@pytest.fixture
def send(kafka_broker: KafkaBroker) -> Callable[[str, Any], None]:
    producer = Producer({"bootstrap.servers": kafka_broker.bootstrap})

    def produce(topic: str, value: Any) -> None:
        producer.produce(topic, value if isinstance(value, bytes) else json.dumps(value).encode())
        assert producer.flush(30) == 0

    return produce


class Read:
    """A door that is read by a thread, as the service does; left without a word when `crash`ed."""

    def __init__(self, config: Config) -> None:
        self.door = KafkaDoor(config, "LSSTCam")
        self.notices: list[Notice] = []
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for notice in self.door.notices():
                self.notices.append(notice)
        except ServiceError as error:
            self.error = error

    def until(self, n: int, timeout_s: float = 90.0) -> list[Notice]:
        deadline = time.monotonic() + timeout_s
        while len(self.notices) < n and self.error is None:
            assert time.monotonic() < deadline, self.notices
            time.sleep(0.05)
        return self.notices

    def close(self) -> None:
        self.door.close()
        self._thread.join(20.0)
        self.door.leave()


@pytest.fixture
def read(config: Config) -> Iterator[Callable[[], Read]]:
    made: list[Read] = []

    def start(**kafka: Any) -> Read:
        made.append(Read(dataclasses.replace(config, kafka=dataclasses.replace(config.kafka, **kafka))))
        return made[-1]

    yield start
    for one in made:
        one.close()


def framed(schema_id: int, record: dict[str, Any]) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(SCHEMA), record)
    return b"\0" + schema_id.to_bytes(4, "big") + out.getvalue()


def test_avro_and_json_are_told_apart_and_bad_messages_do_not_block(
    config: Config, read: Callable[..., Read], send: Callable[[str, Any], None], schema_registry: SchemaRegistry
):
    own = config.invocation
    body = json.dumps({"schema": json.dumps(SCHEMA)}).encode()
    headers = {"Content-Type": "application/vnd.schemaregistry.v1+json"}
    url = f"{schema_registry.url}/subjects/{own.next_visit_topic}-value/versions"
    with urllib.request.urlopen(urllib.request.Request(url, body, headers, method="POST")) as reply:
        schema_id = json.load(reply)["id"]
    record = {k: v for k, v in NEXT_VISIT.items() if k != "private_somethingNew"}
    for value in (
        framed(schema_id, record),
        record | {"groupId": "by JSON"},
        framed(schema_id, record)[:40],
        framed(9999, record),
        b"\0\0",
        b"",
        b"\xff\xfe nothing",
        record | {"nimages": 3},
        framed(schema_id, record | {"groupId": "the last"}),
    ):
        send(own.next_visit_topic, value)
    notices = read(registry=schema_registry.url).until(9)
    good = [n.message.group for n in notices if isinstance(n.message, NextVisit)]
    assert good == [NEXT_VISIT["groupId"], "by JSON", "the last"]
    assert notices[0].message == NextVisit.from_record(NEXT_VISIT)
    assert json.loads(json.dumps(notices[0].record)) == record
    refusals = [n.refusal for n in notices if n.message is None]
    for refusal, why in zip(
        refusals,
        (
            "no datum of schema",
            "schema 9999 is not in registry",
            "2 bytes; accepted",
            "is no JSON",
            "is no JSON",
            "nimages",
        ),
        strict=True,
    ):
        assert why in refusal
    assert f"{own.next_visit_topic}[0]@2" in notices[2].place


def test_what_is_not_done_comes_again(config: Config, read: Callable[..., Read], send: Callable[[str, Any], None]):
    own = config.invocation
    for n in range(3):
        send(own.next_visit_topic, NEXT_VISIT | {"groupId": f"g{n}"})
    first = read()
    first.door.done(first.until(3)[0])
    time.sleep(2.0)  # it is committed between two looks for messages
    second = read()  # takes the place of the first, as after a crash: at once, with what was not done
    begin = time.monotonic()
    assert [n.message.group for n in second.until(2)] == ["g1", "g2"]  # type: ignore[union-attr]
    assert time.monotonic() - begin < 25.0, "it must not wait for the session of the lost one to time out"
    for notice in second.notices:
        second.door.done(notice)
    second.close()
    send(own.cancel_topic, {"groupId": "g2"})
    send(own.integration_topic, START)
    third = read().until(2)
    assert {type(n.message) for n in third} == {NextVisitCanceled, StartIntegration}


def test_topics_of_each_camera():
    assert list(topics(Config(), "LSSTCam")) == [
        "lsst.sal.ScriptQueue.logevent_nextVisit",
        "lsst.sal.ScriptQueue.logevent_nextVisitCanceled",
        "lsst.sal.MTCamera.logevent_startIntegration",
    ]
    assert "lsst.sal.CCCamera.logevent_startIntegration" in topics(Config(), "LSSTComCam")


def test_a_topic_that_is_missing_is_named(config: Config):
    missing = dataclasses.replace(config.invocation, next_visit_topic="not-there")
    with pytest.raises(ServiceError, match="has no topic 'not-there' and does not create it"):
        KafkaDoor(dataclasses.replace(config, invocation=missing), "LSSTCam")
