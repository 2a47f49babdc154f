"""A long night of small alerts through the real broker, with a live consumer and a short retention.

Prints one JSON object a line. `python benchmarks/bench_alerts_soak.py [--json] [--alerts N] [--ppdb KIND]`; ``--json``
leaves out the lines for people. One process archives, stores, publishes and marks, as a worker's gathers do; another
one reads the topic and compares every key and byte. The broker keeps alerts for 20 s, so that its disk must stay flat;
the archive of the night and the outbox keep them all: what they take an alert is told.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from alert_flood import EACH, Process, configuration, consume, run_visits
from bench_alerts_kills import database_of

from apflow.config import Config
from apflow.config_tables import Kafka
from apflow.io.ppdb import open_ppdb
from apflow.operate.services import KafkaBroker

RETENTION_S = 20
#: Segments go as a whole: the smallest that Kafka accepts, and none open for longer than this.
SEGMENT_BYTES = 1 << 20
SEGMENT_S = 5
#: Between two looks at memory and disk.
SAMPLE_S = 1.0
MB = 1e6


def say(name: str, value: float, unit: str, **more: Any) -> None:
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


@dataclass(frozen=True)
class Sample:
    """What was seen at one moment: alerts published, seconds since the start, resident and on-disk bytes."""

    published: int
    seconds: float
    publisher: int
    broker: int
    topic: int


def disk_bytes(folder: Path, pattern: str) -> int:
    """What the files take on the disk; those that go meanwhile count no more."""
    total = 0
    for path in folder.glob(pattern):
        try:
            total += 512 * path.stat().st_blocks
        except FileNotFoundError:
            continue
    return total


def watch(publisher: Process, broker: KafkaBroker, topic: str) -> Iterator[Sample]:
    """Samples until the publisher is done."""
    start, published, ended, due = time.monotonic(), 0, False, 0.0
    seen, server = psutil.Process(publisher.pid), psutil.Process(broker.pid)
    while not ended:
        for what, *values in publisher.messages(0.1):
            if what in ("failed", "dead"):
                raise RuntimeError(f"the publisher {what}: {values}")
            published += EACH * (what == "published")
            ended = ended or what == "ended"
        if time.monotonic() > due or ended:
            due = time.monotonic() + SAMPLE_S
            memory = seen.memory_info().rss, server.memory_info().rss
            yield Sample(
                published, time.monotonic() - start, *memory, disk_bytes(broker.folder / "data", f"{topic}-*/*")
            )


def soak(config: Config, broker: KafkaBroker, n: int, idle_s: float = 5.0) -> tuple[list[Sample], tuple[int, int, int]]:
    """Send `n` alerts; gives the samples, and how many alerts were lost, came twice, or were not the same."""
    consumer = Process.start(consume, config.kafka, n, idle_s)
    publisher = Process.start(run_visits, config, n // EACH)
    try:
        consumer.expect("reads")
        publisher.expect("begins")
        samples = list(watch(publisher, broker, config.kafka.topic))
        _, lost, duplicated, different = consumer.expect("read")
    finally:
        publisher.kill()
        consumer.kill()
    return samples, (lost, duplicated, different)


def rate(samples: list[Sample], start: float, stop: float) -> float:
    """Alerts a second between two fractions of all."""
    n = samples[-1].published
    part = [s for s in samples if start * n <= s.published <= stop * n]
    return (part[-1].published - part[0].published) / max(part[-1].seconds - part[0].seconds, 1e-9)


def report(samples: list[Sample], counts: tuple[int, int, int]) -> None:
    """The figures of a run, but for those of the files that stay."""
    last = samples[-1]
    tenth = next(s for s in samples if s.published >= last.published / 10)
    half = [s for s in samples if s.published >= last.published / 2]
    say("alerts_soak_alerts", last.published, "alerts", seconds=round(last.seconds, 1))
    say(
        "alerts_soak_rate",
        last.published / last.seconds,
        "alerts/s",
        first_tenth=round(rate(samples, 0.0, 0.1)),
        last_tenth=round(rate(samples, 0.9, 1.0)),
    )
    for name, value in zip(("lost", "duplicated", "different"), counts, strict=True):
        say(f"alerts_soak_{name}", value, "alerts")
    for name in ("publisher", "broker"):
        at_tenth = getattr(tenth, name) / MB
        say(f"alerts_soak_rss_{name}", getattr(last, name) / MB, "MB", at_10_percent=round(at_tenth, 1))
    # Retention works in steps: the most in the second half is compared with the most in the first.
    first = max(s.topic for s in samples if s.published <= last.published / 2)
    more = {"first_half": round(first / MB, 1), "retention_s": RETENTION_S}
    say("alerts_soak_topic_disk_most", max(s.topic for s in half) / MB, "MB", **more)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="no lines for people")
    parser.add_argument("--alerts", type=int, default=100_000)
    parser.add_argument("--ppdb", choices=["duckdb", "postgresql"], default="postgresql")
    args = parser.parse_args()
    n = EACH * (args.alerts // EACH)
    if not args.json:
        print(f"# {n} alerts, outbox on {args.ppdb}, topic kept for {RETENTION_S} s", file=sys.stderr)
    with (
        tempfile.TemporaryDirectory() as name,
        KafkaBroker() as broker,
        database_of(args.ppdb, Path(name)) as (url, _),
        open_ppdb(url) as ppdb,
    ):
        retention = {"retention_ms": 1000 * RETENTION_S, "segment_ms": 1000 * SEGMENT_S, "segment_bytes": SEGMENT_BYTES}
        kafka = Kafka(broker.bootstrap, broker.create_topic("alerts", **retention))
        report(*soak(configuration(Path(name), url, kafka), broker, n))
        found = ppdb.select("SELECT count(*) AS n, count(published_unix) AS m FROM outbox").to_pylist()[0]
        if (found["n"], found["m"]) != (n, n):
            raise RuntimeError(f"the outbox holds {found['n']} alerts, {found['m']} of them published; {n} were sent")
        size = ppdb.sizes()["outbox"] if args.ppdb == "postgresql" else disk_bytes(Path(name), "ppdb.duckdb*")
        say("alerts_soak_outbox", size / n, "bytes/alert", ppdb=args.ppdb)
        say("alerts_soak_archive", disk_bytes(Path(name), "alerts/*/*") / n, "bytes/alert")


if __name__ == "__main__":
    main()
