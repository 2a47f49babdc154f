"""What a CCD costs by each road: a batch job with pipetask, `apflow detector`, a warm Dask worker.

Prints one JSON object a line. ``python benchmarks/bench_batch.py [--json] [--detectors N]``: CPU seconds a CCD of small
ComCam CCDs, the start of the processes included. What a batch system adds is measured by batch_slurm.py.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import psutil
from distributed import Client

from apflow.cluster.local import local_cluster
from apflow.config import Config
from apflow.graphs import alert_production
from apflow.io.butler import Repository
from apflow.io.ppdb import open_ppdb
from apflow.model.visit import Visit
from apflow.operate.prepare import open_replay, prepare, simulation_pool
from apflow.operate.repository import repository_config
from apflow.run.on_dask import DaskRunner
from apflow.simulate.player import Player
from apflow.simulate.scenario import Scenario, visits

SIZE = 512
BIN = Path(sys.executable).parent
ENVIRONMENT = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}


def say(name: str, value: float, unit: str, **more: Any) -> None:
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


def make_visits(folder: Path, detectors: int) -> tuple[Config, list[Visit]]:
    """Four visits whose raw images are registered: one to start with, one a road."""
    scenario = Scenario(camera="comcam", seed=5, nvisits=4, detectors=tuple(range(detectors)), size=SIZE)
    root = folder / "butler"
    open_replay(root, scenario, own=False)
    with simulation_pool(2) as pool:
        prepare(root, scenario, pool, lambda what, done, total: None)
        player = Player(scenario, root / "staged", root / "landing", processes=2)
        player.render(pool=pool)
    with Repository(root, writeable=True) as repository:
        repository.ingest_raws([p for v in visits(scenario) for d in scenario.detectors for p in player.land(v, d)])
    return repository_config(str(root)), visits(scenario)


def cpu_of(command: list[str]) -> float:
    """CPU seconds of a command and of what it starts."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(ended.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def by_pipetask(visit: Visit, detector: int, butler: str) -> float:
    words = [str(detector), str(visit.ra_deg), str(visit.dec_deg), "none", str(visit.exposure_time_s), butler]
    return cpu_of(["bash", str(resources.files("apflow.cluster") / "visit.sh"), *words, *visit.images])


def by_hand(visit: Visit, detector: int, butler: str) -> float:
    words = ["--ra", str(visit.ra_deg), "--dec", str(visit.dec_deg), "--exptime", str(visit.exposure_time_s)]
    command = [str(BIN / "apflow"), "detector", str(detector), *words, "--butler", butler, "--image", *visit.images]
    return cpu_of(command)


def on_dask(first: Visit, second: Visit, detectors: int, config: Config) -> float:
    """CPU seconds a CCD of driver, scheduler and worker, once a visit has warmed them."""
    with (
        open_ppdb(config.ppdb_url, create=True),
        local_cluster(1) as cluster,
        Client(cluster, set_as_default=False) as client,
        DaskRunner(client) as runner,
    ):
        runner.start(alert_production.visit, first, list(range(detectors)), config).result()
        before = cpu_s()
        runner.start(alert_production.visit, second, list(range(detectors)), config).result()
        return (cpu_s() - before) / detectors


def cpu_s() -> float:
    """CPU of this process and of its children."""
    times = [p.cpu_times() for p in [psutil.Process(), *psutil.Process().children(recursive=True)]]
    return float(sum(t.user + t.system for t in times))


def roads(folder: Path, detectors: int) -> None:
    config, (first, second, third, fourth) = make_visits(folder, detectors)
    by_pipetask(first, 0, config.butler)  # makes the RUN
    job = statistics.median(by_pipetask(second, d, config.butler) for d in range(detectors))
    command = statistics.median(by_hand(third, d, config.butler) for d in range(detectors))
    warm = on_dask(first, fourth, detectors, config)
    facts = {"detectors": detectors, "size": SIZE}
    for name, value in (("batch_cpu_per_ccd_visit_sh", job), ("batch_cpu_per_ccd_apflow_detector", command)):
        peer = {"peer": "a warm Dask worker", "peer_value": round(warm, 4), "ratio": round(warm / value, 4)}
        say(name, value, "s", **peer, **facts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="only the lines with figures")
    parser.add_argument("--detectors", type=int, default=4)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        roads(Path(folder), given.detectors)
    if not given.json:
        print("CPU seconds a CCD, the start of processes included; ratio: the warm worker's cost over the road's")


if __name__ == "__main__":
    main()
