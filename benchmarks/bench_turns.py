"""What it costs that overlapping visits wait for each other: seconds and CPU.

Visits of 189 full LSSTCam detectors on one sky, dithered by up to 3 arcmin so that a detector overlaps four to six of
another visit, come every 37 s or every 9 s. Processing up to association takes 6 s in the mean (log-normal, sigma
0.4) and three times as long in 2 % of the detectors; then `Ppdb.awaitTurn` waits for its turn. Rafts are stored when
whole, or 5 s after their first detector, as the runner does it; results are empty. In nights of their own one image
of each visit is missing, and others wait for it until its deadline, up to `order_timeout_s` (45 s) each: the deadline
that `open_visit` sets is 165 s after the images, ``given_up_s``; 45 s is measured beside it.

Time runs faster, by the factor that each line gives as ``speed``; seconds are given as if it did not. What the
database and this machine need for a request does not run faster: the figures are upper bounds. With ``--real-time``
it does not, and the nights of a cadence run side by side.

Three processes stand for the workers. Each night runs once more without waiting, and the difference is the cost: of a
visit from its images to its last stored raft, and of CPU (milliseconds a detector-visit, not scaled).

Prints one JSON object a line.
`python benchmarks/bench_turns.py [--json] [--backend NAME ...] [--cadence S ...] [--real-time]`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from apflow.config_tables import Timing
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.model import schema
from apflow.model.camera import load_camera
from apflow.model.ledger import Outcome, State
from apflow.model.products import DetectorResult
from apflow.model.region import Region
from apflow.model.visit import Visit
from apflow.operate.services import PostgresServer
from apflow.run.batches import Batches

FIRST = 2025042000100
DETECTORS = range(189)
PROCESSES = 3
MEAN_S, SIGMA, SLOW = 6.0, 0.4, 0.02
#: By cadence: visits, and how much faster time runs.
NIGHTS = {37.0: (5, 8.0), 9.0: (10, 3.0)}
TIMING = Timing()
#: A visit is announced this long before its images come.
AHEAD_S = 30.0
MISSING = 94
THREADS = 256
BACKENDS = ("postgresql", "duckdb")


@dataclass(frozen=True)
class Night:
    """When what happens, seconds of the night from its first images on."""

    cadence_s: float
    visits: int
    speed: float
    missing: bool = False
    given_up_s: float = TIMING.image_timeout_s + TIMING.order_timeout_s
    waits: bool = True

    def visit(self, k: int) -> Visit:
        """The k-th visit."""
        dx, dy = np.random.default_rng(k).uniform(-3.0, 3.0, 2) / 60.0
        return Visit("LSSTCam", FIRST + k, f"{k}", 10.0 + dx, -30.0 + dy, 0.0, "r_57", "r", 30.0, (f"{k}",))

    def regions(self, k: int) -> dict[int, Region]:
        """Sky regions of a visit."""
        camera, visit = load_camera("lsstcam", None), self.visit(k)
        return {d: camera.region(camera.detector(d), visit.ra_deg, visit.dec_deg, 0.0) for d in DETECTORS}

    def ready_s(self, k: int) -> list[float]:
        """When each detector is ready to be associated; never, where its image is missing."""
        rng = np.random.default_rng([k, 1])
        median = MEAN_S / (np.exp(SIGMA**2 / 2.0) * (1.0 + 2.0 * SLOW))
        takes = rng.lognormal(np.log(median), SIGMA, len(DETECTORS)) * np.where(
            rng.random(len(DETECTORS)) < SLOW, 3.0, 1.0
        )
        if self.missing:
            takes[MISSING] = np.inf
        return [float(t) for t in k * self.cadence_s + takes]


def worker(url: str, night: Night, share: int, driver: Connection) -> None:
    """A share of the detectors of all visits: each waits for its turn when it is ready, and tells how long it did."""
    due = sorted(
        (s, k, d) for k in range(night.visits) for d, s in enumerate(night.ready_s(k)) if d % PROCESSES == share
    )
    lock = threading.Lock()
    with open_ppdb(url) as ppdb, ThreadPoolExecutor(THREADS) as pool:

        def turn(k: int, d: int) -> None:
            before = time.time()
            if night.waits:
                ppdb.awaitTurn(FIRST + k, d, TIMING.order_timeout_s / night.speed)
            with lock:
                driver.send((k, d, time.time() - before))

        driver.send("ready")
        begin_unix = driver.recv()
        before = process_cpu_s()
        for ready_s, k, d in due:
            if ready_s < np.inf:
                time.sleep(max(0.0, begin_unix + ready_s / night.speed - time.time()))
                pool.submit(turn, k, d)
        pool.shutdown()
        driver.send(process_cpu_s() - before)


def owner(url: str, driver: Connection) -> None:
    """Own an embedded database until told to end."""
    with open_ppdb(url, create=True):
        driver.send(os.getpid())
        driver.recv()


def process_cpu_s(process: psutil.Process | None = None, reaped: bool = False) -> float:
    """CPU of a process, and of its children that ended."""
    return float(sum((process or psutil.Process()).cpu_times()[: 4 if reaped else 2]))


class Driver:
    """Announces visits when they come, and stores rafts as detectors get their turns."""

    def __init__(self, ppdb: Ppdb, night: Night, begin_unix: float, pool: ThreadPoolExecutor) -> None:
        self._ppdb, self._night, self._begin, self._pool = ppdb, night, begin_unix, pool
        raft = {d: load_camera("lsstcam", None).detector(d).raft for d in DETECTORS}
        expected = [d for d in DETECTORS if not (night.missing and d == MISSING)]
        after_s = TIMING.gather_after_s / night.speed
        self._batches = [Batches[int](expected, raft.__getitem__, after_s) for _ in range(night.visits)]
        self._regions = [night.regions(k) for k in range(night.visits)]
        self._stores: list[list[Future[float]]] = [[] for _ in range(night.visits)]
        self._opened = self._missed = 0
        self._open()

    @property
    def finished(self) -> bool:
        """Whether every raft is on its way to the database."""
        return all(batches.finished() for batches in self._batches)

    def take(self, k: int, d: int) -> None:
        """A detector had its turn."""
        self._batches[k].add(d, d, time.time())

    def look(self) -> float:
        """Do what is due; gives in how many seconds to look again."""
        visits, now = self._night.visits, time.time()
        if self._opened < visits and now >= self._at(self._opened, -AHEAD_S):
            self._open()
        if self._night.missing and self._missed < visits and now >= self._at(self._missed, TIMING.image_timeout_s):
            lost = Outcome("LSSTCam", FIRST + self._missed, MISSING, State.IMAGE_TIMEOUT)
            self._pool.submit(self._ppdb.settle, [lost])
            self._missed += 1
        for k, batches in enumerate(self._batches):
            while (batch := batches.closed(now)) is not None:
                self._stores[k].append(self._pool.submit(self._store, k, batch))
        return max(0.0, min(0.05, *(batches.next_due() - now for batches in self._batches)))

    def _at(self, k: int, after_s: float) -> float:
        return self._begin + (k * self._night.cadence_s + after_s) / self._night.speed

    def _open(self) -> None:
        k = self._opened
        self._ppdb.openVisit(self._night.visit(k), self._regions[k], self._at(k, self._night.given_up_s))
        self._opened = k + 1

    def _store(self, k: int, detectors: Sequence[int]) -> float:
        new, objects, forced = (schema.empty(name) for name in ("DiaSource", "DiaObject", "DiaForcedSource"))
        visit = self._night.visit(k)
        results = [
            DetectorResult(visit, d, new, objects, forced, {}, (), (), 1.0, 60785.3, 20250420) for d in detectors
        ]
        self._ppdb.storeBatch(results, [], 60785.4)
        self._ppdb.settle([Outcome("LSSTCam", FIRST + k, d, State.DONE) for d in detectors])
        return time.time()

    def took_s(self) -> list[float]:
        """From the images of each visit to its last store, in seconds of the night."""
        ends = [max(store.result() for store in stores) for stores in self._stores]
        return [(end - self._at(k, 0.0)) * self._night.speed for k, end in enumerate(ends)]


@dataclass(frozen=True)
class Cost:
    """Of a night: seconds that each detector of each visit waited and that each visit took; CPU seconds."""

    waited_s: list[list[float]]
    took_s: list[float]
    client_cpu_s: float
    server_cpu_s: float


def run(url: str, night: Night, server_cpu_s: Callable[[], float]) -> Cost:
    """A night on an empty database."""
    with contextlib.ExitStack() as stack:
        links = [stack.enter_context(process(worker, url, night, share)) for share in range(PROCESSES)]
        ppdb = stack.enter_context(open_ppdb(url))
        pool = stack.enter_context(ThreadPoolExecutor(4))
        for link in links:
            link.recv()
        begin, before = time.time() + AHEAD_S / night.speed, server_cpu_s()
        driver = Driver(ppdb, night, begin, pool)
        for link in links:
            link.send(begin)
        waited: list[list[float]] = [[] for _ in range(night.visits)]
        cpu: list[float] = []
        while links or not driver.finished:
            left_s = driver.look()
            if not links:
                time.sleep(left_s)
            for link in [link for link in links if link in wait(links, left_s)]:
                told = link.recv()
                if isinstance(told, float):
                    cpu.append(told)
                    links.remove(link)
                else:
                    k, d, waited_s = told
                    waited[k].append(waited_s * night.speed)
                    driver.take(k, d)
        return Cost(waited, driver.took_s(), sum(cpu), server_cpu_s() - before)


@contextlib.contextmanager
def process(function: Callable[..., None], *arguments: Any) -> Iterator[Any]:
    """A process that runs a function, by the link to it."""
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe()
    child = context.Process(target=function, args=(*arguments, its), daemon=True)
    child.start()
    its.close()
    try:
        yield mine
        child.join()
    finally:
        child.kill()


def night_on(backend: str, night: Night) -> Cost:
    """A night on a server of its own."""
    with new_database(backend) as (url, server_cpu_s):
        return run(url, night, server_cpu_s)


def compare(backend: str, night: Night) -> None:
    """Nights without waiting, with it, and with it while an image of each visit is missing, two ways."""
    nights = [
        dataclasses.replace(night, waits=False),
        night,
        dataclasses.replace(night, missing=True),
        dataclasses.replace(night, missing=True, given_up_s=TIMING.order_timeout_s),
    ]
    with ThreadPoolExecutor(len(nights) if night.speed == 1.0 else 1) as pool:
        free, *costs = pool.map(lambda one: night_on(backend, one), nights)
    for one, cost in zip(nights[1:], costs, strict=True):
        shape = {"backend": backend, "cadence_s": one.cadence_s, "visits": one.visits, "speed": one.speed}
        tell(cost, free, shape | {"missing_images": int(one.missing), "given_up_s": one.given_up_s})


def tell(cost: Cost, free: Cost, shape: dict[str, Any]) -> None:
    """The figures of a night beside one without waiting."""
    one = np.concatenate([np.array(waited) for waited in cost.waited_s])
    p50, p95, p99 = (round(float(p), 3) for p in np.percentile(one, (50, 95, 99)))
    more = {"p50": p50, "p95": p95, "p99": p99, "max": round(float(one.max()), 3), "limit": TIMING.order_timeout_s}
    say("turn_waited_by_detector", float(one.mean()), "s", **more, **shape)
    longest = [max(waited) for waited in cost.waited_s]
    say("turn_waited_longest_of_visit", float(np.mean(longest)), "s", max=round(max(longest), 3), **shape)
    added = np.subtract(cost.took_s, free.took_s)
    took = {"with": [round(t, 1) for t in cost.took_s], "without": [round(t, 1) for t in free.took_s]}
    say("turn_added_to_visit", float(added.mean()), "s", max=round(float(added.max()), 3), **took, **shape)
    for name in ("client", "server"):
        used, unused = (getattr(c, f"{name}_cpu_s") for c in (cost, free))
        cpu = {"night_s": round(used, 2), "night_without_s": round(unused, 2)}
        say(f"turn_{name}_cpu_by_detector", 1e3 * (used - unused) / len(one), "ms", **cpu, **shape)


@contextlib.contextmanager
def new_database(backend: str) -> Iterator[tuple[str, Callable[[], float]]]:
    """URL of an empty database, and the CPU seconds of its server so far."""
    with contextlib.ExitStack() as stack:
        if backend == "postgresql":
            server = stack.enter_context(PostgresServer())
            url = server.database()
            open_ppdb(url, create=True).close()
            main = psutil.Process(server.pid)
            yield url, lambda: sum(process_cpu_s(p, reaped=True) for p in (main, *main.children()))
            return
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="apflow-turns-")))
        url = f"duckdb://{folder}/ppdb.duckdb"
        link = stack.enter_context(process(owner, url))
        pid = link.recv()
        yield url, lambda: process_cpu_s(psutil.Process(pid))
        link.send(None)


def say(name: str, value: float, unit: str, **more: Any) -> None:
    """One figure."""
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="nothing but JSON lines, which is what it prints anyway")
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=list(BACKENDS))
    parser.add_argument("--cadence", nargs="+", type=float, choices=list(NIGHTS), default=list(NIGHTS))
    parser.add_argument("--real-time", action="store_true", help="time does not run faster: minutes a cadence")
    options = parser.parse_args()
    for backend in options.backend:
        for cadence in options.cadence:
            visits, speed = NIGHTS[cadence]
            compare(backend, Night(cadence, visits, 1.0 if options.real_time else speed))


if __name__ == "__main__":
    main()
