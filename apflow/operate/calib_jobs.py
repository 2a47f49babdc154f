"""What a process does of ``apflow calib build``: the master of one detector, from raws to a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apflow.errors import BadRequest
from apflow.io.fits import read_image, read_image_with_header, read_raw, write_image
from apflow.io.metrics import read_bundle
from apflow.io.provenance import versions
from apflow.model.calibration import Intent, Masters
from apflow.model.calibration_metrics import DETECTOR_ACTION
from apflow.model.camera import Detector, load_camera
from apflow.model.verdict import Verdict
from apflow.operate.calib_request import MIN_FRAMES, Frame
from apflow.pixels.defects import find_defects
from apflow.pixels.masters import Master, combine

_UNITS = {"bias": "adu", "dark": "electron/s", "flat": ""}


@dataclass(frozen=True)
class Job:
    """One detector's part of a build.

    Attributes
    ----------
    kind : `str`
    camera, size
        As `apflow.model.camera.load_camera` takes them.
    detector : `int`
    folder : `pathlib.Path`
        Where the file is written.
    frames : `tuple` [`Frame`, ...]
        None for defects.
    masters : mapping of `str` to `str`
        Paths of the masters that are subtracted, by kind; of those that show
        defects, a flat for each filter under ``flat <filter>``.
    inputs : mapping of `str` to `str`
        Ids of these datasets, by the same keys.
    physical_filter : `str`
        Of flats.
    """

    kind: str
    camera: str
    size: int | None
    detector: int
    folder: Path
    frames: tuple[Frame, ...] = ()
    masters: Mapping[str, str] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    physical_filter: str = ""


@dataclass(frozen=True)
class Built:
    """A master that was made.

    Attributes
    ----------
    detector : `int`
    name : `str`
        Of the detector.
    path : `pathlib.Path`
    images : `tuple` [`str`, ...]
        It was made from.
    left_out : `tuple` [`str`, ...]
        Images that were not used because their verdict is Alert.
    levels : mapping of `int` to `float`
        Of flats: electrons by exposure.
    summary : `str`
        What is in it, for people.
    """

    detector: int
    name: str
    path: Path
    images: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    levels: Mapping[int, float] = field(default_factory=dict)
    summary: str = ""


def build(job: Job) -> Built:
    """Make one master and write it.

    Raises
    ------
    BadRequest
        Too few exposures are left.
    DataError
        A file cannot be used.
    """
    detector = load_camera(job.camera, job.size).detector(job.detector)
    path = job.folder / f"{job.kind}_{detector.name}.fits"
    return _build_defects(job, detector, path) if job.kind == "defects" else _build_master(job, detector, path)


def rescale(path: Path, factor: float) -> None:
    """Multiply a flat, and its error, by a factor."""
    image, header = read_image_with_header(path)
    for key in header:
        if key.startswith("APFLOW NOISE ") and header[key] is not None:
            header[key] *= factor
    write_image(path, image * np.float32(factor), header)


def _build_master(job: Job, detector: Detector, path: Path) -> Built:
    good = [frame for frame in job.frames if not _is_alert(frame)]
    left_out = tuple(frame.image for frame in job.frames if frame not in good)
    if len(good) < MIN_FRAMES:
        raise BadRequest(
            f"{detector.name} has {len(good)} {job.kind} exposures whose verdict is not Alert "
            f"({', '.join(left_out)} are Alert); accepted: {MIN_FRAMES} or more"
        )
    planes = {kind: read_image(file) for kind, file in job.masters.items()}
    raws = [read_raw(frame.path) for frame in good]
    master = combine(raws, detector, Masters(**planes), Intent(job.kind))
    info, noise = raws[0].info, _noise(master, detector)
    del raws  # nearly all of the memory, and the file is yet to be written
    header = _header(job, detector) | {"BUNIT": _UNITS[job.kind], "EXPTIME": info.exposure_time_s}
    header |= {"DAYOBS": good[-1].exposure // 100_000, "NFRAMES": len(good)}
    header |= {"FILTER": info.physical_filter, "BAND": info.band} if job.kind == "flat" else {}
    header |= {f"APFLOW IMAGE {n}": frame.image for n, frame in enumerate(good, 1)}
    header |= {f"APFLOW NOISE {name}": value for name, value in noise.items()}
    write_image(path, master.image, header)
    rejected = 1 - master.n_frames.sum(dtype=float) / (master.n_frames.size * len(good))
    return Built(
        detector.id,
        detector.name,
        path,
        tuple(frame.image for frame in good),
        left_out,
        dict(zip((frame.exposure for frame in good), master.levels, strict=True)),
        f"{len(good)} exposures, error {np.nanmedian(list(noise.values())):.2g} {_UNITS[job.kind]}".rstrip()
        + f", {1e6 * rejected:.0f} ppm of values left out",
    )


def _build_defects(job: Job, detector: Detector, path: Path) -> Built:
    planes = {kind: read_image(file) for kind, file in job.masters.items()}
    defects = find_defects(detector, planes.pop("dark", None), list(planes.values()))
    write_image(path, defects.astype(np.uint8), _header(job, detector))
    n = int(np.count_nonzero(defects))
    return Built(detector.id, detector.name, path, summary=f"{n} bad pixels ({1e6 * n / defects.size:.0f} ppm)")


def _is_alert(frame: Frame) -> bool:
    """Whether the exposure was checked, and the verdict on this detector is Alert."""
    return bool(frame.checks) and read_bundle(frame.checks)[DETECTOR_ACTION].get("verdict") == Verdict.ALERT


def _noise(master: Master, detector: Detector) -> dict[str, float]:
    """Typical error by amplifier, in the unit of the image."""
    parts = ((amp.name, np.s_[amp.y0 : amp.y0 + amp.ny, amp.x0 : amp.x0 + amp.nx]) for amp in detector.amplifiers)
    medians = {name: float(np.sqrt(np.median(master.variance[part]))) for name, part in parts}
    return {name: value if np.isfinite(value) else np.nan for name, value in medians.items()}


def _header(job: Job, detector: Detector) -> dict[str, Any]:
    """What it is, and what it is made from and by."""
    header: dict[str, Any] = {
        "KIND": job.kind,
        "INSTRUME": load_camera(job.camera, job.size).instrument,
        "DETNUM": detector.id,
        "CHIPID": detector.name,
    }
    header |= {f"LSST BUTLER INPUT {n} ID": key for n, key in enumerate(job.inputs.values())}
    known = versions()
    return header | {f"APFLOW VERSION {name}": known[name] for name in ("apflow", "numpy", "numba") if name in known}
