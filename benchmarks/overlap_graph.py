"""A small graph of the steps that touch the PPDB, run on Dask while workers are killed at random."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from distributed import Client
from overlap_sky import FIRST, Sky

from apflow.config import Config
from apflow.graph import gathers, node
from apflow.io.ppdb import open_ppdb
from apflow.model.ledger import Outcome
from apflow.model.products import Associated, DetectorResult, History, Inputs, Plan
from apflow.model.visit import Visit
from apflow.run.on_dask import DaskRunner
from apflow.steps.associate import associate, read_history
from apflow.steps.batches import archive_packets, publish_alerts, write_ppdb
from apflow.steps.visits import detector_region, visit_report

SKY = Sky()
#: Worker modules that take long to import.
WARM_UP = ("apflow.steps.batches", "apflow.io.ppdb.embedded", "apflow.io.ppdb.postgres.server")
_DEADLINE_S = 120.0
_PIXELS_S = 0.2


@node(gather=True)
def open_visit(visit: Visit, detectors: Sequence[int], config: Config) -> Plan:
    """Announce a visit, as the step of this name does."""
    open_ppdb(config.ppdb_url).openVisit(visit, SKY.regions(visit.visit - FIRST), time.time() + _DEADLINE_S)
    return Plan(visit, "", dict.fromkeys(detectors, Inputs(None, None, None, None, (), ())))


@node
def detect(plan: Plan, detector: int) -> pd.DataFrame:
    """DiaSources, after a while that stands for the pixels."""
    k = plan.visit.visit - FIRST
    time.sleep(_PIXELS_S * np.random.default_rng([k, detector]).exponential())
    sources: pd.DataFrame = SKY.sources(k, detector)
    return sources


@node
def package(visit: Visit, detector: int, associated: Associated, history: History, config: Config) -> DetectorResult:
    """What the gathers take."""
    result: DetectorResult = SKY.result(visit.visit - FIRST, detector, associated, history, config)
    return result


def graph(visit: Visit, detectors: Sequence[int], config: Config) -> Any:
    """`apflow.graphs.alert_production.visit` without pixels and Butler."""
    plan = open_visit(visit, detectors, config)
    results = []
    for d in detectors:
        region = detector_region(visit, d, config)
        sources = detect(plan, d)
        history = read_history(plan, d, region, sources, config)
        results.append(package(visit, d, associate(sources, history, config), history, config))
    outcomes = []
    for batch in gathers(results):
        stored = write_ppdb(archive_packets(visit, batch, config), config)
        outcomes.append(publish_alerts(stored, config))
    return visit_report(visit, detectors, outcomes, [], config)


class Killer:
    """A thread that kills workers of a cluster at random, again and again, until so many are dead."""

    def __init__(self, client: Client, kills: int, every_s: float, seed: int = 1) -> None:
        self._client, self._left, self._every_s = client, kills, every_s
        self._random = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        #: How many workers of each role were killed.
        self.kills: Counter[str] = Counter()

    def __enter__(self) -> Counter[str]:
        self._thread.start()
        return self.kills

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while self._left and not self._stop.wait(self._every_s * self._random.uniform(0.5, 1.5)):
            workers = self._client.scheduler_info(n_workers=-1)["workers"]
            pids = self._client.run(os.getpid, on_error="ignore")
            if not pids:
                continue
            address = self._random.choice(sorted(pids))
            role = "gather" if "gather" in workers.get(address, {}).get("resources", {}) else "worker"
            os.kill(pids[address], signal.SIGKILL)
            self.kills[role] += 1
            self._left -= 1


def play(client: Client, config: Config, visits: Sequence[int], kills: int, every_s: float) -> Counter[str]:
    """Run visits all at once while workers die; gives how many of each role did.

    Raises
    ------
    RuntimeError
        A detector-visit did not end as done.
    """
    # Nothing is given up however often its worker is killed: what is tested is what is stored.
    with DaskRunner(client, gather_after_s=0.3, max_attempts=100) as runner, Killer(client, kills, every_s) as killed:
        handles = [runner.start(graph, SKY.visit(k), list(SKY.detectors), config) for k in visits]
        outcomes: list[Outcome] = [o for handle in handles for o in handle.result(_DEADLINE_S)]
    bad = [o for o in outcomes if o.state != "done"]
    if bad:
        raise RuntimeError(f"{len(bad)} detector-visits are not done; the first: {bad[0]}")
    return killed
