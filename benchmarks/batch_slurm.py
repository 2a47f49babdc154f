"""What a batch system costs: an array of 189 jobs on a private SLURM.

Prints one JSON object a line. ``python benchmarks/batch_slurm.py [--json] [--detectors N]``: how soon 189 jobs start
on 21 nodes of 9 slots, as an array and as separate sbatch calls; then N small CCDs of LSSTCam (default 189)
by visit.sh, as many at one time as this machine has cores and memory for. ``--detectors 0`` leaves them out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from apflow.io.butler import Repository
from apflow.operate.batch import Limits, Submission, TaskReport, VisitArguments, announced, cancel, plan, submit, wait
from apflow.operate.batch.slurm import Slurm
from apflow.operate.prepare import open_replay, prepare, simulation_pool
from apflow.operate.services.slurm import Nodes, SlurmCluster
from apflow.simulate.player import Player
from apflow.simulate.scenario import Scenario, visits

JOBS = 189
FOCAL_PLANE = Nodes(number=21, cores=9, memory_mb=8000)
CORES = os.cpu_count() or 1
#: A small CCD stays below it.
MEMORY_MB = 1500
SIZE = 256


def say(name: str, value: float, unit: str, **more: Any) -> None:
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


def started(folder: Path) -> list[float]:
    """When jobs began that leave their clock in a folder."""
    return [float(path.read_text()) for path in folder.iterdir() if path.stat().st_size]


def until_started(folder: Path, since: float) -> float:
    """Seconds until the last of all jobs has begun."""
    deadline = time.monotonic() + 120
    while len(begun := started(folder)) < JOBS:
        if time.monotonic() > deadline:
            raise SystemExit(f"{len(begun)} of {JOBS} jobs began within 120 s")
        time.sleep(0.2)
    return max(begun) - since


def focal_plane(folder: Path) -> None:
    """189 jobs that do nothing, all at one time."""
    command = folder / "command.sh"
    # It stays, so that no other job gets its slot.
    command.write_text('#!/bin/bash\necho "$EPOCHREALTIME" > "$6/$1"; sleep 60\n')
    with SlurmCluster(nodes=FOCAL_PLANE) as cluster:
        slurm = Slurm(cluster.environment)
        begun = folder / "array"
        begun.mkdir()
        planned = Submission(
            folder=folder / "submission",
            system="slurm",
            butler=str(begun),
            arguments=VisitArguments("benchmark", 150.0, -32.0, "", 30.0, ("MC_O_20250420_000001",)),
            detectors=tuple((index, f"CCD{index:03d}") for index in range(JOBS)),
            command=str(command),
            limits=Limits(memory_mb=100),
        )
        start = time.time()
        sent = submit(planned, slurm)
        array_sent = time.time() - start
        array_last = until_started(begun, start)
        cancel(sent.folder, slurm)
        while cluster.run("squeue", "--noheader"):
            time.sleep(0.2)
        begun = folder / "separate"
        begun.mkdir()
        start = time.time()
        for index in range(JOBS):
            words = [f"CCD{index:03d}", "150.0", "-32.0", "none", "30.0", str(begun)]
            cluster.run("sbatch", "--mem=100M", "--output=/dev/null", str(command), *words)
        separate_sent = time.time() - start
        separate_last = until_started(begun, start)
    for name, ours, theirs in (
        ("batch_submit_189", array_sent, separate_sent),
        ("batch_last_of_189_started", array_last, separate_last),
    ):
        peer = {"peer": f"{JOBS} calls of sbatch", "peer_value": round(theirs, 4), "ratio": round(theirs / ours, 1)}
        say(name, ours, "s", **peer, on="21 nodes of 9 slots on one machine")


def make_visit(folder: Path, detectors: int) -> VisitArguments:
    """A repository with a visit whose raw images are registered."""
    scenario = Scenario(camera="lsstcam", seed=5, nvisits=1, detectors=tuple(range(detectors)), size=SIZE)
    root = folder / "butler"
    open_replay(root, scenario, own=False)
    with simulation_pool(CORES) as pool:
        prepare(root, scenario, pool, lambda what, done, total: None)
        player = Player(scenario, root / "staged", root / "landing", processes=CORES)
        player.render(pool=pool)
    (visit,) = visits(scenario)
    with Repository(root, writeable=True) as repository:
        repository.ingest_raws([path for d in scenario.detectors for path in player.land(visit, d)])
    return announced.from_repository(visit.images[0], str(root))


def ccds(folder: Path, detectors: int) -> None:
    """A visit of small CCDs, a process each, throttled to the machine."""
    arguments = make_visit(folder, detectors)
    memory_mb = psutil.virtual_memory().available // 2**20
    command = folder / "timed.sh"
    planned = plan(arguments, str(folder / "butler"), range(detectors), "slurm", limits=Limits(CORES, MEMORY_MB))
    command.write_text(f'TIMEFORMAT="cpu_s %U %S"; time bash "{planned.command}" "$@"\n')
    planned = plan(arguments, str(folder / "butler"), range(detectors), "slurm", limits=planned.limits, command=command)
    with SlurmCluster(nodes=Nodes(cores=CORES, memory_mb=memory_mb)) as cluster:
        slurm = Slurm(cluster.environment)
        start = time.time()
        submit(planned, slurm)
        reports = wait(planned.folder, slurm, lambda reports: None)
    ended = max(one.ended_unix or 0.0 for one in reports) - start
    cpu = [cpu_s(planned.folder / "logs" / f"{index}.1.log") for index in range(detectors)]
    done = sum(one.state == "done" for one in reports)
    facts = {"detectors": detectors, "done": done, "size": SIZE, "at_one_time": CORES}
    say("batch_visit_ended", ended, "s", **facts)
    say("batch_cpu_per_ccd", statistics.median(cpu), "s", **facts, what="visit.sh, a process a CCD")
    say("batch_slot_empty_between_jobs", between(reports), "s", **facts)


def cpu_s(log: Path) -> float:
    """CPU seconds that a job noted at its end."""
    user, system = next(line for line in log.read_text().splitlines() if line.startswith("cpu_s ")).split()[1:]
    return float(user) + float(system)


def between(reports: tuple[TaskReport, ...]) -> float:
    """Median seconds that a slot stood empty between two jobs."""
    begins = sorted(one.began_unix or 0.0 for one in reports)[CORES:]
    ends = sorted(one.ended_unix or 0.0 for one in reports)
    gaps = [begin - end for begin, end in zip(begins, ends, strict=False)]
    return statistics.median(gaps) if gaps else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON lines only")
    parser.add_argument("--detectors", type=int, default=JOBS, help="small CCDs to process, 0 to 189")
    options = parser.parse_args()
    if not options.json:
        print(f"# {CORES} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}", flush=True)
    with tempfile.TemporaryDirectory(prefix="apflow-batch-") as folder:
        focal_plane(Path(folder))
        if options.detectors:
            ccds(Path(folder), options.detectors)


if __name__ == "__main__":
    main()
