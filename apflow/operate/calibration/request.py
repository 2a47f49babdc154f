"""The arguments of DMTN-092 section 2.3, checked."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from apflow.config import Config
from apflow.errors import BadRequest
from apflow.model import ids
from apflow.model.calibration import CalibrationExposure, Intent
from apflow.model.camera import Camera, load_camera
from apflow.operate.repository import repository_config
from apflow.steps.calibration import ranges_of


@dataclass(frozen=True)
class Request:
    """What is to be checked, where.

    Attributes
    ----------
    camera : `Camera`
    detectors : `tuple` [`int`, ...]
    exposures : `tuple` [`CalibrationExposure`, ...]
        In the order in which they were taken; the second of two flats has the
        first as its partner.
    config : `Config`
        Its timeout counts from now, exposure included: this begins at startIntegration.
    workers : `int`
        Worker processes; a single detector is checked in this one.
    """

    camera: Camera
    detectors: tuple[int, ...]
    exposures: tuple[CalibrationExposure, ...]
    config: Config
    workers: int


def check_request(
    intent: str,
    detectors: str,
    exposure_time_s: float,
    physical_filter: str,
    butler: str,
    images: Sequence[str],
    *,
    timeout_s: float = 120.0,
    workers: int = 0,
) -> Request:
    """Check the arguments of one calibration exposure, or of two flats.

    A filter that is empty or ``none`` is that of the header.

    Raises
    ------
    BadRequest
        One is not acceptable; the message names it and what is.
    """
    wanted = Intent.of(intent)
    if not (math.isfinite(timeout_s) and timeout_s >= 0):
        raise BadRequest(f"timeout {timeout_s} s is not accepted: 0 or more")
    if (exposure_time_s > 0) is (wanted is Intent.BIAS):
        accepted = "0" if wanted is Intent.BIAS else "more than 0"
        raise BadRequest(f"exposure time {exposure_time_s:g} s of a {wanted} is not accepted: {accepted}")
    config = repository_config(butler, timeout_s=timeout_s + exposure_time_s)
    ranges_of(config)  # refused now, not by each detector
    camera = load_camera(config.camera, config.size)
    chosen = camera.select(detectors)
    numbers = _exposures(images, camera, chosen, wanted)
    given = physical_filter if physical_filter.lower() != "none" else ""
    first = CalibrationExposure(
        instrument=camera.instrument,
        exposure=numbers[0],
        group="",
        intent=wanted,
        physical_filter=camera.filter(given).physical_filter if given else "",
        exposure_time_s=exposure_time_s,
        image=ids.image_name(numbers[0], camera.image_prefix),
    )
    later = (
        dataclasses.replace(first, exposure=n, image=ids.image_name(n, camera.image_prefix), partner=first.image)
        for n in numbers[1:]
    )
    return Request(camera, chosen, (first, *later), config, _workers(workers) if len(chosen) > 1 else 1)


def _workers(workers: int) -> int:
    # Dask takes longer to import than one detector to check.
    from apflow.operate.local_run import CORES, MAX_WORKERS

    if not 0 <= workers <= MAX_WORKERS:
        raise BadRequest(f"workers {workers} are not accepted: 0 (one a core) to {MAX_WORKERS}")
    return workers or CORES


def _exposures(images: Sequence[str], camera: Camera, detectors: Sequence[int], intent: Intent) -> list[int]:
    """Exposure ids of image names in order; names must be of this camera, and of the detector if of any."""
    form = f"{camera.image_prefix}_YYYYMMDD_NNNNNN"
    exposures = []
    for name in images:
        parts = ids.parse_image_name(name)
        if not name.startswith(camera.image_prefix):
            raise BadRequest(f"image {name!r} is not one of {camera.instrument}; accepted: {form}")
        if parts.detector is not None and tuple(detectors) != (camera.detector(parts.detector).id,):
            raise BadRequest(f"image {name!r} is of one detector, and not of those asked for; accepted: {form}")
        exposures.append(parts.exposure)
    most = 2 if intent is Intent.FLAT else 1
    if len(set(exposures)) != len(images) or not 1 <= len(images) <= most:
        raise BadRequest(f"images {' '.join(images)} are not accepted: one, or two flats")
    return sorted(exposures)
