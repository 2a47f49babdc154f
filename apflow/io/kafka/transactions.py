"""Alerts to a Kafka topic, exactly once for consumers that read what is committed.

The alerts of a claim are one transaction, and a marker goes with them: a
message with the claim's name to a topic beside theirs. So the broker itself
knows what was committed, and whoever finds an abandoned claim asks it, when
the producer that may still be at it is fenced.

The marker is no consumer group's offset, which would need no topic:
librdkafka's ``send_offsets_to_transaction`` may hang for ever when a broker
dies (confluentinc/librdkafka#5456).
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from apflow.errors import ApflowError, ServiceError
from apflow.io.alerts.publish import Batch, Sent
from apflow.io.kafka.producer import KafkaSink, producer_settings
from apflow.io.kafka.settings import client_settings, make, service_error
from apflow.io.kafka.topics import ANSWER_S, partitions
from apflow.model.products import Claim, OutboxRow

#: For the coordinator to end what another left, and to answer.
_COORDINATOR_S = 30.0
_ABORT_S = 5.0
#: Markers are kept this long.
_KEPT_DAYS = 7


class TransactionalSink(KafkaSink):
    """A topic, each claim in a transaction of its own.

    Meant for consumers with ``isolation.level=read_committed``: each alert
    once, whichever publisher, broker or database dies when, as long as an
    abandoned claim is settled within 7 days, by a publisher with the same
    `transactional_id`. Other consumers may see alerts of transactions that
    were given up, too.

    Readers of what is committed see nothing behind a transaction that its
    producer could not end, until the broker ends it: up to twice
    `delivery_timeout_s` and 30 s after an outage. In one of nine runs that
    killed the broker again and again, a tenth of the alerts were still hidden
    from them after 150 s (``benchmarks/bench_alerts_kills.py``), and why is
    not known: whoever must be sure to read each alert takes the plain sink.

    The markers are in the topic ``<topic>-claims``, of one partition, which is
    made where it is missing and that is allowed.
    """

    @property
    def lease_s(self) -> float:
        """See `Sink`."""
        return super().lease_s + self._kafka.delivery_timeout_s + 4 * _COORDINATOR_S

    def send(self, claim: str, batch: Batch) -> Sent:
        """See `Sink`: all of them or none, but for those that are refused or broken."""
        with self._lock:
            try:
                producer = self._ready()
            except ApflowError as error:
                return Sent(failure=error)
            if not claim.startswith(f"{self._identity}#"):
                return Sent(failure=ServiceError(f"Kafka at {self._kafka.bootstrap}: this producer was replaced"))
            until = time.monotonic() + self._kafka.delivery_timeout_s
            refused: dict[int, str] = {}
            alone = False
            while True:
                sent, large = self._transaction(producer, claim, batch, refused, alone)
                if not large:
                    return sent
                # A batch is refused as a whole: each of its alerts is judged when it goes alone.
                if alone:
                    refused |= {row.alert_id: self._too_large(row, len(value), "the broker") for row, value in large}
                alone = True
                try:
                    producer = self._again(producer, until)
                except ServiceError as error:
                    return Sent(refused=refused, failure=error)

    def arrived(self, claim: Claim) -> list[int]:
        """See `Sink`; whoever is still at it can do no more when this returns."""
        identity = claim.name.partition("#")[0]
        with self._lock:
            if identity == self._identity:
                self._drop()
        try:
            producer = make(Producer, self._settings(identity), self._kafka)
            producer.init_transactions(_COORDINATOR_S)
            self._require_markers(producer)  # the claim's publisher may have ended before it came to that
            marker = self._marker(claim.name)
        except KafkaException as error:
            raise service_error(error.args[0], self._kafka, doing=f"settling {claim.name}") from None
        left_out = set() if marker is None else set(_unpack(marker))
        return [] if marker is None else [i for i in claim.alert_ids if i not in left_out]

    @property
    def _markers(self) -> str:
        """Topic of the markers."""
        return f"{self._kafka.topic}-claims"

    def _marker(self, claim: str) -> bytes | None:
        """What a claim's marker says; None if it was not committed."""
        place = TopicPartition(self._markers, 0, OFFSET_BEGINNING)
        plain = make(Consumer, self._reader("read_uncommitted"), self._kafka)
        _, end = plain.get_watermark_offsets(place, timeout=_COORDINATOR_S)
        plain.close()
        consumer = make(Consumer, self._reader("read_committed"), self._kafka)
        try:
            consumer.assign([place])
            return _find(consumer, claim.encode(), end)
        finally:
            consumer.close()

    def _reader(self, isolation: str) -> dict[str, Any]:
        return client_settings(
            self._kafka,
            group_id=f"{self._kafka.transactional_id}-claims",  # asked for, not used
            enable_auto_commit=False,
            enable_partition_eof=True,
            isolation_level=isolation,
        )

    def _settings(self, identity: str = "") -> dict[str, Any]:
        # The broker ends a transaction that its producer abandoned after this time.
        longest_s = 2 * self._kafka.delivery_timeout_s + _COORDINATOR_S
        return producer_settings(self._kafka) | {
            "transactional.id": f"{self._kafka.transactional_id}-{identity or self._identity}",
            "transaction.timeout.ms": int(1000 * longest_s),
        }

    def _connect(self, producer: Producer) -> None:
        super()._connect(producer)
        try:
            self._require_markers(producer)
            producer.init_transactions(_COORDINATOR_S)
        except KafkaException as error:
            raise self._is_down(error.args[0]) from None

    def _require_markers(self, producer: Producer) -> None:
        """Make the topic of the markers where it is missing."""
        try:
            partitions(producer, self._markers, lambda: self._behind)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.UNKNOWN_TOPIC_OR_PART:
                raise
        else:
            return
        new = NewTopic(self._markers, 1, -1, config={"retention.ms": str(_KEPT_DAYS * 86_400_000)})
        admin = make(AdminClient, client_settings(self._kafka), self._kafka)
        try:
            admin.create_topics([new], request_timeout=ANSWER_S)[self._markers].result()
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another publisher was faster
                doing = f"making topic {self._markers!r} of one partition"
                raise service_error(error.args[0], self._kafka, doing=doing, topic=self._markers) from None

    def _transaction(
        self, producer: Producer, claim: str, batch: Batch, refused: dict[int, str], alone: bool
    ) -> tuple[Sent, list[tuple[OutboxRow, bytes]]]:
        """One try; gives what was sent, or the alerts that the broker found too large with others."""
        committing = False
        try:
            producer.begin_transaction()
            sent, reports = self._produce(producer, batch, refused, alone)
            if reports.too_large:  # whatever else failed, failed with the transaction
                return sent, reports.too_large
            left_out = {**sent.refused, **batch.broken}
            if reports.failed or len(reports.delivered) + len(left_out) < len(batch.rows):
                raise KafkaException(reports.failed[0] if reports.failed else KafkaError(KafkaError._TIMED_OUT))
            producer.produce(self._markers, np.array(sorted(left_out), ">i8").tobytes(), claim, partition=0)
            committing = True
            _commit(producer)
        except KafkaException as raised:
            return self._abort(producer, raised.args[0], committing), []
        sent.acknowledged = reports.delivered
        return sent, []

    def _abort(self, producer: Producer, error: KafkaError, committing: bool) -> Sent:
        """Give a transaction up that failed, and its producer.

        Nobody can commit what it began, unless the broker was asked to.
        """
        uncertain = committing and not error.txn_requires_abort()
        if not uncertain and not error.fatal():
            with contextlib.suppress(KafkaException):  # the broker ends it by itself, later
                producer.abort_transaction(_ABORT_S)
        self._drop()
        return Sent(failure=self._is_down(error), uncertain=uncertain)

    def _again(self, producer: Producer, until: float) -> Producer:
        """The same producer anew: librdkafka does not go on after messages that are missing."""
        with contextlib.suppress(KafkaException):
            producer.abort_transaction(_ABORT_S)
        self._discard()
        if time.monotonic() > until:
            raise service_error(KafkaError(KafkaError._TIMED_OUT), self._kafka, doing="sending alerts one by one")
        return self._ready()


def _commit(producer: Producer) -> None:
    until = time.monotonic() + _COORDINATOR_S
    while True:
        try:
            producer.commit_transaction(max(0.1, until - time.monotonic()))
            return
        except KafkaException as error:
            if not error.args[0].retriable() or time.monotonic() > until:
                raise


def _find(consumer: Consumer, key: bytes, end: int) -> bytes | None:
    """Value of a message among those before an offset; waits for transactions that are still open there."""
    until = time.monotonic() + _COORDINATOR_S
    while time.monotonic() < until:
        for message in consumer.consume(1000, 0.5):
            error = message.error()
            if error is None and message.key() == key:
                return bytes(message.value() or b"")
            if error is not None and error.code() != KafkaError._PARTITION_EOF and not error.retriable():
                raise KafkaException(error)
            if error is not None and error.code() == KafkaError._PARTITION_EOF and (message.offset() or 0) >= end:
                return None
    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))


def _unpack(marker: bytes) -> list[int]:
    ids: list[int] = np.frombuffer(marker, ">i8").tolist()
    return ids
