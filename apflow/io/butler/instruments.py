"""Instruments of the Butler, one class a camera.

A repository keeps the class of its instrument by name, so every camera needs a
class that can be imported: ``apflow.io.butler.instruments.LSSTCam`` is made
when it is asked for, and so is that of a camera from a user's file.
"""

from __future__ import annotations

import functools
from typing import Any

from lsst.daf.butler.registry import Registry
from lsst.pipe.base import Instrument

from apflow.errors import BadRequest
from apflow.io.butler.formatters import RawFormatter
from apflow.model.camera import Camera, camera_names, load_camera

#: Rubin's visit systems (lsst.obs.base.VisitSystem).
VISIT_SYSTEMS = {"one-to-one": 0, "by-group-metadata": 1, "by-seq-start-end": 2}
#: Visits are made by sequence numbers: an id is that of the first snap.
VISIT_SYSTEM = VISIT_SYSTEMS["by-seq-start-end"]
#: Of exposures whose headers name no filter, as Rubin's cameras call it (lsst.obs.lsst).
NO_FILTER = {"name": "unknown", "band": "unknown"}
_EXPOSURE_MAX = 2100_01_01 * 100_000


class CameraInstrument(Instrument):
    """An instrument made of a `Camera`."""

    name = ""
    raw_definition = ("raw", ("instrument", "exposure", "detector"), "ApflowRaw")

    @classmethod
    def getName(cls) -> str:
        """Name of the instrument dimension."""
        return cls.name

    def register(self, registry: Registry, *, update: bool = False) -> None:
        """Register the instrument, its detectors, filters and visit systems."""
        for name in camera_names():
            camera = load_camera(name)
            if camera.instrument == self.name:
                return register_camera(registry, camera, update=update)
        raise BadRequest(f"instrument {self.name!r} comes from a camera's file: use apflow init")

    def getRawFormatter(self, dataId: Any) -> type[RawFormatter]:
        """Formatter of raw images."""
        return RawFormatter


@functools.cache
def __getattr__(name: str) -> type[CameraInstrument]:
    if name.startswith("_"):
        raise AttributeError(name)
    return type(name, (CameraInstrument,), {"name": name, "__module__": __name__})


def register_camera(registry: Registry, camera: Camera, *, update: bool = False) -> None:
    """Register everything of a camera, in one transaction; harmless when it is there."""
    instrument = camera.instrument
    if len(instrument) > 32 or not instrument.isidentifier():
        raise BadRequest(
            f"instrument {instrument!r} of camera {camera.name!r} is no name for the Butler; "
            "accepted: letters, digits and underscores, at most 32"
        )
    detectors = [
        {
            "instrument": instrument,
            "id": d.id,
            "full_name": d.name,
            "name_in_raft": d.name.removeprefix(f"{d.raft}_"),
            "raft": d.raft,
            "purpose": d.purpose,
        }
        for d in camera.detectors
    ]
    filters = [{"instrument": instrument, "name": f.physical_filter, "band": f.band} for f in camera.filters]
    filters.append(NO_FILTER | {"instrument": instrument})
    systems = [{"instrument": instrument, "id": number, "name": name} for name, number in VISIT_SYSTEMS.items()]
    record = {
        "name": instrument,
        "detector_max": max(d.id for d in camera.detectors) + 1,
        "visit_max": _EXPOSURE_MAX,
        "exposure_max": _EXPOSURE_MAX,
        "class_name": f"{__name__}.{instrument}",
        "visit_system": VISIT_SYSTEM,
    }
    with registry.transaction():
        registry.syncDimensionData("instrument", record, update=update)
        for element, records in (("detector", detectors), ("physical_filter", filters), ("visit_system", systems)):
            registry.insertDimensionData(element, *records, replace=update, skip_existing=not update)
