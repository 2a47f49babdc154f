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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.errors import BadRequest
from apflow.io.atomic import atomic
from apflow.io.butler import Repository, create_repository
from apflow.io.fits import write_exposure, write_image
from apflow.model.region import Region
from apflow.model.skymap import Cell
from apflow.operate.interrupts import deaf_children
from apflow.simulate.calibs import render_calibs
from apflow.simulate.reference import reference_catalog
from apflow.simulate.scenario import Scenario
from apflow.simulate.templates import cells, render_cell, skymap

_KINDS = ("bias", "dark", "flat", "defects")
#: Calibs hold for this long around the replay, days.
_VALIDITY_DAYS = 30.0
_RECORD = "replay.json"
#: What a user calls it.
_SPOKEN = (
    {"nvisits": "--visits", "nsnaps": "--snaps", "cadence_s": "--cadence", "physical_filter": "--filter"}
    | {"rafts_at_a_time": "--rafts-at-a-time"}
    | {name: f"--{name}" for name in ("camera", "size", "seed", "detectors")}
)
Progress = Callable[[str, int, int], None]


@contextmanager
def simulation_pool(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each; spawned, since forking a process with threads is unsafe."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        os.environ.setdefault(name, str(2**29))  # images come and go: returning each to the system costs CPU
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    try:
        with deaf_children():
            for _ in range(processes):
                pool.submit(os.getpid)  # a pool starts its processes as work comes in
        yield pool
    except BaseException:
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()  # nobody wants what they are at, and a full CCD takes long
        raise
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass(frozen=True)
class Record:
    """What a repository was made for and how far it is, kept in the repository itself.

    Attributes
    ----------
    scenario : `dict`
        The `Scenario`.
    ppdb : `str`
        URL of the PPDB.
    prepared : `bool`
        Whether calibs, templates and reference stars are there.
    rendered : `int`
        Visits whose raw images were made.
    rafts_at_a_time, turn : `int`
        Rafts that are simulated and processed together, 0 for all; and of such
        turns, how many are over. `prepared` and `rendered` are of the current one.
    finished : `bool`
        Whether all visits were processed and reported.
    """

    scenario: dict[str, Any]
    ppdb: str = ""
    prepared: bool = False
    rendered: int = 0
    finished: bool = False
    rafts_at_a_time: int = 0
    turn: int = 0

    @classmethod
    def of(cls, scenario: Scenario, rafts_at_a_time: int = 0) -> Record:
        """That of a new repository."""
        asked = {**dataclasses.asdict(scenario), "detectors": list(scenario.detectors)}
        return cls(asked, rafts_at_a_time=rafts_at_a_time)

    @classmethod
    def read(cls, root: Path) -> Record | None:
        """That of a repository; None where it is not a replay's."""
        try:
            return cls(**json.loads((root / _RECORD).read_text()))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError) as error:
            raise BadRequest(f"{root / _RECORD} is not the record of a replay; give another --butler") from error

    def write(self, root: Path) -> None:
        """Write it down."""
        with atomic(root / _RECORD) as file:
            file.write(json.dumps(dataclasses.asdict(self)).encode())


def open_replay(root: Path, scenario: Scenario, *, own: bool, rafts_at_a_time: int = 0) -> Record:
    """Make the repository of a replay, or find the one to continue.

    Parameters
    ----------
    root : `Path`
        Root of the repository.
    own : `bool`
        Whether the folder is the replay's own default: a finished replay in
        it then makes room for the next.
    rafts_at_a_time : `int`
        Rafts of a turn, 0 for all.

    Returns
    -------
    record : `Record`
        How far it is; what it was made for is now `scenario`.

    Raises
    ------
    BadRequest
        The folder holds something else, or a replay of another scenario.
    """
    found, new = Record.read(root), Record.of(scenario, rafts_at_a_time)
    if found is not None:
        difference = _difference(found.scenario | _turns(found), new.scenario | _turns(new))
        if difference and not own:
            raise BadRequest(f"{root} holds another replay: {difference}; or give another --butler")
        if (found.prepared or found.turn) and not difference and not (own and found.finished):
            record = dataclasses.replace(found, scenario=new.scenario)
            record.write(root)
            return record
        # Nothing was processed yet, or it is the replay's own: made anew.
        shutil.rmtree(root)
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise BadRequest(f"{root} is not a replay's repository, nor an empty folder; give another --butler")
    create_repository(root, scenario.camera, scenario.size)
    new.write(root)
    return new


def _turns(record: Record) -> dict[str, Any]:
    return {"rafts_at_a_time": record.rafts_at_a_time}


def _difference(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """Why a replay cannot continue as another, empty where it can; there may be more visits than before."""
    for key, value in asked.items():
        if key == "nvisits" and value >= found[key]:
            continue
        if found.get(key) != value:
            more = " or more" if key == "nvisits" else ""
            return f"its {_SPOKEN.get(key, key)} is {found.get(key)!r}{more}, asked for was {value!r}"
    return ""


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
    # An earlier turn left those that this one needs, too.
    wanted = [cell for cell in cells(scenario, scenario.detectors) if not _cell_path(folder, cell).is_file()]
    futures = {pool.submit(_cell, scenario, cell, folder): (cell.tract, cell.patch) for cell in wanted}
    files = {futures[f]: Path(f.result()) for f in _watched(futures, "templates", progress)}
    band = scenario.load_filter().band
    repository.ingest_templates(files, grid, band)
    repository.ingest_reference(_reference(scenario, band))


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
    planes: dict[str, NDArray[Any]] = {
        "bias": made.bias,
        "dark": made.dark,
        "flat": made.flat,
        "defects": made.defects.astype(np.uint8),
    }
    paths = {}
    for kind, plane in planes.items():
        path = folder / f"{kind}_{detector:03d}.fits"
        write_image(path, plane, {"KIND": kind, "DETNUM": detector})
        paths[kind] = str(path)
    return paths


def _cell_path(folder: Path, cell: Cell) -> Path:
    return folder / f"template_{cell.tract}_{cell.patch}.fits"


def _cell(scenario: Scenario, cell: Cell, folder: Path) -> str:
    path = _cell_path(folder, cell)
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
