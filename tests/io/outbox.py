"""An outbox full of alerts, and what a topic holds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, Message, TopicPartition

from apflow.io.alerts.archive import Archive
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.model import schema
from apflow.model.ledger import Outcome, State
from apflow.model.products import DetectorResult, Packet

from .ppdb_night import FIRST, visit

NIGHT = 20250420
INSTRUMENT = visit().instrument


class Night:
    """A PPDB and an archive with alerts to send; their data are noise, of `size` bytes."""

    def __init__(self, folder: Path, ppdb_url: str = "") -> None:
        self.archive_url = f"file://{folder}/alerts"
        self.ppdb_url = ppdb_url or f"duckdb://{folder}/ppdb.duckdb"
        self.archive = Archive(self.archive_url)
        self.ppdb: Ppdb = open_ppdb(self.ppdb_url, create=True)
        self.data: dict[int, bytes] = {}
        self.objects: dict[int, int] = {}
        self._rng = np.random.default_rng(5)

    def add(self, k: int, detector: int, n: int, size: int | Sequence[int] = 300, age_s: float = 0.0) -> list[int]:
        """Store `n` alerts of a detector of the k-th visit, whose image came `age_s` ago; gives their ids."""
        sizes = [size] * n if isinstance(size, int) else size
        first = 1_000_000 * (k + 1) + 10_000 * detector
        packets = [Packet(first + i, 77 * (first + i) % 1009, self._rng.bytes(s)) for i, s in enumerate(sizes)]
        return self.add_packets(k, detector, packets, age_s)

    def add_packets(self, k: int, detector: int, packets: Sequence[Packet], age_s: float = 0.0) -> list[int]:
        """Store given alerts; see `add`."""
        self.data |= {p.alert_id: p.datum for p in packets}
        self.objects |= {p.alert_id: p.object_id for p in packets}
        rows = self.archive.append(packets, FIRST + k, detector, NIGHT)
        empty = [schema.empty(name) for name in ("DiaSource", "DiaObject", "DiaForcedSource")]
        arrived_unix = time.time() - age_s
        result = DetectorResult(visit(k), detector, *empty, {}, tuple(packets), (), arrived_unix, 60785.3, NIGHT)
        self.ppdb.storeBatch([result], rows, 60785.4)
        self.ppdb.settle([Outcome(INSTRUMENT, FIRST + k, detector, State.DONE, n_alerts=len(packets))])
        return [p.alert_id for p in packets]

    def pending(self) -> list[int]:
        return sorted(row.alert_id for row in self.ppdb.pendingAlerts())

    def published(self) -> dict[tuple[int, int], float]:
        """Time of publication of each detector-visit that has one, by (k, detector)."""
        rows = self.ppdb.ledger().dropna(subset="published_unix")
        return {(r.visit - FIRST, r.detector): r.published_unix for r in rows.itertuples()}

    def close(self) -> None:
        self.ppdb.close()
        self.archive.close()


def read_topic(bootstrap: str, topic: str, committed: bool = True) -> list[Message]:
    """All that a topic holds now."""
    settings = {
        "bootstrap.servers": bootstrap,
        "group.id": f"reader-{time.monotonic_ns()}",
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "isolation.level": "read_committed" if committed else "read_uncommitted",
        "log_level": 2,
    }
    consumer = Consumer(settings)
    partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
    consumer.assign([TopicPartition(topic, p, OFFSET_BEGINNING) for p in partitions])
    found, left, until = [], set(partitions), time.monotonic() + 30
    while left and time.monotonic() < until:
        for message in consumer.consume(1000, 0.2):
            if message.error() is None:
                found.append(message)
            elif message.error().code() == KafkaError._PARTITION_EOF:
                left.discard(message.partition())
    consumer.close()
    assert not left, f"partitions {left} did not end"
    return found


def ids_of(messages: Sequence[Message]) -> list[int]:
    """The alert of each message, by its header; in order."""
    return sorted(int(dict(m.headers())["diaSourceId"]) for m in messages)
