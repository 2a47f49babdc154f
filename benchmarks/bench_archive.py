"""What the alert archive costs: packets appended, synced, indexed, and read again.

Prints one JSON object a line. `python benchmarks/bench_archive.py [--json] [--alerts N]`; ``--json`` leaves out the
lines for people. The peer of appending is the same bytes written plainly into one file, with one sync. Stamps are pure
noise, variance and PSF too, so that they compress as badly as stamps can.
"""

from __future__ import annotations

import argparse
import collections
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import zstandard
from bench_alerts import alerts, ours, say

from apflow.io.alerts.archive import Archive, find
from apflow.io.alerts.index import ENTRY, read_index
from apflow.model.products import OutboxRow, Packet

#: Alerts of a batch: a raft of an average visit.
BATCH = 480
NIGHT = 20250420


def spent(work: Callable[[], object]) -> tuple[float, float]:
    """CPU and wall seconds of a call."""
    cpu, wall = time.process_time(), time.perf_counter()
    work()
    return time.process_time() - cpu, time.perf_counter() - wall


def batches(n: int) -> list[tuple[Packet, ...]]:
    """Alerts with 20 + 20 rows of history, unframed."""
    data = [message[5:] for message in ours(alerts(min(n, BATCH), 20, np.random.default_rng(1)))]
    many = [Packet(168691488537968641 + i, 1 + i, data[i % len(data)]) for i in range(n)]
    return [tuple(many[i : i + BATCH]) for i in range(0, n, BATCH)]


def appended(folder: Path, parts: list[tuple[Packet, ...]]) -> None:
    """Append, read and find."""
    n = sum(map(len, parts))
    size = sum(len(p.datum) for part in parts for p in part)
    with Archive(f"file://{folder}/archive") as archive, (folder / "plain").open("wb", buffering=0) as plain:
        archive.append(parts[0][:1], 1, 1, NIGHT)  # the file is there before the night's first batch
        rows: list[OutboxRow] = []

        def write() -> None:
            rows.extend(row for part in parts for row in archive.append(part, 2025042000123, 94, NIGHT))

        def write_plainly() -> None:
            for part in parts:
                plain.write(b"".join(p.datum for p in part))
                os.fsync(plain.fileno())

        (cpu, wall), (peer_cpu, peer_wall) = spent(write), spent(write_plainly)
        stored = sum(row.length for row in rows)
        peer = {"peer": "write and fsync of the same bytes, uncompressed"}
        say("archive_append_cpu", 1e3 * cpu / n, "ms per alert", **peer, peer_value=round(1e3 * peer_cpu / n, 4))
        say("archive_append_wall", 1e3 * wall / n, "ms per alert", **peer, peer_value=round(1e3 * peer_wall / n, 4),
            ratio=round(peer_wall / wall, 2), batch=BATCH)  # fmt: skip
        say("archive_compression", size / stored, "", bytes=size // n, stored_bytes=stored // n, codec="zstandard 1")
        cpu, _ = spent(lambda: archive.read_many(rows))
        say("archive_read", 1e3 * cpu / n, "ms per alert")


def levels(datum: bytes) -> None:
    """What other levels of compression would cost and give."""
    for level in (-5, 1, 3, 9):
        compress = zstandard.ZstdCompressor(level=level).compress
        cpu, _ = spent(functools.partial(collections.deque, map(compress, [datum] * 200), 0))
        say(
            f"zstandard_{level}",
            1e3 * cpu / 200,
            "ms per alert",
            compression=round(len(datum) / len(compress(datum)), 3),
        )


def found(folder: Path, n: int) -> None:
    """One alert by its id among many, by the index; and what an index costs that has to be made anew."""
    with Archive(f"file://{folder}/small") as archive:
        rows = archive.append([Packet(i, i, b"x" * 8) for i in range(n)], 1, 1, NIGHT)
        path = archive.root / rows[0].file
        _, wall = spent(lambda: find(archive.url, alert_ids=[n // 2]))
        say("archive_find", 1e3 * wall, "ms", alerts=n, index_bytes=n * ENTRY.itemsize)
        assert len(read_index(path)) == n


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON lines only")
    parser.add_argument("--alerts", type=int, default=2400)
    options = parser.parse_args()
    if not options.json:
        print(f"# {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        parts = batches(options.alerts)
        appended(Path(folder), parts)
        levels(parts[0][0].datum)
        found(Path(folder), 1_000_000)


if __name__ == "__main__":
    main()
