"""The sink that a process shares: a topic, with or without transactions, or the archive where there is no broker."""

from __future__ import annotations

import functools
import os

from apflow.config_tables import Kafka
from apflow.io.alerts.publish import ArchiveSink, Sink
from apflow.io.kafka.producer import KafkaSink
from apflow.io.kafka.transactions import TransactionalSink


def open_sink(kafka: Kafka, schema_version: str) -> Sink:
    """Where alerts go by these settings; nothing is connected before the first alert."""
    return _shared(os.getpid(), kafka, schema_version)


@functools.lru_cache(maxsize=8)
def _shared(pid: int, kafka: Kafka, schema_version: str) -> Sink:
    if not kafka.bootstrap:
        return ArchiveSink()
    return (TransactionalSink if kafka.transactional_id else KafkaSink)(kafka, schema_version)
