"""Messages of one topic to another, as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from apflow.config_tables import Kafka
from apflow.io.kafka.consume import Received
from apflow.io.kafka.producer import producer_settings
from apflow.io.kafka.settings import is_lasting, make, service_error


class Forwarder:
    """Sends messages on, and returns when all of them are acknowledged."""

    def __init__(self, kafka: Kafka, topic: str) -> None:
        self._kafka, self._topic = kafka, topic
        self._failed: list[KafkaError] = []
        self._behind: KafkaError | None = None
        self._producer = make(Producer, producer_settings(kafka) | {"error_cb": self._note}, kafka)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.close()

    def send(self, messages: Sequence[Received]) -> None:
        """Send messages with their keys and headers.

        Raises
        ------
        ServiceError
            Not all of them were acknowledged.
        """
        for message in messages:
            while True:
                try:
                    self._producer.produce(
                        self._topic,
                        message.value,
                        key=message.key,
                        headers=dict(message.headers),
                        on_delivery=self._report,
                    )
                    break
                except BufferError:
                    self._producer.poll(0.1)
                except KafkaException as error:
                    self._failed.append(error.args[0])
                    break
            self._producer.poll(0)
        while len(self._producer):
            self._producer.poll(0.1)
        if self._failed:
            failed, self._failed = self._failed, []
            raise service_error(failed[0], self._kafka, self._behind, topic=self._topic)
        self._behind = None

    def _report(self, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self._failed.append(error)

    def _note(self, error: KafkaError) -> None:
        if error.code() != KafkaError._ALL_BROKERS_DOWN and not is_lasting(self._behind):
            self._behind = error
