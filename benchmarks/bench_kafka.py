"""Alerts to a real broker on this machine: packed and acknowledged, beside a sender that flushes after each of them.

Prints one JSON object a line. `python benchmarks/bench_kafka.py [--json] [--alerts N ...]`; ``--json`` leaves out the
lines for people. Alerts have 20 + 20 rows of history and three stamps, and are packed while others are on their way:
no more of them are in memory than one detector's and what librdkafka's queue takes. The peer sends as Rubin's
PackageAlertsTask does, by a flush after each alert, packed beforehand on both sides.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from bench_alerts import NOW, Alerts, alerts
from confluent_kafka import Producer

from apflow.config_tables import Kafka
from apflow.io.alerts.archive import Archive
from apflow.io.alerts.cutouts import cutout_fits
from apflow.io.alerts.packets import build_packets
from apflow.io.alerts.publish import Batch
from apflow.io.alerts.schema import frame
from apflow.io.kafka.producer import KafkaSink
from apflow.io.kafka.transactions import TransactionalSink
from apflow.model.products import OutboxRow, Packet
from apflow.operate.services import KafkaBroker

HISTORY = 20
EACH = 53  # alerts of an average detector
#: Seconds in which so many alerts are to be acknowledged.
LIMITS_S = {10_000: 10.0, 40_000: 45.0}
N_PEER, N_PACKED = 300, 2000


def say(name: str, value: float, unit: str, **more: Any) -> None:
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


def pack(given: Alerts) -> tuple[Packet, ...]:
    """From tables and arrays to packets."""
    stamps = {i: (cutout_fits(d), cutout_fits(s), cutout_fits(t)) for i, (d, s, t) in given.planes.items()}
    tables = given.sources, given.objects, given.history, given.forced, stamps
    return build_packets(*tables, processed_mjd_tai=NOW)


@dataclasses.dataclass
class Packing(Batch):
    """Alerts that are packed as they are asked for."""

    given: Alerts | None = None

    def __iter__(self) -> Iterator[tuple[OutboxRow, bytes]]:
        assert self.given is not None
        for start in range(0, len(self.rows), EACH):
            packets = pack(self.given)
            for row, packet in zip(self.rows[start : start + EACH], packets, strict=False):
                yield row, packet.datum


class Packed(Batch):
    """One packet again and again."""

    datum = b""

    def __iter__(self) -> Iterator[tuple[OutboxRow, bytes]]:
        return ((row, self.datum) for row in self.rows)


def rows_of(n: int) -> list[OutboxRow]:
    return [OutboxRow(i, 313853517 + i % 7919, 2025042000123, i // EACH % 189, "", 0, 0, 0) for i in range(n)]


class Memory:
    """Resident memory of this process, looked at now and then."""

    def __enter__(self) -> Memory:
        self._process, self._stop = psutil.Process(), threading.Event()
        self.before = self.most = self._process.memory_info().rss
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.05):
            self.most = max(self.most, self._process.memory_info().rss)

    @property
    def grown_mb(self) -> float:
        return (self.most - self.before) / 1e6


def send(sink: KafkaSink, batch: Batch) -> float:
    """Wall seconds until all are acknowledged; the connection is there already."""
    start = time.perf_counter()
    sent = sink.send(sink.new_claim(), batch)
    assert sent.failure is None and len(sent.acknowledged) == len(batch.rows), sent
    return time.perf_counter() - start


def packed_and_acknowledged(kafka: Kafka, given: Alerts, archive: Archive, n: int) -> None:
    sink = KafkaSink(kafka, "11.1")
    size = len(pack(given)[0].datum) + 5
    send(sink, Packing(archive, rows_of(EACH), given=given))
    cpu = time.process_time()
    with Memory() as memory:
        wall = send(sink, Packing(archive, rows_of(n), given=given))
    cpu = time.process_time() - cpu
    more = {"limit": LIMITS_S.get(n, n / 1000), "cpu_s": round(cpu, 2), "bytes": size, "history": "20 + 20"}
    say(f"packed_and_acknowledged_{n}", wall, "s", **more, memory_grown_mb=round(memory.grown_mb, 1))
    sink.close()


def beside_a_flush_for_each(kafka: Kafka, given: Alerts, archive: Archive) -> None:
    datum = pack(given)[0].datum
    batch = Packed(archive, rows_of(N_PACKED))
    batch.datum = datum
    peer = Producer({"bootstrap.servers": kafka.bootstrap, "log_level": 2})
    peer.produce(kafka.topic, frame(datum))
    peer.flush()
    start = time.perf_counter()
    for _ in range(N_PEER):
        peer.produce(kafka.topic, frame(datum))
        peer.flush()
    theirs = N_PEER / (time.perf_counter() - start)
    for name, sink in (
        ("sent", KafkaSink(kafka, "11.1")),
        ("sent_in_transactions", TransactionalSink(kafka, "11.1")),
    ):
        send(sink, Packed(archive, rows_of(1)))
        rate = N_PACKED / send(sink, batch)
        more = {"peer": "flush after each alert", "peer_value": round(theirs, 1), "ratio": round(rate / theirs, 1)}
        differs = "loopback has no round-trip time; the peer asks for no compression and no idempotence"
        say(name, rate, "alerts/s", **more, bytes=len(datum) + 5, differs=differs)
        sink.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON lines only")
    parser.add_argument("--alerts", type=int, nargs="+", default=[*LIMITS_S], help="alerts of each run")
    options = parser.parse_args()
    if not options.json:
        print(f"# {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}", flush=True)
    given = alerts(EACH, HISTORY, np.random.default_rng(HISTORY))
    with KafkaBroker() as broker, tempfile.TemporaryDirectory() as folder:
        kafka = Kafka(broker.bootstrap, "alerts", transactional_id="bench", delivery_timeout_s=300.0)
        broker.create_topic("alerts", retention_bytes=50_000_000, segment_bytes=20_000_000)
        archive = Archive(f"file://{Path(folder)}")
        beside_a_flush_for_each(kafka, given, archive)
        for n in options.alerts:
            packed_and_acknowledged(kafka, given, archive, n)


if __name__ == "__main__":
    main()
