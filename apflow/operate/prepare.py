"""A repository for a replay: calibs, templates and reference stars, simulated and ingested."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apflow.errors import BadRequest
from apflow.io.butler import Repository, create_repository
from apflow.io.fits import write_exposure, write_image
from apflow.model.region import Region
from apflow.model.skymap import Cell
from apflow.simulate.calibs import render_calibs
from apflow.simulate.reference import reference_catalog
from apflow.simulate.scenario import Scenario
from apflow.simulate.templates import cells, render_cell, skymap

_KINDS = ("bias", "dark", "flat", "defects")
#: Calibs hold for this long around the replay, days.
_VALIDITY_DAYS = 30.0
Progress = Callable[[str, int, int], None]


@contextmanager
def simulation_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each; spawned, since forking a process with threads is unsafe."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        os.environ.setdefault(name, str(2**29))  # images come and go: returning each to the system costs CPU
    pool = ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def open_replay(root: Path, scenario: Scenario, *, own: bool) -> bool:
    """Make the repository of a replay, or find the one to continue.

    Parameters
    ----------
    root : `Path`
        Root of the repository.
    own : `bool`
        Whether the folder is the replay's own default: a finished replay in
        it then makes room for the next.

    Returns
    -------
    prepared : `bool`
        Whether calibs, templates and reference stars are there already.

    Raises
    ------
    BadRequest
        The folder holds something else, or a replay of another scenario.
    """
    record = root / "replay.json"
    if record.is_file():
        found = json.loads(record.read_text())
        if own and (found["finished"] or not _continues(found["scenario"], scenario)):
            shutil.rmtree(root)
        elif not _continues(found["scenario"], scenario):
            raise BadRequest(
                f"{root} holds a replay of another scenario ({found['scenario']}); "
                "accepted: the same camera, size, seed, filter, snaps and detectors, or another --butler"
            )
        else:
            return bool(found["prepared"])
    elif root.exists() and any(root.iterdir()):
        raise BadRequest(f"{root} is not a replay's repository and not empty; give another --butler")
    create_repository(root, scenario.camera, scenario.size)
    record_replay(root, scenario, prepared=False, finished=False)
    return False


def record_replay(root: Path, scenario: Scenario, *, prepared: bool, finished: bool) -> None:
    """Write down what a repository was made for and how far it is."""
    text = json.dumps({"scenario": _plain(scenario), "prepared": prepared, "finished": finished})
    temporary = root / "replay.json.new"
    temporary.write_text(text)
    temporary.replace(root / "replay.json")


def _plain(scenario: Scenario) -> dict[str, Any]:
    return {**dataclasses.asdict(scenario), "detectors": list(scenario.detectors)}


def _continues(found: dict[str, Any], scenario: Scenario) -> bool:
    """The same but for how many visits there are and how fast they come."""
    free = {"nvisits", "cadence_s"}
    plain = _plain(scenario)
    return all(plain[k] == found.get(k) for k in plain if k not in free)


def prepare(root: Path, scenario: Scenario, pool: ProcessPoolExecutor, progress: Progress) -> None:
    """Simulate and ingest what must be there before the first visit.

    Parameters
    ----------
    progress : callable
        Called with what is being made, how many are done, and of how many.
    """
    folder = root / "simulated"
    folder.mkdir(exist_ok=True)
    repository = Repository.open(root, writeable=True)
    _prepare_calibs(repository, folder, scenario, pool, progress)
    grid = skymap(scenario)
    wanted = cells(scenario, scenario.detectors)
    futures = {pool.submit(_cell, scenario, cell, folder): (cell.tract, cell.patch) for cell in wanted}
    files = {futures[f]: Path(f.result()) for f in _watched(futures, "templates", progress)}
    band = scenario.load_filter().band
    repository.ingest_templates(files, grid, band)
    repository.ingest_reference(_reference(scenario, band))
    record_replay(root, scenario, prepared=True, finished=False)


def _prepare_calibs(
    repository: Repository, folder: Path, scenario: Scenario, pool: ProcessPoolExecutor, progress: Progress
) -> None:
    futures = {pool.submit(_calibs, scenario, d, folder): d for d in scenario.detectors}
    made = {futures[f]: f.result() for f in _watched(futures, "calibs", progress)}
    valid = (scenario.start_mjd_tai - _VALIDITY_DAYS, scenario.start_mjd_tai + _VALIDITY_DAYS)
    for kind in _KINDS:
        physical_filter = scenario.load_filter().physical_filter if kind == "flat" else None
        files = {d: Path(paths[kind]) for d, paths in made.items()}
        repository.ingest_calibs(kind, files, physical_filter=physical_filter, valid=valid)


def _watched(futures: dict[Future[Any], Any], what: str, progress: Progress) -> Iterator[Future[Any]]:
    progress(what, 0, len(futures))
    for done, future in enumerate(as_completed(futures), 1):
        yield future
        progress(what, done, len(futures))


def _calibs(scenario: Scenario, detector: int, folder: Path) -> dict[str, str]:
    made = render_calibs(scenario, detector)
    planes = {"bias": made.bias, "dark": made.dark, "flat": made.flat, "defects": made.defects.astype(np.uint8)}
    paths = {}
    for kind, plane in planes.items():
        path = folder / f"{kind}_{detector:03d}.fits"
        write_image(path, plane, {"KIND": kind, "DETNUM": detector})
        paths[kind] = str(path)
    return paths


def _cell(scenario: Scenario, cell: Cell, folder: Path) -> str:
    path = folder / f"template_{cell.tract}_{cell.patch}.fits"
    write_exposure(path, render_cell(scenario, cell))
    return str(path)


def _reference(scenario: Scenario, band: str) -> pd.DataFrame:
    """Reference stars around every detector, each once."""
    camera = scenario.load_camera()
    margin = 10.0  # arcsec: pointing errors reach 2", rotation 32"
    frames = []
    for d in scenario.detectors:
        region: Region = camera.region(
            camera.detector(d), scenario.ra_deg, scenario.dec_deg, scenario.rotation_deg, margin
        )
        frames.append(reference_catalog(scenario, region))
    stars = pd.concat(frames, ignore_index=True).drop_duplicates(["ra", "dec"], ignore_index=True)
    return stars.assign(band=band)
