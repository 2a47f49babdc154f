"""Events from Kafka: Avro with a schema registry, as SAL sends them, and plain JSON."""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import queue
import struct
import threading
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import fastavro
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from apflow.config import Config
from apflow.config_tables import Kafka
from apflow.errors import BadRequest, ServiceError
from apflow.io.kafka.registry import Registry
from apflow.io.kafka.settings import client_settings, is_lasting, make, service_error
from apflow.io.kafka.topics import partitions
from apflow.io.next_visit.door import Notice, decode_json, notice

_log = logging.getLogger(__name__)
_PAUSE_S = 0.2
#: A schema registry that cannot be reached is asked again after these.
_AGAIN_S = (0.5, 1.0, 2.0, 5.0)
_BY_ITSELF = {
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._TRANSPORT,
    KafkaError._TIMED_OUT,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError._MAX_POLL_EXCEEDED,
}
#: CSC of an instrument's camera where it is not that of LSSTCam.
_CAMERAS = {"LSSTComCam": "CC", "LSSTComCamSim": "CC", "LATISS": "AT"}


def topics(config: Config, instrument: str) -> dict[str, str]:
    """Kind of event by topic."""
    own = config.invocation
    integration = own.integration_topic or f"lsst.sal.{_CAMERAS.get(instrument, 'MT')}Camera.logevent_startIntegration"
    return {
        own.next_visit_topic: "nextVisit",
        own.cancel_topic: "nextVisitCanceled",
        integration: "startIntegration",
    }


class KafkaDoor:
    """A member of a consumer group that goes on where the group stopped.

    An offset is committed when what its message asks for is recorded, so that
    a crash loses no visit; whoever comes after reads the rest again. A group
    without offsets begins at the oldest message: those that are too old are
    dropped by their age.

    Parameters
    ----------
    config : `Config`
    instrument : `str`

    Raises
    ------
    ServiceError
        The broker cannot be reached or refuses, or has no topic of nextVisit.
        Other topics that are missing are told in the log; they are read once
        they are there.
    """

    def __init__(self, config: Config, instrument: str) -> None:
        self._kafka, self._kinds = config.kafka, topics(config, instrument)
        self._decode = _Decoder(config.kafka)
        self._problem: KafkaError | None = None
        self._stop = threading.Event()
        self._done: queue.SimpleQueue[TopicPartition] = queue.SimpleQueue()
        settings = client_settings(
            config.kafka,
            group_id=config.invocation.group_id,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            topic_metadata_refresh_interval_ms=10_000,
            session_timeout_ms=30_000,
            # Whoever takes the place of one that crashed has its partitions at once, not after the time-out.
            group_instance_id=_member(config),
        )
        self._consumer = make(Consumer, settings | {"error_cb": self._note}, config.kafka)
        try:
            self._require_topics()
            self._consumer.subscribe(list(self._kinds))
        except BaseException:
            self._consumer.close()
            raise

    def notices(self) -> Iterator[Notice]:
        """See `Door`; while the schema registry cannot be reached nothing is skipped: it is asked again."""
        while not self._stop.is_set():
            self._commit()
            message = self._consumer.poll(_PAUSE_S)
            error = message.error() if message is not None else self._problem
            if message is not None and error is None:
                yield self._notice(message)
            elif error is not None and (is_lasting(error) if message is None else not _mends(error)):
                raise service_error(error, self._kafka, self._problem)

    def done(self, notice: Notice) -> None:
        """See `Door`: committed by the thread that reads, which alone talks to the broker, between two messages."""
        self._done.put(notice.token)

    def _commit(self) -> None:
        last: dict[tuple[str, int], TopicPartition] = {}
        while not self._done.empty():
            token = self._done.get()
            last[token.topic, token.partition] = token
        if not last:
            return
        try:
            self._consumer.commit(offsets=list(last.values()), asynchronous=False)
        except KafkaException as error:
            if is_lasting(error.args[0]):
                raise service_error(error.args[0], self._kafka, self._problem) from None
            # The messages come again after a crash, which is harmless; a later commit covers them otherwise.
            _log.warning("offsets are not committed yet: %s", error.args[0].str())

    def close(self) -> None:
        """See `Door`: leave the group, once `notices` has ended."""
        self._stop.set()

    def leave(self) -> None:
        """Leave the group; after `notices` has ended and nothing more is to be told by `done`."""
        try:
            self._commit()
        finally:
            self._consumer.close()

    def _notice(self, message: Message) -> Notice:
        topic, offset = str(message.topic()), message.offset()
        place = f"{topic}[{message.partition()}]@{offset}"
        token = TopicPartition(topic, message.partition() or 0, (offset or 0) + 1)
        try:
            record = self._record(message.value() or b"", place)
        except BadRequest as error:
            return Notice(None, place, str(error), self._kinds[topic], None, token)
        return notice(self._kinds[topic], record, place, token)

    def _record(self, value: bytes, place: str) -> Any:
        for pause_s in (*_AGAIN_S, *(60 * [_AGAIN_S[-1]])):
            try:
                return self._decode(value, place)
            except ServiceError as error:
                _log.warning("%s waits: %s", place, error)
                if self._stop.wait(pause_s):
                    raise
        return self._decode(value, place)

    def _require_topics(self) -> None:
        for topic, kind in self._kinds.items():
            try:
                partitions(self._consumer, topic, lambda: self._problem)
            except KafkaException as error:
                refused = service_error(error.args[0], self._kafka, self._problem, topic=topic)
                if kind == "nextVisit" or error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                    raise refused from None
                _log.warning("%s", refused)

    def _note(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN and not is_lasting(self._problem):
            self._problem = error


def _member(config: Config) -> str:
    """Name of the listener of a repository in its group; there is one at a time."""
    return f"{os.uname().nodename}-{zlib.crc32(config.butler.encode()):08x}"


def _mends(error: KafkaError) -> bool:
    """Whether an error of the consumer goes away by itself."""
    return error.retriable() or error.code() in _BY_ITSELF


class _Decoder:
    """Records of messages: framed Avro begins with a zero byte, which no JSON does."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka

    def __call__(self, value: bytes, place: str) -> Any:
        if value[:1] != b"\0":
            return decode_json(value, "the message, which does not begin as framed Avro does,")
        if len(value) < 6:
            raise BadRequest(f"{place}: {len(value)} bytes; accepted: a zero byte, the schema's id, a datum")
        (schema_id,) = struct.unpack_from(">i", value, 1)
        schema, datum = self._schema(schema_id, place), io.BytesIO(value[5:])
        try:
            record: Any = fastavro.schemaless_reader(datum, schema, None)
        except (ValueError, EOFError, IndexError, StopIteration, OverflowError, MemoryError) as error:
            raise BadRequest(f"{place}: no datum of schema {schema_id}: {type(error).__name__}") from error
        return _plain(record)

    def _schema(self, schema_id: int, place: str) -> Any:
        if not self._kafka.registry:
            raise BadRequest(f"{place} is Avro of schema {schema_id}, and kafka.registry is empty; give its URL")
        schema = _registered(self._kafka, schema_id)
        if schema is None:
            _registered.cache_clear()  # it may come
            raise BadRequest(f"{place}: schema {schema_id} is not in registry {self._kafka.registry}")
        return schema


@functools.lru_cache(maxsize=32)
def _registered(kafka: Kafka, schema_id: int) -> Any:
    text = Registry(kafka).find(schema_id)
    return None if text is None else fastavro.parse_schema(json.loads(text))


def _plain(value: Any) -> Any:
    """What JSON can keep of what Avro holds."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)
