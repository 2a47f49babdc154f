"""Alerts by the thousand whose bytes follow from their ids, the processes that store and publish them, and a tally.

Shared by `bench_alerts_soak.py`, `bench_alerts_kills.py` and the short versions of both in the tests.
"""

from __future__ import annotations

import hashlib
import logging
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from apflow.config import Config
from apflow.config_tables import Kafka
from apflow.errors import ServiceError
from apflow.io.alerts.schema import frame, registry_id
from apflow.io.kafka.consume import AlertConsumer, Received
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.model import schema
from apflow.model.ledger import Ended
from apflow.model.products import Claim, DetectorResult, OutboxRow, Packet
from apflow.model.visit import Visit
from apflow.operate.deliver import deliver
from apflow.steps.batches import archive_packets, publish_alerts, write_ppdb

NIGHT = 20250420
DETECTORS = 10
#: Alerts of a visit.
EACH = 1000
_FIRST_VISIT = 100_000 * NIGHT
_SCHEMA_ID = registry_id("11.1")
_PRELOAD = ["apflow.operate.deliver", "apflow.steps.batches", "apflow.io.ppdb.postgres.server"]
_ANSWER_S = 120.0
_PAUSE_S = 0.1


def datum_of(alert_id: int) -> bytes:
    """Noise of 300 to 1500 bytes, the same whenever it is made: packets of real ones' kind would only be larger."""
    return hashlib.shake_128(b"%d" % alert_id).digest(300 + alert_id * 7919 % 1201)


def object_of(alert_id: int) -> int:
    """Id of the alert's DiaObject."""
    return alert_id * 77 % 10_007 + 1


def is_as_sent(received: Received, alert_id: int) -> bool:
    """Whether key and value of a message are what they must be, to the last byte."""
    return received.key == b"%d" % object_of(alert_id) and received.value == frame(datum_of(alert_id), _SCHEMA_ID)


def configuration(folder: Path, ppdb_url: str, kafka: Kafka) -> Config:
    """Settings of a flood; its archive is in the folder."""
    return Config(camera="lsstcam", ppdb=ppdb_url, alerts=f"file://{folder}/alerts", kafka=kafka)


def visit(k: int) -> Visit:
    """The k-th visit."""
    return Visit("LSSTCam", _FIRST_VISIT + k, f"group{k}", 10.0, -30.0, 0.0, "r_57", "r", 30.0, (f"image{k}",))


def results(k: int) -> tuple[Ended, ...]:
    """What the detectors of the k-th visit hand to the gathers; alerts EACH * k to EACH * (k + 1) - 1."""
    each = EACH // DETECTORS
    sources, objects, forced = (schema.empty(name) for name in ("DiaSource", "DiaObject", "DiaForcedSource"))
    ended = []
    for d in range(DETECTORS):
        ids = range(EACH * k + each * d, EACH * k + each * (d + 1))
        packets = tuple(Packet(i, object_of(i), datum_of(i)) for i in ids)
        result = DetectorResult(
            visit(k),
            d,
            sources,
            objects,
            forced,
            {},
            packets,
            (),
            arrived_unix=time.time(),
            mjd_mid_tai=60785.3,
            day_obs=NIGHT,
        )
        ended.append(Ended(d, result))
    return tuple(ended)


class Watched:
    """A PPDB that tells what its publisher claims, and what it has marked."""

    def __init__(self, ppdb: Ppdb, connection: Connection) -> None:
        self._ppdb, self._connection = ppdb, connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ppdb, name)

    def claimAlerts(self, claim: str, *arguments: Any) -> list[OutboxRow]:
        """See `Ppdb`."""
        rows = self._ppdb.claimAlerts(claim, *arguments)
        self._connection.send(("claimed", [row.alert_id for row in rows]))
        return rows

    def claims(self) -> list[Claim]:
        """See `Ppdb`."""
        return self._ppdb.claims()

    def markPublished(self, alert_ids: Sequence[int], when_unix: float) -> None:
        """See `Ppdb`."""
        self._ppdb.markPublished(alert_ids, when_unix)
        self._connection.send(("marked", list(alert_ids)))


def own(connection: Connection, url: str) -> None:
    """Own an embedded database, as the driver of a run does, until killed."""
    with open_ppdb(url, create=True):
        connection.send(("owns",))
        signal.pause()


def store(connection: Connection, config: Config) -> None:
    """Archive and store the visits that come by the connection, with further attempts as a runner makes them."""
    while True:
        k = connection.recv()
        while not _store(connection, config, k):
            time.sleep(_PAUSE_S)
        connection.send(("stored", k))


def _store(connection: Connection, config: Config, k: int) -> bool:
    try:
        write_ppdb(archive_packets(visit(k), results(k), config), config)
    except ServiceError as error:
        connection.send(("failed", str(error)))
        return False
    return True


def publish(connection: Connection, config: Config) -> None:
    """Deliver what is in the outbox, abandoned claims first, until killed."""
    while True:
        try:
            ppdb: Any = Watched(open_ppdb(config.ppdb_url), connection)
            if not deliver(ppdb, config):
                connection.send(("idle", not ppdb.pendingAlerts(limit=1)))
                time.sleep(_PAUSE_S)
        except ServiceError as error:
            connection.send(("failed", str(error)))
            time.sleep(_PAUSE_S)


