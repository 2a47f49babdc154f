"""librdkafka's mock cluster, for demonstrations without a server.

It lives in the memory of one process, answers other processes of the machine
too, makes topics as they are named (4 partitions), and keeps the newest 5 MB
of each partition.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator

from confluent_kafka import Producer

from apflow.config_tables import Kafka

EMBEDDED = "embedded"


def _start() -> tuple[Producer, str]:
    """The client in which the cluster lives, and its address."""
    home = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "", "log_level": 2})
    brokers = home.list_topics(timeout=10).brokers.values()
    return home, ",".join(f"{b.host}:{b.port}" for b in brokers)


@functools.cache
def _of_process(pid: int) -> tuple[Producer, str]:
    return _start()


def embedded_bootstrap() -> str:
    """Address of this process's mock cluster, which is started when it is first asked for."""
    return _of_process(os.getpid())[1]


@contextlib.contextmanager
def embedded(kafka: Kafka) -> Iterator[Kafka]:
    """The settings with the address of a mock cluster where they ask for an embedded one.

    A driver whose workers are other processes hands them these settings: each
    would start a cluster of its own otherwise.
    """
    if kafka.bootstrap != EMBEDDED:
        yield kafka
        return
    home, bootstrap = _start()
    try:
        yield dataclasses.replace(kafka, bootstrap=bootstrap)
    finally:
        home.close()
