"""Files that come with raw images: a sidecar holds a header as JSON, another the sensors that are expected."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apflow.errors import BadRequest, DataError
from apflow.io.arrivals.announce import rejected
from apflow.io.arrivals.board import Key, Message
from apflow.io.fits import filter_of
from apflow.model.camera import Camera
from apflow.model.ids import ImageName, image_name, parse_image_name
from apflow.model.sighting import Sighting

_EXPECTED = "_expectedSensors"
_NO_IMAGE = ("GUIDER",)


@dataclass(frozen=True)
class Told:
    """What a file about images tells.

    Attributes
    ----------
    sighting : `Sighting`
    messages : mapping
        For those who wait.
    """

    sighting: Sighting
    messages: Mapping[Key, Message]


def read_sidecar(camera: Camera, file: Path, arrived_unix: float) -> Told:
    """Read ``<image>_<detector>.json`` or ``<image>_expectedSensors.json``.

    Parameters
    ----------
    camera : `Camera`
    file : `pathlib.Path`
    arrived_unix : `float`

    Raises
    ------
    DataError
        It is neither, not JSON, or not of this camera.
    """
    stem = file.name.removesuffix(".json")
    try:
        name = parse_image_name(stem.removesuffix(_EXPECTED))
        tree = json.loads(file.read_bytes())
    except (BadRequest, OSError, ValueError) as error:
        raise DataError(f"{file} is not a sidecar of an image: {error}") from None
    if not isinstance(tree, dict):
        raise DataError(f"{file} is not a sidecar of an image: it holds a {type(tree).__name__}; accepted: an object")
    if stem.endswith(_EXPECTED):
        return _expected(camera, file, name, tree, arrived_unix)
    return Told(_header(camera, file, name, tree, arrived_unix), {})


def _header(camera: Camera, file: Path, name: ImageName, header: Mapping[str, Any], arrived_unix: float) -> Sighting:
    """What a header tells; the raw itself is not there yet, and tells the rest."""
    if header.get("INSTRUME", camera.instrument) != camera.instrument:
        raise DataError(f"{file}: INSTRUME is {header['INSTRUME']!r}; accepted: {camera.instrument}")
    try:
        detector = camera.detector(name.detector).id if name.detector else None
        named = filter_of(header)
        physical = camera.filter(named) if named else None
        return Sighting(
            instrument=camera.instrument,
            group=str(header.get("GROUPID") or ""),
            exposure=name.exposure,
            image=image_name(name.exposure, camera.image_prefix),
            snap=int(header.get("CURINDEX") or 1),
            nsnaps=int(header.get("MAXINDEX") or 0),
            detector=detector,
            ra_deg=_number(header, "RA"),
            dec_deg=_number(header, "DEC"),
            rotation_deg=_number(header, "ROTPA"),
            physical_filter=physical.physical_filter if physical else "",
            band=physical.band if physical else "",
            exposure_time_s=_number(header, "EXPTIME"),
            image_type=str(header.get("IMGTYPE") or ""),
            arrived_unix=arrived_unix,
        )
    except (BadRequest, TypeError, ValueError) as error:
        raise DataError(f"{file}: {error}") from None


def _number(header: Mapping[str, Any], key: str) -> float:
    value = header.get(key)
    return math.nan if value is None else float(value)


def _expected(camera: Camera, file: Path, name: ImageName, tree: Mapping[str, Any], arrived_unix: float) -> Told:
    """``{"expectedSensors": {"R22_S11": "SCIENCE", "R00_SG0": "GUIDER", ...}}``: who is not in it sends no image."""
    sensors = tree.get("expectedSensors")
    if not isinstance(sensors, dict) or not sensors:
        raise DataError(f"{file} has no expectedSensors; accepted: an object of detector names with their roles")
    image = image_name(name.exposure, camera.image_prefix)
    expected = tuple(d.id for d in camera.detectors if sensors.get(d.name, "GUIDER") not in _NO_IMAGE)
    if not expected:
        raise DataError(f"{file} names no detector of {camera.instrument}; accepted: names such as R22_S11")
    messages: dict[Key, Message] = {}
    for detector in camera.detectors:
        if detector.id not in expected:
            error = (
                f"image {image} of detector {detector.id} is not expected: {file.name} does not name {detector.name}"
            )
            messages |= rejected(camera.instrument, "", image, 1, detector.id, error, absent=True)
    nan = math.nan
    sighting = Sighting(
        instrument=camera.instrument,
        group="",
        exposure=name.exposure,
        image=image,
        snap=1,
        nsnaps=0,
        detector=None,
        ra_deg=nan,
        dec_deg=nan,
        rotation_deg=nan,
        physical_filter="",
        band="",
        exposure_time_s=nan,
        image_type="",
        arrived_unix=arrived_unix,
        expected=expected,
    )
    return Told(sighting, messages)