def run_visits(connection: Connection, config: Config, n: int) -> None:
    """Archive, store and publish visits one after the other; ends when killed, so that its memory can be seen."""
    connection.send(("begins",))
    for k in range(n):
        stored = write_ppdb(archive_packets(visit(k), results(k), config), config)
        outcomes = publish_alerts(stored, config)
        causes = [o.cause for o in outcomes if o.cause or o.published_unix is None]
        connection.send(("failed", causes[0]) if causes else ("published", k))
    connection.send(("ended",))
    signal.pause()


def consume(connection: Connection, kafka: Kafka, n: int, idle_s: float) -> None:
    """Read a topic as it fills, until `n` alerts have come and then no more for a time, or until asked what there is.

    Says how many are lost and duplicated, and how many messages are not what they must be.
    """
    tally = Tally()
    with AlertConsumer(kafka) as consumer:
        connection.send(("reads",))
        while len(tally.copies) < n and not connection.poll():
            tally.add(consumer.receive(0.2))
        tally.add(consumer.until_idle(idle_s))
    connection.send(("read", tally.lost(n), tally.duplicated, tally.different))


def _call(function: Callable[..., None], *arguments: Any) -> None:
    logging.getLogger("apflow.io.kafka").setLevel(logging.CRITICAL)  # that servers are away is what is wanted
    function(*arguments)


@dataclass
class Process:
    """A process that is to be killed, and the connection to it."""

    process: Any
    connection: Connection
    killed: bool = False

    @staticmethod
    def start(function: Callable[..., None], *arguments: Any) -> Process:
        """Call a function with a connection and arguments."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_PRELOAD)
        mine, its = context.Pipe()
        process = context.Process(target=_call, args=(function, its, *arguments), daemon=True)
        process.start()
        its.close()
        return Process(process, mine)

    @property
    def pid(self) -> int:
        """Its number."""
        return int(self.process.pid)

    def messages(self, timeout_s: float = 0.0) -> list[tuple[Any, ...]]:
        """What it said, and ``dead`` at the end of it."""
        heard: list[tuple[Any, ...]] = []
        try:
            while self.connection.poll(0.0 if heard else timeout_s):
                heard.append(self.connection.recv())
        except (EOFError, OSError):
            heard.append(("dead",))
        return heard

    def expect(self, what: str) -> tuple[Any, ...]:
        """Wait until it says something; gives all of that."""
        until = time.monotonic() + _ANSWER_S
        while time.monotonic() < until:
            for message in self.messages(1.0):
                if message[0] == what:
                    return message
                if message[0] == "dead":
                    raise RuntimeError(f"process {self.pid} ended before it said {what!r}")
        raise TimeoutError(f"process {self.pid} did not say {what!r} within {_ANSWER_S:.0f} s")

    def kill(self) -> None:
        """SIGKILL."""
        self.killed = True
        if self.process.is_alive():
            os.kill(self.pid, signal.SIGKILL)
        self.process.join()


@dataclass
class Journal:
    """What one publisher took from the outbox, and what became of it.

    Attributes
    ----------
    taken
        Alerts, counted as often as they were taken.
    marked
        Alerts that it marked.
    open
        Alerts that it has, or had when it was killed.
    failed
        How often it gave each alert back, since the broker or the database was away.
    failures
        What it said of that.
    """

    taken: int = 0
    marked: set[int] = field(default_factory=set)
    open: set[int] = field(default_factory=set)
    failed: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def claim(self, ids: Sequence[int]) -> None:
        """It took alerts."""
        self.taken += len(ids)
        self.open |= set(ids)

    def mark(self, ids: Sequence[int]) -> None:
        """It marked alerts."""
        self.marked |= set(ids)
        self.open -= set(ids)

    def fail(self, message: str) -> None:
        """It could not go on."""
        self.failures.append(message)
        self.failed.update(self.open)
        self.open.clear()


@dataclass
class Tally:
    """Messages of a topic by alert.

    Attributes
    ----------
    copies
        Messages of each alert.
    different
        Messages whose key or value is not what it must be.
    """

    copies: Counter[int] = field(default_factory=Counter)
    different: int = 0

    def add(self, received: Iterable[Received]) -> int:
        """Count messages; gives how many there were."""
        n = 0
        for one in received:
            alert_id = int(one.headers["diaSourceId"])
            self.copies[alert_id] += 1
            self.different += not is_as_sent(one, alert_id)
            n += 1
        return n

    def lost(self, n: int) -> int:
        """How many of the alerts 0 to n - 1 are not there."""
        return sum(i not in self.copies for i in range(n))

    @property
    def duplicated(self) -> int:
        """Messages beyond the first of an alert."""
        return self.copies.total() - len(self.copies)

    def explained(self, journals: Sequence[Journal]) -> tuple[int, int, int]:
        """Duplicates by what is behind them.

        Returns
        -------
        died
            Those of alerts that publishers had taken and not marked when they were killed, each once.
        failed
            Those beyond, of alerts that publishers took and gave back when they lost the broker or the database.
        unexplained
            The rest.
        """
        again = self.copies - Counter(dict.fromkeys(self.copies, 1))
        after_deaths = again - Counter(i for j in journals for i in j.open)
        unexplained = after_deaths
        for journal in journals:
            unexplained = unexplained - journal.failed
        n, m, k = again.total(), after_deaths.total(), unexplained.total()
        return n - m, m - k, k
