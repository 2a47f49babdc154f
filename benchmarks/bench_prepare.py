"""What it costs a detector to get ready before the shutter opens, and what a warm worker saves.

A repository with calibs, template cells and reference stars of LSSTCam is simulated, with a fast Datastore before the
main one. ``prepare`` is the detector's part of `graphs/alert_production.prepare` in a process that holds nothing: all
inputs are read from the main store, copied to the fast one and held in memory. ``fetch`` is `fetch_calibs` and
`fetch_template` afterwards, with the inputs from the worker's memory, from the fast store (decoded anew; ``first``:
with the checksum that a process makes once of each copy) and from the main store. Both stores are on local disks here
and in the page cache: a main store behind a network is slower by its network. ``resolve`` is what the registry is asked
for all detectors at once.

``warp`` is `match_template`'s resampling of the template. ``early warp`` does it on the predicted mapping, 2 arcsec and
32 arcsec of rotation off, and resamples that to the measured one: what is left after the image came (its peer is one
warp), and what it does to the pixels, in units of their noise.

Prints one JSON object a line; seconds are medians.
`python benchmarks/bench_prepare.py [--json] [--size small|full|PIXELS] [--detectors N]`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from apflow import config_tables
from apflow.config import Config
from apflow.graph import active
from apflow.io import input_cache
from apflow.io.butler import create_repository
from apflow.io.ppdb import open_ppdb
from apflow.model.camera import load_camera
from apflow.model.products import Plan
from apflow.model.visit import Visit
from apflow.operate import prepare as operate
from apflow.operate.repository import repository_config
from apflow.pixels.template import assemble
from apflow.pixels.warp import warp
from apflow.simulate.scenario import Scenario, visits
from apflow.steps.fetch import fetch_calibs, fetch_template
from apflow.steps.prepare import prepare_detector, prepare_inputs
from apflow.steps.visits import detector_region

ROUNDS = 5
PLENTY = config_tables.Inputs(memory_mib=8192.0)
FILES = config_tables.Inputs(memory_mib=0.0)
ONLY_MAIN = config_tables.Inputs(memory_mib=0.0, fast_mib=0.0)
#: Errors of the announced pointing and rotation (LDM-151), arcsec.
POINTING, ROTATION = 2.0, 32.0


def timed(work: Callable[[], object], rounds: int = ROUNDS) -> tuple[float, float]:
    """Median seconds and CPU seconds."""
    walls, cores = [], []
    for _ in range(rounds):
        wall, core = time.perf_counter(), time.thread_time()
        work()
        walls.append(time.perf_counter() - wall)
        cores.append(time.thread_time() - core)
    return statistics.median(walls), statistics.median(cores)


def emit(name: str, value: float, unit: str, peer: str = "", peer_value: float = 0.0, **more: object) -> None:
    """Print a figure."""
    line: dict[str, object] = {"name": name, "value": round(value, 5), "unit": unit}
    if peer:
        line |= {"peer": peer, "peer_value": round(peer_value, 5), "ratio": round(peer_value / value, 2)}
    print(json.dumps(line | more), flush=True)


def fetch(plan: Plan, detectors: tuple[int, ...], settings: Config) -> None:
    """What the graph fetches before the image."""
    for d in detectors:
        fetch_calibs(plan, d, detector_region(plan.visit, d, settings), settings)
        fetch_template(plan, d, settings)


def measure_stores(visit: Visit, detectors: tuple[int, ...], settings: Config, size: str) -> None:
    """Preparation and fetches."""
    n = len(detectors)

    def using(inputs: config_tables.Inputs) -> Config:
        return dataclasses.replace(settings, inputs=inputs)

    resolve = timed(lambda: prepare_inputs(visit, detectors, settings))
    emit("resolve", resolve[0], "s", size=size, core_s=round(resolve[1], 4), detectors=n)
    plan = prepare_inputs(visit, detectors, settings)
    main = [timed(lambda: fetch(plan, detectors, using(ONLY_MAIN)))[k] / n for k in (0, 1)]
    input_cache.forget()
    wall, core = time.perf_counter(), time.thread_time()
    made = [prepare_detector(plan, d, using(PLENTY)) for d in detectors]
    wall, core = (time.perf_counter() - wall) / n, (time.thread_time() - core) / n
    mib = sum(p.counts["inputs_main_bytes"] for p in made) / n / 2**20
    emit("prepare", wall, "s a detector", size=size, core_s=round(core, 4), mib=round(mib, 1))
    memory = [timed(lambda: fetch(plan, detectors, using(PLENTY)))[k] / n for k in (0, 1)]
    input_cache.forget()
    first = [timed(lambda: fetch(plan, detectors, using(FILES)), 1)[k] / n for k in (0, 1)]
    fast = [timed(lambda: fetch(plan, detectors, using(FILES)))[k] / n for k in (0, 1)]
    for name, (wall, core) in {"memory": memory, "fast store, first": first, "fast store": fast}.items():
        emit(f"fetch from {name}", core, "core-s a detector", "main store", main[1], size=size, wall_s=round(wall, 4))


def measure_warp(visit: Visit, detector: int, settings: Config, size: str) -> None:
    """One warp when the mapping is known, against two."""
    camera = load_camera(settings.camera, settings.size)
    ccd = camera.detector(detector)
    plan, off = prepare_inputs(visit, [detector], settings), dataclasses.replace(settings, inputs=ONLY_MAIN)
    template = fetch_template(plan, detector, off)
    true = camera.wcs(ccd, visit.ra_deg, visit.dec_deg, visit.rotation_deg)
    predicted = camera.wcs(ccd, visit.ra_deg, visit.dec_deg + POINTING / 3600, visit.rotation_deg + ROTATION / 3600)
    once, early = assemble(template.cells, true, ccd.shape), assemble(template.cells, predicted, ccd.shape)
    twice = warp(early, true, ccd.shape)
    at_once = timed(lambda: assemble(template.cells, true, ccd.shape), 3)[1]
    again = timed(lambda: warp(early, true, ccd.shape), 3)[1]
    reading = timed(lambda: fetch_template(plan, detector, off), 3)[1]
    emit("warp", at_once, "core-s a detector", "reading the cells", reading, size=size)
    emit("early warp, resampled to the measured mapping", again, "core-s a detector", "warp", at_once, size=size)
    good = (once.mask == 0) & (twice.mask == 0) & (once.variance > 0)
    apart = np.abs(twice.image[good] - once.image[good]) / np.sqrt(once.variance[good])
    lost = 1.0 - float((twice.variance > 0).sum()) / max(float((once.variance > 0).sum()), 1.0)
    emit("early warp, difference of pixels", float(np.sqrt(np.mean(apart**2))), "sigma rms", size=size)
    emit("early warp, largest difference", float(apart.max()), "sigma", size=size)
    emit("early warp, pixels lost", float(lost), "fraction", size=size)


def main() -> None:
    """Run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true", help="the default; accepted like everywhere")
    parser.add_argument("--size", default="small")
    parser.add_argument("--detectors", type=int, default=0)
    arguments = parser.parse_args()
    size = {"small": 512, "full": None}.get(arguments.size, arguments.size)
    size = None if size is None else int(size)
    detectors = tuple(range(90, 90 + (arguments.detectors or (9 if size else 1))))
    scenario = Scenario(camera="lsstcam", size=size, nvisits=1, detectors=detectors)
    with tempfile.TemporaryDirectory() as folder, operate.simulation_pool(2) as pool:
        root = Path(folder) / "butler"
        create_repository(root, scenario.camera, size, fast=Path(folder) / "fast")
        operate.prepare(root, scenario, pool, lambda what, done, total: None)
        settings = repository_config(str(root))
        (visit,) = visits(scenario)
        with active(None), open_ppdb(settings.ppdb_url, create=True):
            measure_stores(visit, detectors, settings, arguments.size)
            measure_warp(visit, detectors[0], settings, arguments.size)


if __name__ == "__main__":
    main()
