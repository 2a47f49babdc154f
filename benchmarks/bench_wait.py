"""The blocking get of science images: how soon after its file lands each waiter goes on, and what waiting costs.

189 raw images of LSSTCam (cut-outs: only headers are read) land in a folder
within 2 s by renames; an ingestor in a process of its own registers them; 189
waiters in several processes wait for one each. So on each kind of registry, and
beside it with waiters that ask the Butler themselves, once a second each.

    python benchmarks/bench_wait.py [--json] [--bursts 3] [--registries sqlite,postgresql]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from apflow.io.arrivals import Ingestor, await_images
from apflow.io.butler import Repository, create_repository
from apflow.io.fits import write_raw
from apflow.model.camera import Camera, load_camera
from apflow.model.exposure import ImageInfo, Raw
from apflow.model.ids import image_name
from apflow.operate.services import PostgresServer

EXPOSURE = 2025042000100
SIZE = 128
BURST_S = 2.0
IDLE_S = 3.0
PROCESSES = 4
POLL_S = 1.0
TIMEOUT_S = 60.0
#: What is to be reached, ms, and cores in all.
LIMITS = {"median": 150.0, "p95": 300.0, "cores": 0.2}


def header(detector: int, exposure: int) -> ImageInfo:
    """Of an r-band image of LSSTCam."""
    begin = 60786.15 + (exposure - EXPOSURE) * 40 / 86400
    return ImageInfo(
        instrument="LSSTCam",
        detector=detector,
        exposure=exposure,
        group=f"bench-{exposure}",
        snap=1,
        physical_filter="r_57",
        band="r",
        ra_deg=52.8,
        dec_deg=-28.1,
        rotation_deg=12.0,
        exposure_time_s=30.0,
        mjd_begin_tai=begin,
        mjd_end_tai=begin + 30 / 86400,
    )


def write_images(folder: Path, camera: Camera, exposure: int) -> dict[int, Path]:
    """Raw files of the science detectors."""
    files = {}
    for detector in camera.detectors:
        if detector.purpose == "SCIENCE":
            segments = {a.segment: np.zeros(a.raw_shape, np.uint16) for a in detector.amplifiers}
            path = folder / f"{image_name(exposure, camera.image_prefix)}_{detector.name}.fits"
            write_raw(path, Raw(segments, header(detector.id, exposure), {}))
            files[detector.id] = path
    return files


def ingest(root: Path, landing: Path, pipe: Connection) -> None:
    """Process: ingests what lands until told to end."""
    with Ingestor(root, landing):
        begin_s = time.process_time()
        pipe.send(None)
        pipe.recv()
    pipe.send(time.process_time() - begin_s)


def wait_notified(root: Path, exposure: int, detector: int) -> None:
    """As the graph's step does."""
    info = header(detector, exposure)
    images = [image_name(exposure, "MC_O")]
    await_images(root, "LSSTCam", info.group, detector, nsnaps=1, timeout_s=TIMEOUT_S, images=images)


_turn = threading.Lock()


def wait_polling(repository: Repository, exposure: int, detector: int) -> None:
    """Ask the Butler once a second, with one connection a process."""
    time.sleep(random.uniform(0, POLL_S))
    end = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end:
        begin = time.monotonic()
        with _turn:
            found = repository.butler.find_dataset(
                "raw", instrument="LSSTCam", exposure=exposure, detector=detector, collections="LSSTCam/raw/all"
            )
        if found is not None:
            return
        time.sleep(max(0.0, POLL_S - (time.monotonic() - begin)))
    raise TimeoutError(f"detector {detector}")


def waiters(root: Path, detectors: list[int], pipe: Connection) -> None:
    """Process: for each burst, threads that wait; sends when each went on, and CPU seconds while all waited."""
    with Repository(root) as repository:
        while (order := pipe.recv()) is not None:
            kind, exposure = order
            went_on: dict[int, float] = {}

            def one(detector: int, kind: str = kind, exposure: int = exposure, to: dict[int, float] = went_on) -> None:
                if kind == "notified":
                    wait_notified(root, exposure, detector)
                else:
                    wait_polling(repository, exposure, detector)
                to[detector] = time.time()

            threads = [threading.Thread(target=one, args=(detector,)) for detector in detectors]
            for thread in threads:
                thread.start()
            time.sleep(1.0)  # the first questions cost more than those after them
            begin_s, cpu_s = time.monotonic(), time.process_time()
            time.sleep(IDLE_S)
            cores = (time.process_time() - cpu_s) / (time.monotonic() - begin_s)
            pipe.send(cores)
            for thread in threads:
                thread.join()
            pipe.send(went_on)


