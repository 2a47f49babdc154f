"""What orchestration costs: visits of 189 detectors whose steps are empty.

Prints one JSON object a line. `python benchmarks/bench_graph.py [--json] [--visits N]`; ``--json`` leaves out the
lines for people.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import empty_graph
import numpy as np
import psutil
from distributed import Client

from apflow.cluster.in_process import in_process_cluster
from apflow.cluster.local import local_cluster
from apflow.run import EagerRunner
from apflow.run.on_dask import DaskRunner

DETECTORS = range(189)
WORKERS = 2
READOUT_S = 2.0  # images of a visit arrive over this time


def raft(detector: int) -> int:
    return detector // 9


def cpu_s() -> float:
    """CPU of this process (driver and scheduler) and of its children."""
    total = 0.0
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        times = process.cpu_times()
        total += times.user + times.system
    return total


def say(name: str, value: float, unit: str, **more: Any) -> None:
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


def peers(visits: int) -> tuple[float, float]:
    """CPU milliseconds a detector-visit of the bare functions here, and of one pool task a detector."""
    config = empty_graph.Arrivals((0.0,) * len(DETECTORS))
    start = time.process_time()
    for visit in range(visits):
        EagerRunner(group_of=raft).run(empty_graph.visit, visit, DETECTORS, config)
    eager = 1e3 * (time.process_time() - start) / visits / len(DETECTORS)
    with ProcessPoolExecutor(WORKERS) as pool:
        list(pool.map(empty_graph.chain, range(WORKERS), [config] * WORKERS))
        before = cpu_s()
        for _ in range(visits):
            futures = [pool.submit(empty_graph.chain, detector, config) for detector in DETECTORS]
            for future in futures:
                future.result()
        return eager, 1e3 * (cpu_s() - before) / visits / len(DETECTORS)


def scheduling(visits: int) -> None:
    """Images are there already: how much CPU and time the graph itself takes."""
    eager, pool = peers(visits)
    config = empty_graph.Arrivals((0.0,) * len(DETECTORS))
    with local_cluster(WORKERS) as cluster, Client(cluster) as client:
        client.wait_for_workers(WORKERS + 1)
        with DaskRunner(client, group_of=raft) as runner:
            runner.start(empty_graph.visit, 0, DETECTORS, config).result()  # imports
            driver = psutil.Process().cpu_times()
            before, start = cpu_s(), time.perf_counter()
            for visit in range(1, visits + 1):
                runner.start(empty_graph.visit, visit, DETECTORS, config).result()
            wall, used = time.perf_counter() - start, cpu_s() - before
            after = psutil.Process().cpu_times()
    n = visits * len(DETECTORS)
    shape = {"detectors": len(DETECTORS), "steps": 13, "workers": WORKERS}
    say(
        "graph_cpu_per_detector_visit",
        1e3 * used / n,
        "ms",
        peer="concurrent.futures, one task a detector",
        peer_value=round(pool, 4),
        ratio=round(pool / (1e3 * used / n), 4),
        differs="the peer has no waits, no gathers, no records and no recovery",
        **shape,
    )
    in_driver = after.user + after.system - driver.user - driver.system
    say("graph_cpu_of_driver_and_scheduler", 1e3 * in_driver / n, "ms", **shape)
    say("graph_wall_per_detector_visit", 1e3 * wall / n, "ms", **shape)
    say("graph_guarded_eager_per_detector_visit", eager, "ms", detectors=len(DETECTORS), steps=13)


def latency(visits: int) -> None:
    """A focal plane of workers: from the arrival of an image to the storage of its batch."""
    seconds: list[float] = []
    with (
        in_process_cluster(len(DETECTORS)) as cluster,
        Client(cluster) as client,
        DaskRunner(client, group_of=raft) as runner,
    ):
        for visit in range(visits + 1):
            ready = time.time() + 6.0  # nextVisit comes well before the images
            rng = random.Random(visit)
            # A raft is read out together.
            rafts = [ready + rng.random() * READOUT_S for _ in range(len(DETECTORS) // 9)]
            config = empty_graph.Arrivals(tuple(rafts[raft(d)] for d in DETECTORS))
            report = runner.start(empty_graph.visit, visit, DETECTORS, config).result()
            if visit > 0:
                seconds += report
    ms = 1e3 * np.array(seconds)
    for percent in (50, 98):
        say(
            f"graph_latency_arrival_to_stored_p{percent}",
            float(np.percentile(ms, percent)),
            "ms",
            workers=len(DETECTORS),
            detector_visits=len(seconds),
            arrivals=f"a raft at once, rafts over {READOUT_S:g} s",
            limit="60 s from the end of readout to the alert",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON lines only")
    parser.add_argument("--visits", type=int, default=3, help="visits to average over")
    options = parser.parse_args()
    if not options.json:
        print(f"# {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}", flush=True)
    scheduling(options.visits)
    latency(options.visits)


if __name__ == "__main__":
    main()
