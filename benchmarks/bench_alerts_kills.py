"""What is lost and what comes twice when publishers, worker, broker and database are killed under a flood of alerts.

Prints one JSON object a line. `python benchmarks/bench_alerts_kills.py [--json] [--alerts N] [--kills N]`; ``--json``
leaves out the lines for people. A worker archives and stores, two publishers deliver as `apflow.operate.deliver` does,
to a real broker; each in turn is killed with SIGKILL and started again. On DuckDB the database's kill is that of the
process which owns the file, whichever it is then. Duplicates are told by whether a publisher was killed between taking
the alert and marking it, or gave it back since the broker or the database was away longer than it waits; what is
neither is unexplained.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from alert_flood import EACH, Journal, Process, Tally, configuration, own, publish, store
from confluent_kafka import IsolationLevel, TopicPartition
from confluent_kafka.admin import OffsetSpec  # type: ignore[attr-defined]

from apflow.config import Config
from apflow.config_tables import Kafka
from apflow.io.kafka.consume import AlertConsumer
from apflow.io.ppdb import open_ppdb
from apflow.operate.services import KafkaBroker, PostgresServer
from apflow.operate.services.kafka import PARTITIONS

VICTIMS = ("publisher", "worker", "broker", "database")
#: Visits that the worker may be ahead of the publishers.
AHEAD = 12
#: Longer than a transaction stays open that nobody ends.
OPEN_S = 150.0
#: Without any progress for so long, a run is given up: longer than the lease of a claim.
STUCK_S = 240.0


def say(name: str, value: float, unit: str, **more: Any) -> None:
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


class Flood:
    """Processes that store and publish `n` alerts, and their servers, all of which may be killed.

    Parameters
    ----------
    config : `~apflow.config.Config`
    broker : `~apflow.operate.services.KafkaBroker`
    database : `~apflow.operate.services.PostgresServer`, optional
        None where the PPDB is a DuckDB file: this process must not open it, as it would own it.
    n : `int`
        Whole visits of them; may be raised later.
    publishers : `int`
        How many deliver at the same time.
    """

    def __init__(
        self, config: Config, broker: KafkaBroker, database: PostgresServer | None, n: int, publishers: int = 2
    ) -> None:
        self._config, self._broker, self._database = config, broker, database
        self.n = n
        self.journals: list[Journal] = []
        self.kills: Counter[str] = Counter()
        self.stored: set[int] = set()
        self.is_done = False
        self._restarts: dict[str, threading.Thread] = {}
        self._given: int | None = None
        self._owner = None if database else self._new_owner()
        self._worker = Process.start(store, config)
        self._publishers = [self._new_publisher() for _ in range(publishers)]
        self._told = time.monotonic()

    def _new_owner(self) -> Process:
        return Process.start(own, self._config.ppdb_url)

    def _new_publisher(self) -> tuple[Process, Journal]:
        self.journals.append(Journal())
        return Process.start(publish, self._config), self.journals[-1]

    @property
    def n_marked(self) -> int:
        """Alerts that publishers said they marked."""
        return sum(len(j.marked) for j in self.journals)

    @property
    def n_open(self) -> int:
        """Alerts that publishers have, or had when they were killed."""
        return sum(len(j.open) for j in self.journals)

    @property
    def is_storing(self) -> bool:
        """Whether the worker has a visit to archive and store."""
        return self._given is not None

    def step(self) -> None:
        """Hear what the processes say, and give the worker its next visit."""
        for what, *values in self._worker.messages(0.02):
            if what == "stored":
                self.stored.add(values[0])
                self._given = None
                self._told = time.monotonic()
            elif what == "dead":
                raise RuntimeError("the worker ended, and nobody killed it")
        if self._given is None and EACH * len(self.stored) < min(self.n, self.n_marked + AHEAD * EACH):
            self._give(len(self.stored))
        for process, journal in self._publishers:
            self._hear(process, journal)
        if time.monotonic() - self._told > STUCK_S:
            raise TimeoutError(f"{self.n_marked} of {self.n} alerts are marked, and no more for {STUCK_S:.0f} s")

    def _give(self, k: int) -> None:
        with contextlib.suppress(BrokenPipeError):  # it was killed: the next one gets the visit
            self._worker.connection.send(k)
        self._given = k

    def _hear(self, process: Process, journal: Journal) -> None:
        for what, *values in process.messages():
            if what == "dead" and not process.killed:
                raise RuntimeError("a publisher ended, and nobody killed it")
            if what == "claimed":
                journal.claim(values[0])
            elif what == "marked":
                journal.mark(values[0])
                self._told = time.monotonic()
            elif what == "failed":
                journal.fail(values[0])
            elif what == "idle":
                self.is_done = values[0] and EACH * len(self.stored) >= self.n

    def kill(self, victim: str) -> None:
        """Kill one of VICTIMS; it is started again, servers after a moment and while the rest goes on."""
        self.kills[victim] += 1
        if victim == "publisher":
            process, journal = self._publishers.pop(0)
            process.kill()
            self._hear(process, journal)
            self._publishers.append(self._new_publisher())
        elif victim == "worker":
            self._kill_worker()
        elif victim == "broker":
            self._kill_server("broker", self._broker)
        elif self._database is not None:
            self._kill_server("database", self._database)
        else:
            self._kill_owner()

    def _kill_worker(self) -> None:
        self._worker.kill()
        for message in self._worker.messages():
            if message[0] == "stored":
                self.stored.add(message[1])
        self._given = None
        self._worker = Process.start(store, self._config)

    def _kill_server(self, name: str, server: KafkaBroker | PostgresServer) -> None:
        self.join()  # one restart at a time of each
        server.kill()
        self._restarts[name] = threading.Thread(target=server.start)
        self._restarts[name].start()

    def _kill_owner(self) -> None:
        """Kill whichever process owns the file now; another takes it over by itself."""
        path = Path(self._config.ppdb_url.removeprefix("duckdb://"))
        with contextlib.suppress(ValueError):  # between two owners
            pid = json.loads(path.with_name(path.name + ".owner").read_text())["pid"]
            if pid == self._worker.pid:
                self._kill_worker()
            for one in [p for p in self._publishers if p[0].pid == pid]:
                self._publishers.remove(one)
                one[0].kill()
                self._hear(*one)
                self._publishers.append(self._new_publisher())
            if self._owner is not None and pid == self._owner.pid:
                self._owner.kill()
                self._owner = self._new_owner()

    def join(self) -> None:
        """Wait until the servers that were killed are back."""
        while self._restarts:
            self._restarts.popitem()[1].join()

    def close(self) -> None:
        """End the processes."""
        self.join()
        for process in [self._worker, *(p for p, _ in self._publishers), *([self._owner] if self._owner else [])]:
            process.kill()


def run(flood: Flood, victims: Sequence[str], seed: int) -> None:
    """Kill victims at random moments while alerts flow, and go on until all is delivered."""
    rng = random.Random(seed)
    when = sorted(rng.uniform(0.02, 0.9) * flood.n for _ in victims)
    for victim, count in zip(rng.sample(victims, len(victims)), when, strict=True):
        moment = 0.0
        while flood.n_marked < count or time.monotonic() < moment:
            flood.step()
            if not moment and flood.n_marked >= count:
                moment = time.monotonic() + rng.uniform(0.0, 0.5)  # anywhere within the life of a claim
        flood.kill(victim)
    while not flood.is_done:
        flood.step()


def tally_of(kafka: Kafka, n: int) -> tuple[Tally, float]:
    """All that the topic holds, as consumers see it that read what is committed, and how long that was held back.

    They see nothing beyond a transaction that is still open: one whose publisher could not end it, with the broker
    away, is ended by the broker when its time is over.
    """
    tally, start = Tally(), time.monotonic()
    last = start
    with AlertConsumer(kafka) as consumer:
        while len(tally.copies) < n and time.monotonic() - last < OPEN_S:
            if tally.add(consumer.receive(0.5)):
                last = time.monotonic()
        tally.add(consumer.until_idle(3.0))
    return tally, last - start


def held_back(broker: KafkaBroker, topic: str) -> int:
    """Messages behind a transaction that is still open: they are there, and consumers of what is committed wait."""
    admin, ends = broker.admin(), Counter[IsolationLevel]()
    latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
    for level in (IsolationLevel.READ_COMMITTED, IsolationLevel.READ_UNCOMMITTED):
        wanted = {TopicPartition(topic, p): latest for p in range(PARTITIONS)}
        for found in admin.list_offsets(wanted, isolation_level=level).values():
            ends[level] += found.result().offset
    return ends[IsolationLevel.READ_UNCOMMITTED] - ends[IsolationLevel.READ_COMMITTED]


@contextlib.contextmanager
def database_of(kind: str, folder: Path) -> Iterator[tuple[str, PostgresServer | None]]:
    """URL of an empty PPDB, and its server."""
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(PostgresServer()) if kind == "postgresql" else None
        url = server.database() if server else f"duckdb://{folder}/ppdb.duckdb"
        open_ppdb(url, create=True).close()
        yield url, server


def measure(kind: str, transactional_id: str, n: int, each: int, seed: int) -> None:
    """One run: `each` kills of each kind of process."""
    victims = list(itertools.chain.from_iterable([v] * each for v in VICTIMS))
    with (
        tempfile.TemporaryDirectory() as name,
        KafkaBroker() as broker,
        database_of(kind, Path(name)) as (url, server),
    ):
        kafka = Kafka(broker.bootstrap, broker.create_topic("alerts"), transactional_id=transactional_id)
        start = time.perf_counter()
        flood = Flood(configuration(Path(name), url, kafka), broker, server, n)
        try:
            run(flood, victims, seed)
        finally:
            flood.close()
        seconds = time.perf_counter() - start
        tally, read_s = tally_of(kafka, n)
        held = held_back(broker, kafka.topic)
        with open_ppdb(url) as ppdb:
            outbox = ppdb.select("SELECT count(*) AS n, count(published_unix) AS m FROM outbox").to_pylist()[0]
    report(kind, transactional_id, flood, tally, (seconds, read_s), held)
    if (outbox["n"], outbox["m"]) != (n, n):
        raise RuntimeError(f"the outbox holds {outbox['n']} alerts, {outbox['m']} of them published; {n} were sent")


def report(kind: str, transactional_id: str, flood: Flood, tally: Tally, s: tuple[float, float], held: int) -> None:
    """The figures of a run; `s` are the seconds that it took, and those for which consumers waited."""
    name = f"alerts_kills_{kind}" + ("_transactional" if transactional_id else "")
    more = {"alerts": flood.n, "kills": dict(flood.kills), "seconds": round(s[0], 1)}
    say(f"{name}_lost", tally.lost(flood.n), "alerts", **more, read_s=round(s[1], 1), held_back=held)
    died, failed, unexplained = tally.explained(flood.journals)
    taken = sum(j.taken for j in flood.journals)
    say(f"{name}_duplicated", tally.duplicated, "alerts", by_death=died, by_outage=failed, taken=taken)
    say(f"{name}_unexplained", unexplained, "alerts")
    say(f"{name}_different", tally.different, "messages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="no lines for people")
    parser.add_argument("--alerts", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=4, help="of each of " + ", ".join(VICTIMS))
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    for kind, transactional_id in [("postgresql", ""), ("duckdb", ""), ("postgresql", "bench")]:
        if not args.json:
            mode = "in transactions" if transactional_id else "at least once"
            print(f"# {args.alerts} alerts {mode}, {kind}", file=sys.stderr)
        measure(kind, transactional_id, EACH * (args.alerts // EACH), args.kills, args.seed)


if __name__ == "__main__":
    main()
