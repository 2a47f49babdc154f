"""Alerts to a Kafka topic: idempotent, acknowledged by all replicas, every delivery report checked."""

from __future__ import annotations

import contextlib
import functools
import itertools
import secrets
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from apflow.config_tables import Kafka
from apflow.errors import ApflowError, ServiceError
from apflow.io.alerts.publish import Batch, Sent, Sink, holder
from apflow.io.alerts.schema import frame, registry_id
from apflow.io.kafka.settings import client_settings, is_lasting, make, service_error
from apflow.io.kafka.topics import ANSWER_S, partitions
from apflow.model.products import Claim, OutboxRow

#: How long a broker that failed is left alone, so that batches after the first need not wait for it.
_RETRY_S = 5.0
#: A broker that creates topics by itself says for a while that there is none.
_TOPIC_S = 3.0
#: Beyond the times for queueing and delivery, of all alerts and again of those that go alone.
_MARGIN_S = 15.0
#: Alerts in librdkafka's queue.
_QUEUE_KB = 64 * 1024


def producer_settings(kafka: Kafka) -> dict[str, Any]:
    """Settings of a producer that neither loses nor repeats; see `client_settings`."""
    return client_settings(
        kafka,
        enable_idempotence=True,
        acks="all",
        compression_type="lz4",
        linger_ms=5,
        partitioner="murmur2_random",  # as Java's: other producers put a key into the same partition
        message_max_bytes=max(kafka.max_message_bytes, 1_000_000) + 100_000,
        batch_size=kafka.max_message_bytes,  # a batch that the broker takes, if it takes the largest alert
        message_timeout_ms=int(1000 * kafka.delivery_timeout_s),
        topic_metadata_propagation_max_ms=int(1000 * _TOPIC_S),
        queue_buffering_max_kbytes=_QUEUE_KB,
    )


def headers_of(row: OutboxRow, late_after_s: float) -> dict[str, str | bytes | None]:
    """What can be known of an alert without decoding it, as decimal text.

    ``producer_timestamp`` is Unix time in milliseconds; ``late`` is 1 for an
    alert sent more than `late_after_s` after the end of readout; ``resent`` is
    1 where ``apflow alerts resend`` sent it again; ``trimmed`` is the number of
    rows of history that were left out, and is there only where some were.
    """
    now = time.time()
    late = row.arrived_unix is not None and now - row.arrived_unix > late_after_s
    values = {
        "visit": row.visit,
        "detector": row.detector,
        "diaSourceId": row.alert_id,
        "producer_timestamp": int(1000 * now),
        "late": int(late),
        "resent": int(row.resent),
    }
    if row.trimmed:
        values["trimmed"] = row.trimmed
    return {name: b"%d" % value for name, value in values.items()}


@dataclass
class Reports:
    """Delivery reports of some alerts; they may come in any thread that polls."""

    queued: int = 0
    delivered: list[int] = field(default_factory=list)
    too_large: list[tuple[OutboxRow, bytes]] = field(default_factory=list)
    failed: list[KafkaError] = field(default_factory=list)

    def take(self, row: OutboxRow, error: KafkaError | None, message: Message) -> None:
        """Count one report."""
        if error is None:
            self.delivered.append(row.alert_id)
        elif error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
            self.too_large.append((row, message.value() or b""))
        else:
            self.failed.append(error)

    @property
    def waiting(self) -> int:
        """Alerts without a report."""
        return self.queued - len(self.delivered) - len(self.too_large) - len(self.failed)


