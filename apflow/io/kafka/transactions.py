"""Alerts to a Kafka topic, exactly once for consumers that read what is committed.

The alerts of a claim are one transaction, and with them goes a marker: the
claim's number as the committed offset of a consumer group that bears the
producer's name, and the ids that were left out. So the broker itself knows
what was committed, and whoever finds an abandoned claim asks it, when the
producer that may still be at it is fenced.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Collection
from typing import Any

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

from apflow.errors import ApflowError, ServiceError
from apflow.io.alerts.publish import Batch, Sent
from apflow.io.kafka.producer import KafkaSink, producer_settings
from apflow.io.kafka.settings import client_settings, make, service_error
from apflow.model.products import Claim, OutboxRow

#: For the coordinator to end what another left, and to answer.
_COORDINATOR_S = 30.0
_ABORT_S = 5.0
#: What brokers accept by default (transaction.max.timeout.ms).
_LONGEST_S = 900.0


class TransactionalSink(KafkaSink):
    """A topic, each claim in a transaction of its own.

    Guaranteed to consumers with ``isolation.level=read_committed``: each alert
    once, whichever publisher, broker or database dies when, as long as an
    abandoned claim is settled before the broker forgets the marker
    (``offsets.retention.minutes``, 7 days unless set otherwise), and by a
    publisher with the same `transactional_id`. Other consumers may see alerts
    of transactions that were given up, too.
    """

    claim_size = 300  # the ids of all of them fit into a marker (offset.metadata.max.bytes, 4096)

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
        identity, _, number = claim.name.partition("#")
        with self._lock:
            if identity == self._identity:
                self._drop()
        name = self._name(identity)
        try:
            make(Producer, self._settings(identity), self._kafka).init_transactions(_COORDINATOR_S)
            marker = self._marker(name)
        except KafkaException as error:
            raise service_error(error.args[0], self._kafka, doing=f"settling {claim.name}") from None
        if marker.offset < int(number):
            return []
        left_out = set(_unpack(marker.metadata)) if marker.offset == int(number) else set()
        return [i for i in claim.alert_ids if i not in left_out]

    def _name(self, identity: str) -> str:
        """Transactional id of a producer, and the group of its marker."""
        return f"{self._kafka.transactional_id}-{identity}"

    def _marker(self, name: str) -> TopicPartition:
        consumer = make(Consumer, self._reader(name), self._kafka)
        try:
            return consumer.committed([TopicPartition(self._kafka.topic, 0)], _COORDINATOR_S)[0]
        finally:
            consumer.close()

    def _reader(self, name: str) -> dict[str, Any]:
        return client_settings(self._kafka, group_id=name, enable_auto_commit=False, isolation_level="read_committed")

    def _settings(self, identity: str = "") -> dict[str, Any]:
        # The broker ends a transaction that its producer abandoned after this time.
        longest_s = min(_LONGEST_S, 2 * self._kafka.delivery_timeout_s + _COORDINATOR_S)
        return producer_settings(self._kafka) | {
            "transactional.id": self._name(identity or self._identity),
            "transaction.timeout.ms": int(1000 * longest_s),
        }

    def _connect(self, producer: Producer) -> None:
        super()._connect(producer)
        try:
            producer.init_transactions(_COORDINATOR_S)
        except KafkaException as error:
            raise self._is_down(error.args[0]) from None
        consumer = make(Consumer, self._reader(self._name(self._identity)), self._kafka)
        self._group = consumer.consumer_group_metadata()
        consumer.close()

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
            marker = TopicPartition(self._kafka.topic, 0, int(claim.partition("#")[2]), _pack(left_out))
            producer.send_offsets_to_transaction([marker], self._group, _COORDINATOR_S)
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


def _pack(ids: Collection[int]) -> str:
    return base64.b64encode(np.array(sorted(ids), ">i8").tobytes()).decode()


def _unpack(text: str | None) -> list[int]:
    found: list[int] = np.frombuffer(base64.b64decode(text or ""), ">i8").tolist()
    return found