@contextlib.contextmanager
def crew(root: Path, landing: Path, detectors: list[int]) -> Iterator[tuple[list[Connection], list[float]]]:
    """An ingestor and the processes of the waiters; the pipes of the latter, and in the end CPU s of the former."""
    spent_s: list[float] = []
    context = multiprocessing.get_context("spawn")
    jobs = [(ingest, (root, landing))] + [(waiters, (root, detectors[i::PROCESSES])) for i in range(PROCESSES)]
    pipes, processes = [], []
    for target, arguments in jobs:
        here, there = context.Pipe()
        process = context.Process(target=target, args=(*arguments, there), daemon=True)
        process.start()
        pipes.append(here)
        processes.append(process)
    pipes[0].recv()
    try:
        yield pipes[1:], spent_s
    finally:
        for pipe in pipes:
            pipe.send(None)
        spent_s.append(pipes[0].recv())
        for process in processes:
            process.join(20.0)


def burst(pipes: list[Connection], kind: str, exposure: int, files: dict[int, Path], landing: Path) -> dict[str, Any]:
    """Milliseconds from landing to going on, and cores while waiting."""
    for pipe in pipes:
        pipe.send((kind, exposure))
    cores = sum(pipe.recv() for pipe in pipes)
    order = sorted((random.uniform(0, BURST_S), detector) for detector in files)
    begin, landed = time.monotonic(), {}
    for at_s, detector in order:
        time.sleep(max(0.0, begin + at_s - time.monotonic()))
        os.replace(files[detector], landing / files[detector].name)
        landed[detector] = time.time()
    went_on: dict[int, float] = {}
    for pipe in pipes:
        went_on |= pipe.recv()
    delays = sorted(1000.0 * (went_on[d] - landed[d]) for d in landed)
    return {"median": statistics.median(delays), "p95": delays[int(0.95 * len(delays))], "cores": cores}


def measure(registry: str, url: str, bursts: int, folder: Path) -> Iterator[dict[str, Any]]:
    """Figures of one kind of registry."""
    root, landing, staging = folder / "repository", folder / "landing", folder / "staging"
    landing.mkdir(parents=True)
    create_repository(root, "lsstcam", SIZE, url)
    camera = load_camera("lsstcam", SIZE)
    detectors = [d.id for d in camera.detectors if d.purpose == "SCIENCE"]
    found: dict[str, list[dict[str, Any]]] = {"notified": [], "polling": []}
    with crew(root, landing, detectors) as (pipes, spent_s):
        for number in range(2 * bursts):
            kind = ("notified", "polling")[number % 2]
            exposure = EXPOSURE + number
            files = write_images(staging, camera, exposure)
            found[kind].append(burst(pipes, kind, exposure, files, landing))
    cost_ms = 1000.0 * spent_s[0] / (2 * bursts * len(detectors))
    yield {"name": f"wait_{registry}_ingest", "value": round(cost_ms, 2), "unit": "CPU ms a raw"}
    for what, unit in (("median", "ms"), ("p95", "ms"), ("cores", "cores")):
        ours, theirs = (statistics.median(one[what] for one in found[kind]) for kind in ("notified", "polling"))
        name = f"wait_{registry}_{what if what == 'cores' else f'{what}_latency'}"
        yield {
            "name": name,
            "value": round(ours, 4),
            "unit": unit,
            "peer": f"Butler.find_dataset by each waiter every {POLL_S:g} s",
            "peer_value": round(theirs, 4),
            "ratio": round(theirs / ours, 2) if ours else None,
        }
        yield {
            "name": f"{name}_limit",
            "value": round(ours, 4),
            "unit": unit,
            "peer": "limit",
            "peer_value": LIMITS[what],
            "ratio": round(LIMITS[what] / ours, 2) if ours else None,
        }


def main() -> None:
    """Print the figures, one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object a line; always so")
    parser.add_argument("--bursts", type=int, default=3, help="bursts of each kind")
    parser.add_argument("--registries", default="sqlite,postgresql")
    options = parser.parse_args()
    for registry in options.registries.split(","):
        folder = Path(tempfile.mkdtemp(prefix="bench-wait-"))
        server = PostgresServer() if registry == "postgresql" else contextlib.nullcontext()
        try:
            with server as running:
                for figure in measure(registry, running.database() if running else "", options.bursts, folder):
                    print(json.dumps(figure), flush=True)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