class KafkaSink(Sink):
    """A topic, with delivery at least once; `open_sink` shares one in a process.

    While the process lives and the broker comes back within
    ``delivery_timeout_s``, each alert arrives once: librdkafka numbers what it
    sends, and the broker drops what it has. An alert that is sent again, since
    its acknowledgement was lost with the process or came too late, has the same
    key, bytes and ``diaSourceId``.

    The key is the diaObjectId as decimal text, or the ssObjectId of a source
    that has no DiaObject: an object's alerts stay in one partition, in order.
    """

    claim_size = 1000

    def __init__(self, kafka: Kafka, schema_version: str) -> None:
        self._kafka = kafka
        self._schema_id = registry_id(schema_version)
        self._lock = threading.RLock()
        self._producer: Producer | None = None
        self._behind: KafkaError | None = None
        self._down: tuple[float, str] | None = None
        self._new_identity()

    def _new_identity(self) -> None:
        self._identity = f"{holder()}:{secrets.token_hex(8)}"
        self._numbers = itertools.count(1)

    @property
    def lease_s(self) -> float:
        """See `Sink`."""
        return ANSWER_S + _TOPIC_S + 4 * self._kafka.delivery_timeout_s + _MARGIN_S

    def new_claim(self) -> str:
        """See `Sink`."""
        with self._lock:
            return f"{self._identity}#{next(self._numbers)}"

    def send(self, claim: str, batch: Batch) -> Sent:
        """See `Sink`; returns at once where the broker failed a moment ago."""
        try:
            producer = self._ready()
        except ApflowError as error:
            return Sent(failure=error)
        sent, reports = self._produce(producer, batch, {}, alone=False)
        # A batch is refused as a whole: each of its alerts is judged when it goes alone.
        again = self._produce_framed(producer, reports.too_large, alone=True)
        sent.refused |= {row.alert_id: self._too_large(row, len(value), "the broker") for row, value in again.too_large}
        reports.delivered += again.delivered
        reports.failed += again.failed
        sent.acknowledged = reports.delivered
        if reports.failed or len(sent.acknowledged) + len(sent.refused) + len(batch.broken) < len(batch.rows):
            sent.failure = self._failed(reports.failed)
        return sent

    def arrived(self, claim: Claim) -> list[int]:
        """See `Sink`; without transactions there is no telling, and alerts are sent again."""
        return []

    def close(self) -> None:
        """Let go of the broker; what is not acknowledged within a second waits in the outbox."""
        with self._lock:
            if self._producer is not None:
                with contextlib.suppress(KafkaException):  # of a transaction that cannot be aborted
                    self._producer.flush(1.0)
                    self._producer.close()
                self._producer = None

    def _ready(self) -> Producer:
        """The producer of this process, connected.

        Raises
        ------
        ServiceError
            The broker cannot be used, or could not a moment ago.
        """
        with self._lock:
            if self._down is not None and time.monotonic() < self._down[0]:
                raise ServiceError(self._down[1])
            if self._producer is None:
                producer = make(Producer, self._settings() | {"error_cb": self._note}, self._kafka)
                self._connect(producer)
                self._producer = producer
            return self._producer

    def _settings(self) -> dict[str, Any]:
        return producer_settings(self._kafka)

    def _note(self, error: KafkaError) -> None:
        """Keep what is behind a failure; that nobody can be reached says less than why."""
        if error.code() != KafkaError._ALL_BROKERS_DOWN and not is_lasting(self._behind):
            self._behind = error

    def _connect(self, producer: Producer) -> None:
        self._behind = None
        try:
            answer_s = min(ANSWER_S, self._kafka.delivery_timeout_s)
            partitions(producer, self._kafka.topic, lambda: self._behind, answer_s, made_s=_TOPIC_S)
        except KafkaException as error:
            raise self._is_down(error.args[0]) from None

    def _is_down(self, error: KafkaError) -> ServiceError:
        down = service_error(error, self._kafka, self._behind)
        self._down = time.monotonic() + _RETRY_S, str(down)
        return down

    def _failed(self, errors: list[KafkaError]) -> ServiceError:
        """What kept alerts from being delivered; a producer that can do no more is replaced."""
        error = next((e for e in errors if e.code() != KafkaError._MSG_TIMED_OUT), None)
        if any(e.fatal() for e in errors):
            self._drop()
        return self._is_down(error or (errors[0] if errors else KafkaError(KafkaError._MSG_TIMED_OUT)))

    def _drop(self) -> None:
        """Give a producer up; the next has a new identity."""
        with self._lock:
            self._discard()
            self._new_identity()

    def _discard(self) -> None:
        if self._producer is not None:
            self._producer.purge()
            self._producer = None  # not closed, which would try once more to abort what cannot be aborted

    def _produce(self, producer: Producer, batch: Batch, refused: dict[int, str], alone: bool) -> tuple[Sent, Reports]:
        """Frame and send, but for the refused; gives these and those too large for the settings, and the reports."""
        sent = Sent(refused=dict(refused))

        def framed() -> Iterator[tuple[OutboxRow, bytes]]:
            for row, datum in batch:
                value = frame(datum, self._schema_id)
                if len(value) > self._kafka.max_message_bytes:
                    sent.refused[row.alert_id] = self._too_large(row, len(value), "these settings")
                elif row.alert_id not in refused:
                    yield row, value

        return sent, self._produce_framed(producer, framed(), alone)

    def _produce_framed(
        self, producer: Producer, alerts: Iterable[tuple[OutboxRow, bytes]], alone: bool = False
    ) -> Reports:
        """Send alerts and wait for their reports; no more are sent after a failure, nor when time is up.

        Those that go alone share no batch of Kafka's, which the broker takes or refuses as a whole.
        """
        reports = Reports()
        until = time.monotonic() + self._kafka.delivery_timeout_s
        for row, value in alerts:
            if reports.failed or not self._queue(producer, row, value, reports, until):
                break
            producer.poll(0)
            while alone and reports.waiting:
                producer.poll(0.1)
        while reports.waiting:
            producer.poll(0.1)
        if reports.delivered:
            self._behind = None
        return reports

    def _queue(self, producer: Producer, row: OutboxRow, value: bytes, reports: Reports, until: float) -> bool:
        """Queue one alert, while the queue is full waiting for room; False if there was none in time."""
        while time.monotonic() < until and not reports.failed:
            try:
                producer.produce(
                    self._kafka.topic,
                    value,
                    key=b"%d" % row.object_id,
                    headers=headers_of(row, self._kafka.late_after_s),
                    on_delivery=functools.partial(reports.take, row),
                )
            except BufferError:
                producer.poll(0.1)
            except KafkaException as error:
                reports.failed.append(error.args[0])
                reports.queued += 1
                return False
            else:
                reports.queued += 1
                return True
        return False

    def _too_large(self, row: OutboxRow, size: int, limit: str) -> str:
        return (
            f"alert {row.alert_id} (visit {row.visit}, detector {row.detector}) of {size} bytes is over the limit of "
            f"{limit}; kafka.max_message_bytes is {self._kafka.max_message_bytes}"
        )
