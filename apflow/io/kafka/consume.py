"""Alerts from a Kafka topic, framing checked and decoded by the schema that each one names."""

from __future__ import annotations

import functools
import io
import json
import struct
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Self

import fastavro
from confluent_kafka import OFFSET_BEGINNING, OFFSET_END, Consumer, KafkaError, KafkaException, Message, TopicPartition

from apflow.config_tables import Kafka
from apflow.errors import DataError
from apflow.io.alerts.schema import available_versions, load_schema, registry_id
from apflow.io.kafka.registry import Registry
from apflow.io.kafka.settings import client_settings, is_lasting, make, service_error
from apflow.io.kafka.topics import ANSWER_S, partitions

_MAX_AT_ONCE = 500


@dataclass(frozen=True, eq=False)
class Received:
    """A message of a topic.

    Attributes
    ----------
    value
        As it was sent, framed.
    key
        The diaObjectId as decimal text; None where a sender gave none.
    headers
        By name, as text.
    place
        ``topic[partition]@offset``.
    """

    value: bytes
    key: bytes | None
    headers: Mapping[str, str]
    place: str


class Decoder:
    """Records of framed alerts; schemas come from lsst-alert-packet, else from the registry where there is one."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka

    def __call__(self, received: Received) -> dict[str, Any]:
        """The record of a message.

        Raises
        ------
        DataError
            The framing, the schema's id or the datum is not what it should
            be; the message says where.
        ServiceError
            The schema must be asked for, and the registry cannot be reached.
        """
        value = received.value
        if len(value) < 6 or value[0] != 0:
            raise DataError(f"{received.place}: no Confluent framing; accepted: a zero byte, the schema's id, a datum")
        (schema_id,) = struct.unpack_from(">i", value, 1)
        definition, datum = self._schema(schema_id, received.place), io.BytesIO(value)
        datum.seek(5)
        try:
            record: Any = fastavro.schemaless_reader(datum, definition, None)
        except (ValueError, EOFError, IndexError, StopIteration, OverflowError, MemoryError) as error:
            raise DataError(f"{received.place}: no datum of schema {schema_id}: {type(error).__name__}") from error
        if datum.tell() != len(value):
            raise DataError(
                f"{received.place}: {len(value) - datum.tell()} bytes follow the datum of schema {schema_id}"
            )
        return dict(record)

    def _schema(self, schema_id: int, place: str) -> Any:
        definition = _installed(schema_id) or _registered(self._kafka, schema_id)
        if definition is None:
            where = f", nor in registry {self._kafka.registry}" if self._kafka.registry else "; kafka.registry is empty"
            raise DataError(f"{place}: schema {schema_id} is not in lsst-alert-packet{where}")
        return definition


@functools.lru_cache(maxsize=8)
def _installed(schema_id: int) -> Any:
    versions = {registry_id(v): v for v in available_versions()}
    return load_schema(versions[schema_id]).definition if schema_id in versions else None


@functools.lru_cache(maxsize=8)
def _registered(kafka: Kafka, schema_id: int) -> Any:
    text = Registry(kafka).find(schema_id) if kafka.registry else None
    return None if text is None else fastavro.parse_schema(json.loads(text))


class AlertConsumer:
    """Reads a topic, as a member of a group that goes on where it stopped, or alone.

    Only what is committed is read, so that each alert that was sent in a
    transaction comes once.

    Parameters
    ----------
    kafka : `~apflow.config_tables.Kafka`
    group : `str`
        Consumer group; empty: all partitions, and nothing is kept.
    topic : `str`
        That of the settings when empty.
    from_start : `bool`
        Begin with the oldest message where the group has no offset; else with
        the next one to come.

    Raises
    ------
    ServiceError
        The broker cannot be reached or refuses, or the topic does not exist.
    """

    def __init__(self, kafka: Kafka, group: str = "", topic: str = "", from_start: bool = True) -> None:
        self.topic = topic or kafka.topic
        self._kafka = kafka
        self._problem: KafkaError | None = None
        settings = client_settings(
            kafka,
            group_id=group or "apflow",
            enable_auto_commit=False,
            auto_offset_reset="earliest" if from_start else "latest",
            isolation_level="read_committed",
            queued_max_messages_kbytes=32 * 1024,
        )
        self._consumer = make(Consumer, settings | {"error_cb": self._note}, kafka)
        try:
            found = self._partitions()
            if group:
                self._consumer.subscribe([self.topic])
            else:
                start = OFFSET_BEGINNING if from_start else OFFSET_END
                self._consumer.assign([TopicPartition(self.topic, p, start) for p in found])
        except BaseException:
            self._consumer.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the group."""
        self._consumer.close()

    def receive(self, timeout_s: float = 1.0, limit: int = _MAX_AT_ONCE) -> list[Received]:
        """What comes within a time, perhaps nothing.

        Raises
        ------
        ServiceError
            The broker refuses, or the topic is gone.
        """
        found = []
        for message in self._consumer.consume(limit, timeout_s):
            error = message.error()
            if error is None:
                found.append(_received(message))
            elif not error.retriable() and error.code() not in (KafkaError._ALL_BROKERS_DOWN, KafkaError._TRANSPORT):
                raise self._error(error)
        if not found and is_lasting(self._problem):
            assert self._problem is not None
            raise self._error(self._problem)
        return found

    def until_idle(self, idle_s: float) -> Iterator[Received]:
        """Messages, until none has come for a time."""
        last = time.monotonic()
        while time.monotonic() - last < idle_s:
            for received in self.receive(min(idle_s, 1.0)):
                yield received
                last = time.monotonic()

    def until_end(self, idle_s: float) -> Iterator[Received]:
        """Messages that are there now, of a consumer without a group.

        What ends a transaction takes an offset and is no message: where a
        partition ends so, this waits until nothing has come for a time.
        """
        ends = self._ends()
        last = time.monotonic()
        while self._is_before(ends) and time.monotonic() - last < idle_s:
            for received in self.receive(min(idle_s, 0.2)):
                yield received
                last = time.monotonic()

    def _ends(self) -> list[TopicPartition]:
        """Where the partitions that hold anything end."""
        ends = []
        for partition in self._consumer.assignment():
            try:
                low, high = self._consumer.get_watermark_offsets(partition, timeout=ANSWER_S)
            except KafkaException as error:
                raise self._error(error.args[0]) from None
            if high > low:
                ends.append(TopicPartition(self.topic, partition.partition, high))
        return ends

    def _is_before(self, ends: list[TopicPartition]) -> bool:
        reached = self._consumer.position([TopicPartition(self.topic, end.partition) for end in ends])
        return any(at.offset < end.offset for at, end in zip(reached, ends, strict=True))

    def commit(self) -> None:
        """Keep, for the group, that everything that was received is done with."""
        try:
            self._consumer.commit(asynchronous=False)
        except KafkaException as error:
            if error.args[0].code() != KafkaError._NO_OFFSET:
                raise self._error(error.args[0]) from None

    def _partitions(self) -> list[int]:
        try:
            return partitions(self._consumer, self.topic, lambda: self._problem)
        except KafkaException as error:
            raise self._error(error.args[0]) from None

    def _error(self, error: KafkaError) -> Exception:
        return service_error(error, self._kafka, self._problem, topic=self.topic)

    def _note(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN and not is_lasting(self._problem):
            self._problem = error


def _received(message: Message) -> Received:
    headers = {name: _text(value) for name, value in dict(message.headers() or ()).items()}
    key = message.key()
    place = f"{message.topic()}[{message.partition()}]@{message.offset()}"
    return Received(message.value() or b"", key.encode() if isinstance(key, str) else key, headers, place)


def _text(value: str | bytes | None) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value or ""
