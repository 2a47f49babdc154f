"""What a night's orchestration adds to the work of a focal plane: 189 workers, a visit every 37 s and every 9 s.

The workers are in few processes and their pixel steps sleep, so that the machine may be small; the runner, the
scheduler and all messages are the real ones, the gathers store nothing (see bench_ppdb.py for what storing takes).
Prints one JSON object a line. `python benchmarks/bench_night.py [--json] [--no-fuse] [--visits37 N] [--visits9 N]`;
``--json`` leaves out the lines for people.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections import Counter
from typing import Any

import numpy as np
import psutil
import sleeping_graph
from distributed import Client

from apflow.cluster.in_process import in_process_cluster
from apflow.run.on_dask import DaskRunner, VisitHandle

DETECTORS = range(189)
READOUT_S = 2.0  # a raft is read out together, the rafts over this time
ANNOUNCED_S = 6.0  # before its first image a visit is started, as nextVisit does
#: Seconds from visit to visit, and asleep for a detector-visit: a worker for each detector must keep up with them.
CADENCES = ((37.0, 20.0), (9.0, 6.0))
LIMITS_S = {50: 0.5, 98: 2.0}


def raft(detector: int) -> int:
    return detector // 9


def say(name: str, value: float, unit: str, **more: Any) -> None:
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


def cpu_s() -> tuple[float, float]:
    """CPU of this process (driver and scheduler), and of the processes with the workers."""

    def of(process: psutil.Process) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    return of(psutil.Process()), sum(of(child) for child in psutil.Process().children(recursive=True))


def arrivals(first_unix: float) -> tuple[float, ...]:
    """When the image of each detector is there."""
    rafts = len(DETECTORS) // 9
    return tuple(first_unix + READOUT_S * raft(detector) / rafts for detector in DETECTORS)


def play(runner: DaskRunner, first: int, visits: int, every_s: float, asleep_s: float) -> list[list[Any]]:
    """Visits at a cadence, all as they come; gives what each stored."""
    handles: list[VisitHandle] = []
    scale = asleep_s / sleeping_graph.TOTAL_S
    start = time.time()
    for n in range(visits):
        time.sleep(max(0.0, start + n * every_s - time.time()))
        config = sleeping_graph.Night(arrivals(start + n * every_s + ANNOUNCED_S), scale)
        handles.append(runner.start(sleeping_graph.visit, first + n, DETECTORS, config))
    return [handle.result(300.0) for handle in handles]


def cadence(runner: DaskRunner, first: int, visits: int, every_s: float, asleep_s: float) -> None:
    """Figures of one cadence."""
    before = cpu_s()
    reports = play(runner, first, visits, every_s, asleep_s)
    driver, workers = (after - was for after, was in zip(cpu_s(), before, strict=True))
    after_image_s = asleep_s / sleeping_graph.TOTAL_S * sum(sleeping_graph.AFTER_S.values())
    stored = list(itertools.chain(*reports))
    added = np.array([s.stored_unix - s.arrived_unix - after_image_s for s in stored])
    last = np.array([max(s.stored_unix - s.arrived_unix for s in report) - after_image_s for report in reports])
    shape = {
        "detectors": len(DETECTORS),
        "visits": visits,
        "visit_every_s": every_s,
        "asleep_s": asleep_s,
        "asleep_after_image_s": round(after_image_s, 2),
        "gathers": "store nothing",
    }
    tag = f"night_{every_s:g}s"
    for percent, limit_s in LIMITS_S.items():
        value = float(np.percentile(added, percent))
        more = {"peer": "limit", "peer_value": limit_s, "ratio": round(limit_s / value, 2)}
        say(f"{tag}_added_latency_p{percent}", value, "s", **more, **shape)
    say(f"{tag}_added_latency_slowest_detector_median_visit", float(np.median(last)), "s", **shape)
    say(f"{tag}_driver_and_scheduler_cpu_per_visit", driver / visits, "s", **shape)
    say(f"{tag}_workers_cpu_per_visit", workers / visits, "s", **shape)
    counts = [Counter(s.detector for s in report) for report in reports]
    lost = sum(count[detector] == 0 for count in counts for detector in DETECTORS)
    twice = sum(n > 1 for count in counts for n in count.values())
    say(f"{tag}_lost", lost, "detector-visits", **shape)
    say(f"{tag}_stored_twice", twice, "detector-visits", **shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON lines only")
    parser.add_argument("--visits37", type=int, default=5, help="visits at one every 37 s")
    parser.add_argument("--visits9", type=int, default=12, help="visits at one every 9 s")
    fuse = argparse.BooleanOptionalAction
    parser.add_argument("--fuse", action=fuse, default=True, help="from its image on a detector is one Dask task")
    options = parser.parse_args()
    if not options.json:
        print(f"# {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}", flush=True)
    with (
        in_process_cluster(len(DETECTORS)) as cluster,
        Client(cluster) as client,
        DaskRunner(client, group_of=raft, fuse=options.fuse) as runner,
    ):
        play(runner, 1, 1, 0.0, 1.0)  # imports
        for first, visits, (every_s, asleep_s) in zip(
            (100, 1000), (options.visits37, options.visits9), CADENCES, strict=True
        ):
            if visits:
                cadence(runner, first, visits, every_s, asleep_s)


if __name__ == "__main__":
    main()
