"""What raw calibration costs: full CCDs, step by step and through the whole graph on Dask.

Prints one JSON object a line. `python benchmarks/bench_calibration.py [--json] [--size PIXELS] [--repeat N]`;
``--json`` leaves out the lines for people. Core-seconds are CPU time of threads and processes, so that a machine at
work does not change them much; the requirement is 25 exposures of 189 CCDs in 1200 s (LSE-61 DMS-REQ-0131).

The nine CCDs of the graph have the pixels of one: rendering is not what is measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
from distributed import Client

from apflow.cluster.local import local_cluster
from apflow.config import Config
from apflow.graphs import raw_calibration
from apflow.io.butler import Repository, create_repository
from apflow.io.butler.calibrations import find_plan
from apflow.io.fits import read_raw, write_image, write_raw
from apflow.io.input_cache import forget
from apflow.model.calibration import CalibrationExposure, Intent
from apflow.model.calibration_metrics import default_ranges, verdicts_of
from apflow.model.exposure import Raw
from apflow.model.ids import image_name
from apflow.model.ledger import State
from apflow.operate.calibration.run import WARM_UP
from apflow.operate.repository import repository_config
from apflow.pixels.calibration_checks import check
from apflow.pixels.calibration_isr import correct
from apflow.run.on_dask import DaskRunner
from apflow.simulate.calibration import render_calibration
from apflow.simulate.calibs import render_calibs
from apflow.simulate.scenario import Scenario
from apflow.steps.calibration import await_calibration_image, check_calibration, fetch_masters, keep_checks

LIMIT = "LSE-61 DMS-REQ-0131: 25 exposures of 189 CCDs in 1200 s"
EXPOSURES, CCDS, SECONDS = 25, 189, 1200.0
EXPTIME_S = {Intent.BIAS: 0.0, Intent.DARK: 30.0, Intent.FLAT: 5.0, Intent.CBP: 5.0}
#: Sequence numbers; the flat of 3 is the partner of that of 4.
TAKEN = ((1, Intent.BIAS), (2, Intent.DARK), (3, Intent.FLAT), (4, Intent.FLAT), (5, Intent.CBP))


def say(name: str, value: float, unit: str, **more: Any) -> None:
    print(json.dumps({"name": name, "value": round(value, 4), "unit": unit, **more}), flush=True)


def say_limit(what: str, core_s: float) -> None:
    """What a cost a CCD means for the requirement."""
    whole = EXPOSURES * CCDS * core_s
    say(f"{what}_images_per_core_second", 1 / core_s, "1/s")
    say(f"{what}_cores_for_25_exposures_in_1200_s", whole / SECONDS, "cores")
    on_189 = whole / CCDS
    say(
        f"{what}_25_exposures_on_189_cores",
        on_189,
        "s",
        peer=LIMIT,
        peer_value=SECONDS,
        ratio=round(SECONDS / on_189, 1),
    )


def cost(repeat: int, work: Callable[[], Any]) -> float:
    """Median CPU seconds of this thread, after one run that may compile."""
    work()
    times = []
    for _ in range(repeat):
        start = time.thread_time()
        work()
        times.append(time.thread_time() - start)
    return statistics.median(times)


def build(root: Path, scenario: Scenario) -> dict[int, CalibrationExposure]:
    """A repository with masters and exposures of all detectors, which have the pixels of the first."""
    create_repository(root, scenario.camera, scenario.size)
    repository, camera, first = Repository.open(root, writeable=True), scenario.load_camera(), scenario.detectors[0]
    masters, begin = render_calibs(scenario, first), scenario.start_mjd_tai
    for kind in ("bias", "dark", "flat", "defects"):
        files = {}
        for d in scenario.detectors:
            files[d] = root / "masters" / f"{kind}_{d}.fits"
            write_image(files[d], getattr(masters, kind))
        physical_filter = scenario.physical_filter if kind == "flat" else None
        repository.ingest_calibs(kind, files, physical_filter, (begin - 10, begin + 10), transfer="move")
    exposures = {}
    for sequence, intent in TAKEN:
        lit = intent in (Intent.FLAT, Intent.CBP)
        raw = render_calibration(
            scenario,
            intent,
            sequence,
            first,
            exposure_time_s=EXPTIME_S[intent],
            physical_filter=scenario.physical_filter if lit else "",
        )
        repository.ingest_raws([written(root, raw, d) for d in scenario.detectors], transfer="move")
        info = raw.info
        exposures[sequence] = CalibrationExposure(
            instrument=info.instrument,
            exposure=info.exposure,
            group=info.group,
            intent=intent,
            physical_filter=info.physical_filter,
            exposure_time_s=info.exposure_time_s,
            image=image_name(info.exposure, camera.image_prefix),
        )
    return exposures


def written(root: Path, raw: Raw, detector: int) -> Path:
    """A raw image under the number of another detector, as a file that has not landed."""
    path = root / "staged" / f"{detector}.fits"
    header = dict(raw.header) | {"DETNUM": detector}
    write_raw(path, Raw(raw.segments, dataclasses.replace(raw.info, detector=detector), header))
    return path


def steps(exposure: CalibrationExposure, detector: int, config: Config, repeat: int) -> None:
    """Each step of one CCD; masters from memory, as in every exposure but the first."""
    repository, ranges, intent = Repository.open(config.butler), default_ranges(), exposure.intent
    ccd, plan = repository.camera.detector(detector), find_plan(repository, exposure, [detector])
    snaps = await_calibration_image(exposure, detector, config)
    forget()
    start = time.thread_time()
    masters = fetch_masters(plan, detector, config)
    first = time.thread_time() - start
    files = [snaps.raws[0].path, *plan.partners[detector][:1]]
    raw, *others = [read_raw(path) for path in files]
    partner = others[0] if others else None
    checked = check_calibration(plan, snaps, masters, config)
    found = {
        "fetch": cost(repeat, lambda: fetch_masters(plan, detector, config)),
        "read": cost(repeat, lambda: [read_raw(path) for path in files]),
        "correct": cost(repeat, lambda: correct(raw, ccd, masters, intent)),
        "check": cost(repeat, lambda: check(raw, ccd, masters, intent, partner=partner)),
        "judge": cost(repeat, lambda: verdicts_of(checked.checks, ranges)),
        "write": cost(repeat, lambda: keep_checks(checked, config)),
    }
    found["check"] -= found["correct"]
    name = f"calibration_{intent}" + ("_with_partner" if partner is not None else "")
    say(f"{name}_fetch_masters_first", first, "core-s")
    for step, core_s in found.items():
        say(f"{name}_{step}", core_s, "core-s")
    say(f"{name}_ccd", sum(found.values()), "core-s")
    say_limit(name, sum(found.values()))


def graph(exposures: dict[int, CalibrationExposure], detectors: Sequence[int], config: Config) -> None:
    """All exposures through the whole graph on Dask: workers, scheduler, driver, registry."""
    with (
        local_cluster(1, memory_limit="8GiB", warm_up=WARM_UP) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        with DaskRunner(client, gather_after_s=30.0, deadline_s=1200.0) as runner:
            for turn in ("first", "later"):
                before, start, steps_s = cpu_s(), time.perf_counter(), 0.0
                for exposure in exposures.values():
                    outcomes = runner.start(raw_calibration.exposure, exposure, list(detectors), config).result()
                    assert all(o.state is State.DONE for o in outcomes), outcomes
                    steps_s += sum(step.core_s for o in outcomes for step in o.steps)
                n = len(exposures) * len(detectors)
                whole, wall = (cpu_s() - before) / n, time.perf_counter() - start
                say(
                    f"calibration_graph_{turn}_ccd", whole, "core-s", steps=round(steps_s / n, 4), wall_s=round(wall, 1)
                )
    say_limit("calibration_graph", whole)


def cpu_s() -> float:
    """CPU of this process (driver and scheduler) and of its children."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="no lines for people")
    parser.add_argument("--size", type=int, help="pixels of cut-out CCDs; default: full ones")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--detectors", type=int, default=9, help="of the graph, 1 to 9")
    given = parser.parse_args()
    detectors = tuple(range(given.detectors))
    scenario = Scenario(camera="comcam", size=given.size, detectors=detectors, physical_filter="r_03")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "butler"
        exposures = build(root, scenario)
        if not given.json:
            print(f"# {len(exposures)} exposures of {len(detectors)} CCDs; core-seconds a CCD by intent and step")
        config = repository_config(str(root), timeout_s=10.0)
        # A worker keeps the masters of all its CCDs, as it does where each has few.
        config = dataclasses.replace(config, inputs=dataclasses.replace(config.inputs, memory_mib=4096.0))
        for sequence in (1, 2, 4, 5):
            steps(exposures[sequence], detectors[0], config, given.repeat)
        forget()
        graph(exposures, detectors, config)


if __name__ == "__main__":
    main()
