"""Visits in flight on one sky while processes and servers are killed, each at a chosen moment."""

from __future__ import annotations

import dataclasses
import random
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from overlap_relay import Held, Relay
from overlap_sky import Sky
from overlap_tally import Tally, tally
from overlap_worker import DEADLINE_S, Process, serve_visits

from apflow.config import Config
from apflow.io.ppdb import open_ppdb
from apflow.operate.deliver import deliver

_ATTEMPTS = 3


@dataclass(frozen=True)
class Point:
    """A moment in the life of a visit.

    Attributes
    ----------
    call
        What it is about to do, does or has done.
    when
        ``before`` or ``after`` it; ``inside``, some milliseconds into it; ``waiting`` for an earlier visit;
        ``uncommitted``, the request (PostgreSQL: its COMMIT) sent and not arrived; ``unanswered``, done and
        committed without an answer.
    """

    call: str
    when: str

    def __str__(self) -> str:
        return f"{self.call} {self.when}"


POINTS = tuple(
    Point(call, when)
    for call, times in {
        "openVisit": ("before", "uncommitted", "unanswered", "after"),
        "awaitTurn": ("before", "waiting", "after"),
        "getHistory": ("unanswered", "after"),
        "append": ("before", "inside", "after"),
        "storeBatch": ("inside", "uncommitted", "unanswered"),
        "settle": ("uncommitted", "unanswered", "after"),
        "publish": ("inside",),
        "claimAlerts": ("unanswered",),
        "markPublished": ("uncommitted", "unanswered"),
        "publication": ("after",),
    }.items()
    for when in times
)
#: What is said last before some calls begin, and how long they take about, seconds.
_BEGIN = {"append": ("before append", 0.02), "storeBatch": ("after append", 0.1), "publish": ("after settle", 0.03)}
_SAID = {"publication after": "after publish"}


class Server(Protocol):
    """What answers the requests of the visits, and can be killed."""

    kind: str
    url: str
    relay: Relay
    #: Whether it was killed and is not what it was: it is to be started anew before the next kill.
    lost: bool

    def start(self) -> None:
        """Start it, and its relay."""

    def end(self) -> None:
        """End it."""

    def kill(self) -> None:
        """Kill what answers, cut what the relay holds, and see that something answers again."""

    def led_to_relay(self) -> AbstractContextManager[str]:
        """URL for a process that starts within the block: its requests go through the relay."""

    def marks(self, call: str) -> Sequence[bytes]:
        """What a client sends in some call, the decisive bytes last."""


class Night:
    """A PPDB, an archive, and three processes that take visits through: an earlier, a victim and a later one."""

    def __init__(self, sky: Sky, folder: Path, server: Server) -> None:
        self.sky, self.server = sky, server
        self.config = Config(camera="lsstcam", butler=str(folder), ppdb=server.url)
        self.failures: list[str] = []
        self.visits: list[int] = []
        self._random = random.Random(sky.seed)
        self._workers: dict[str, Process] = {}
        open_ppdb(server.url, create=True).close()

    def _start(self) -> None:
        self.server.start()
        self._workers = {"earlier": self._worker(), "later": self._worker(), "victim": self._victim()}

    def _end(self) -> None:
        for worker in self._workers.values():
            worker.end()
        self.server.end()

    def _worker(self, url: str = "") -> Process:
        worker = Process(serve_visits, self.sky, dataclasses.replace(self.config, ppdb=url or self.server.url))
        assert worker.until("ready")[-1] == "ready"
        return worker

    def _victim(self) -> Process:
        if self.server.lost:
            return self._worker()
        with self.server.led_to_relay() as url:
            return self._worker(url)

    def run(self, point: Point, whom: str) -> None:
        """Three visits in flight, and a kill of ``worker`` or ``server`` when the second comes to a point.

        Every second time the later visit does not wait for its turn.
        """
        if self.server.lost:
            self._end()
            self._start()
        first = len(self.visits)
        visits = dict(zip(("earlier", "victim", "later"), range(first, first + 3), strict=True))
        self.visits += visits.values()
        patience = dict.fromkeys(visits, DEADLINE_S) | {"later": DEADLINE_S * (first % 2)}
        self._announce([k for name, k in visits.items() if (name, point.call) != ("victim", "openVisit")])
        held = Held.REQUEST if point.when == "uncommitted" else Held.ANSWER
        unheard = point.when.startswith("un")
        trap = self.server.relay.arm(self.server.marks(point.call), held) if unheard else None
        waits = point.when == "waiting"
        for name in ("victim", "later") if waits else visits:
            self._workers[name].ask((visits[name], patience[name]))
        if trap is not None:
            if not trap.wait(DEADLINE_S):
                raise TimeoutError(f"{self.server.kind}: nobody came to {point}")
        else:
            self._reach(point)
        self._kill(whom, visits["victim"])
        if waits:
            self._workers["earlier"].ask((visits["earlier"], DEADLINE_S))
        for name, k in visits.items():
            self._finish(name, k)

    def tally(self) -> Tally:
        """Send what waits in the outbox, and count."""
        with open_ppdb(self.server.url) as ppdb:
            deliver(ppdb, self.config)
            return tally(ppdb, self.config, self.sky, self.visits)

    def _announce(self, visits: Sequence[int]) -> None:
        with open_ppdb(self.server.url) as ppdb:
            for k in visits:
                ppdb.openVisit(self.sky.visit(k), self.sky.regions(k), time.time() + DEADLINE_S)

    def _reach(self, point: Point) -> None:
        delay = 0.0
        line = _SAID.get(str(point), str(point))
        if point.when == "inside":
            line, most = _BEGIN[point.call]
            delay = self._random.uniform(0.0, most)
        elif point.when == "waiting":
            line, delay = "before awaitTurn", 0.2
        else:
            line = _SAID.get(str(point), f"{point.when} {point.call}")
        heard = self._workers["victim"].until(line, "ended")
        if heard[-1] != line:
            raise RuntimeError(f"{self.server.kind}: the victim ended before {point}: {heard}")
        time.sleep(delay)

    def _kill(self, whom: str, k: int) -> None:
        if whom == "server":
            self.server.kill()
            return
        self._workers["victim"].kill()
        self.server.relay.release()
        self._workers["victim"] = self._victim()
        self._workers["victim"].ask((k, DEADLINE_S))

    def _finish(self, name: str, k: int) -> None:
        for _ in range(_ATTEMPTS):
            heard = self._workers[name].until("ended")
            failed = [line for line in heard if line.startswith("failed")]
            if heard[-1] == "ended" and not failed:
                return
            self.failures += failed or ["died"]
            self._workers[name].ask((k, DEADLINE_S))
        raise RuntimeError(f"{self.server.kind}: visit {k} failed {_ATTEMPTS} times: {self.failures}")

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self._end()
            return
        for worker in self._workers.values():
            worker.kill()
        self.server.end()
