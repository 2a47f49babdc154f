"""``apflow calib build`` and ``certify``: master calibs for all detectors of a camera, or for none."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from astropy.time import Time
from lsst.daf.butler import DatasetRef, Timespan

from apflow.errors import BadRequest
from apflow.io.butler import Repository
from apflow.io.butler.certify import certify, check_free, next_begin
from apflow.io.butler.ingest import CALIBS
from apflow.io.butler.inputs import find_calibs, local_paths
from apflow.io.fits import read_image_with_header
from apflow.model.calibration import Intent
from apflow.operate import calib_jobs
from apflow.operate.calib_jobs import Built, Job
from apflow.operate.calib_request import (
    Chosen,
    begin_of,
    begin_of_day,
    find_exposures,
    find_frames,
    latest_day,
    span_of,
)
from apflow.operate.local_run import CORES
from apflow.operate.prepare import simulation_pool
from apflow.operate.repository import repository_config
from apflow.pixels.masters import separate

#: Masters that are subtracted from the exposures of each kind.
_BEFORE = {"bias": (), "dark": ("bias",), "flat": ("bias", "dark")}


@dataclass(frozen=True)
class Request:
    """What is to be made and where it goes.

    Attributes
    ----------
    kind : `str`
        ``bias``, ``dark``, ``flat`` or ``defects``.
    butler : `str`
    chosen : `Chosen`
        The exposures; nothing but a filter for defects, which are those of the valid masters.
    detectors : `str`
        Empty: all that have raws (or masters).
    begin, end : `Time`, optional
        When the masters are valid. Default: from the beginning of the day of
        the last exposure until the next calib of the kind begins.
    out : `pathlib.Path`, optional
        Folder in which the files stay.
    certify : `bool`
    replace : `bool`
    workers : `int`
        Processes; 0 for one a core.
    """

    kind: str
    butler: str
    chosen: Chosen = field(default_factory=Chosen)
    detectors: str = ""
    begin: Time | None = None
    end: Time | None = None
    out: Path | None = None
    certify: bool = False
    replace: bool = False
    workers: int = 0


@dataclass(frozen=True)
class Result:
    """Masters that were made; `run` is empty where they are not certified."""

    built: tuple[Built, ...]
    physical_filter: str
    valid: Timespan
    run: str = ""


def build(request: Request, progress: Callable[[Built], None] | None = None) -> Result:
    """Make the masters of one kind, and certify them if that is asked for: those of all detectors, or none.

    They are made with the masters that are valid when they begin to be.

    Parameters
    ----------
    request : `Request`
    progress : callable, optional
        Called with each master when it is made.

    Raises
    ------
    BadRequest
        What is asked for cannot be done; the message says why.
    DataError
        A file cannot be used.
    """
    if request.kind not in CALIBS:
        raise BadRequest(f"calib {request.kind!r} is unknown; accepted: {', '.join(CALIBS)}")
    if not (request.certify or request.out):
        raise BadRequest("nothing would be kept of the masters; accepted: --certify, --out DIR, or both")
    with Repository(request.butler, writeable=request.certify) as repository, _folder(request, repository) as folder:
        jobs, begin = _jobs(request, repository, folder)
        physical_filter, detectors = jobs[0].physical_filter, [job.detector for job in jobs]
        kind, certifies = request.kind, request.certify
        end = request.end or next_begin(repository, kind, detectors, physical_filter, begin)
        valid = span_of(begin, end)
        if certifies and not request.replace:
            check_free(repository, kind, detectors, physical_filter, valid)
        built = _run(jobs, request.workers, progress)
        if request.out is not None:
            built = [dataclasses.replace(one, path=one.path.replace(request.out / one.path.name)) for one in built]
        result = Result(tuple(built), physical_filter, valid)
        if not certifies:
            return result
        files = {one.detector: one.path for one in built}
        move = request.out is None
        run = certify(repository, kind, files, physical_filter, valid, replace=request.replace, move=move)
        return dataclasses.replace(result, run=run)


def certify_folder(
    kind: str, folder: Path, butler: str, begin: Time | None, end: Time | None, *, replace: bool
) -> Result:
    """Certify the masters of one kind that `build` left in a folder.

    Raises
    ------
    BadRequest
        There is none, or one is of another kind, instrument or filter, or has not the shape of its detector.
    """
    files = sorted(folder.glob(f"{kind}_*.fits"))
    if kind not in CALIBS or not files:
        raise BadRequest(f"there is no {kind}_*.fits in {folder}; accepted: a folder of apflow calib build --out")
    with Repository(butler, writeable=True) as repository:
        built, filters, days = [], set(), []
        for path in files:
            image, header = read_image_with_header(path)
            if (header.get("KIND"), header.get("INSTRUME")) != (kind, repository.instrument):
                was = f"{header.get('KIND')} of {header.get('INSTRUME')}"
                raise BadRequest(f"{path} is a {was}; accepted: {kind} of {repository.instrument}")
            detector = repository.camera.detector(header.get("DETNUM", ""))
            if image.shape != detector.shape:
                raise BadRequest(f"{path} has shape {image.shape}; accepted: {detector.shape}")
            filters.add(str(header.get("FILTER", "")))
            days.append(int(header.get("DAYOBS") or 0))
            built.append(Built(detector.id, detector.name, path))
        if len(filters) > 1:
            raise BadRequest(f"flats in {folder} are in filters {', '.join(sorted(filters))}; accepted: of one")
        (physical_filter,) = filters
        if begin is None:
            if not max(days):
                raise BadRequest(f"{kind} in {folder} do not say of which day they are; accepted: --valid-from TIME")
            begin = begin_of_day(max(days))
        detectors = [one.detector for one in built]
        valid = span_of(begin, end or next_begin(repository, kind, detectors, physical_filter, begin))
        paths = {one.detector: one.path for one in built}
        run = certify(repository, kind, paths, physical_filter, valid, replace=replace)
    return Result(tuple(built), physical_filter, valid, run)


@contextlib.contextmanager
def _folder(request: Request, repository: Repository) -> Iterator[Path]:
    """Where files are until all of them are made."""
    parent = request.out or repository.root
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise BadRequest(f"--out {parent} is not a folder; accepted: one, there or not") from None
    with tempfile.TemporaryDirectory(dir=parent, prefix=".calib-") as folder:
        yield Path(folder)


def _jobs(request: Request, repository: Repository, folder: Path) -> tuple[list[Job], Time]:
    """One job a detector, and when the masters begin to be valid."""
    config, camera = repository_config(request.butler), repository.camera
    wanted = camera.select(request.detectors) if request.detectors else ()
    if request.kind == "defects":
        return _defect_jobs(request, repository, folder, wanted)
    intent = Intent(request.kind)
    exposures = find_exposures(repository, intent, request.chosen)
    frames = find_frames(repository, exposures, wanted)
    if not frames:
        raise BadRequest(f"no detector has raws of {exposures[0].obs_id}; accepted: exposures with raws")
    begin = request.begin or begin_of(exposures)
    found = {kind: find_calibs(repository, kind, begin, "") for kind in _BEFORE[request.kind]}
    for kind, of in found.items():
        if lacking := sorted(frames.keys() - of.keys()):
            raise BadRequest(
                f"no {kind} of {camera.detector(lacking[0]).name} is valid at {begin.isot[:19]}, which a "
                f"{request.kind} needs; make one first: apflow calib build {kind}"
            )
    physical_filter = exposures[0].physical_filter if intent is Intent.FLAT else ""
    jobs = [
        Job(request.kind, config.camera, config.size, d, folder, tuple(of), physical_filter=physical_filter)
        for d, of in frames.items()
    ]
    return _with_masters(repository, jobs, found), begin


def _defect_jobs(
    request: Request, repository: Repository, folder: Path, wanted: Sequence[int]
) -> tuple[list[Job], Time]:
    config, camera, chosen = repository_config(request.butler), repository.camera, request.chosen
    if chosen.images or chosen.first or chosen.last:
        raise BadRequest("defects are those that the valid dark and flats show; accepted: no images")
    day = chosen.day_obs or latest_day(repository)
    if request.begin is None and day is None:
        raise BadRequest("there is no dark or flat exposure to tell the day; accepted: --valid-from TIME")
    begin = request.begin or begin_of_day(day or 0)
    filters = [camera.filter(chosen.physical_filter)] if chosen.physical_filter else camera.filters
    found = {"dark": find_calibs(repository, "dark", begin, "")}
    found |= {f"flat {f.physical_filter}": find_calibs(repository, "flat", begin, f.physical_filter) for f in filters}
    detectors = wanted or sorted({d for of in found.values() for d in of})
    lacking = [d for d in detectors if not any(d in of for of in found.values())]
    if lacking or not detectors:
        name = camera.detector(lacking[0]).name if lacking else "any detector"
        raise BadRequest(f"no dark or flat of {name} is valid at {begin.isot[:19]}; accepted: where one is")
    jobs = [Job("defects", config.camera, config.size, d, folder) for d in detectors]
    return _with_masters(repository, jobs, found), begin


def _with_masters(
    repository: Repository, jobs: Sequence[Job], found: Mapping[str, Mapping[int, DatasetRef]]
) -> list[Job]:
    local = local_paths(repository, [ref for of in found.values() for ref in of.values()])
    return [
        dataclasses.replace(
            job,
            masters={kind: local[of[job.detector].id] for kind, of in found.items() if job.detector in of},
            inputs={kind: str(of[job.detector].id) for kind, of in found.items() if job.detector in of},
        )
        for job in jobs
    ]


def _run(jobs: Sequence[Job], workers: int, progress: Callable[[Built], None] | None) -> list[Built]:
    """Make the masters, in processes where there is work for more than one."""
    processes, built = min(workers or CORES, len(jobs)), []
    with simulation_pool(processes) if processes > 1 else contextlib.nullcontext() as pool:
        for one in pool.map(calib_jobs.build, jobs) if pool else map(calib_jobs.build, jobs):
            built.append(one)
            if progress:
                progress(one)
        if jobs[0].kind == "flat":
            files, factors = [one.path for one in built], _sensitivities(built)
            list(pool.map(calib_jobs.rescale, files, factors) if pool else map(calib_jobs.rescale, files, factors))
    return built


def _sensitivities(flats: Sequence[Built]) -> list[float]:
    """What flats of detectors, each about 1, are of the same light; their median is 1."""
    exposures = sorted({exposure for one in flats for exposure in one.levels})
    levels = np.array([[one.levels.get(exposure, math.nan) for one in flats] for exposure in exposures])
    return [float(s) for s in separate(levels)[1]]
