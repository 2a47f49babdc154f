"""What headers of raw images say becomes exposures and visits of the registry."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from astropy.time import Time
from lsst.daf.butler import Butler, Timespan
from lsst.sphgeom import ConvexPolygon, LonLat, UnitVector3d

from apflow.io.butler.instruments import NO_FILTER, VISIT_SYSTEM
from apflow.model.calibration import is_calibration
from apflow.model.camera import Camera, Filter
from apflow.model.exposure import ImageInfo
from apflow.model.ids import day_obs_of, image_name

_SKY = ("OBJECT", "SCIENCE", "ACQ", "CWFS")


def filter_named(camera: Camera, info: ImageInfo) -> Filter | None:
    """The camera's filter that a header names; None for a calibration that names none.

    Raises
    ------
    BadRequest
        The camera does not have it, or an image of the sky names none.
    """
    if not info.physical_filter and is_calibration(info.image_type):
        return None
    return camera.filter(info.physical_filter)


def register_exposures(butler: Butler, camera: Camera, infos: Iterable[ImageInfo]) -> None:
    """Register exposures, and visits for those of the sky, that are not there yet."""
    by_exposure = {info.exposure: info for info in infos}
    if not by_exposure:
        return
    instrument = camera.instrument
    there = butler.query_dimension_records(
        "exposure", instrument=instrument, where="exposure IN (ids)", bind={"ids": list(by_exposure)}, explain=False
    )
    for known in there:
        del by_exposure[known.id]
    registry = butler.registry
    for exposure, info in sorted(by_exposure.items()):
        registry.insertDimensionData(
            "day_obs",
            {"instrument": instrument, "id": day_obs_of(exposure), "timespan": _day(info)},
            skip_existing=True,
        )
        if filter_named(camera, info) is None:
            # A repository of an earlier version does not have it.
            registry.insertDimensionData("physical_filter", NO_FILTER | {"instrument": instrument}, skip_existing=True)
        registry.insertDimensionData("group", {"instrument": instrument, "name": info.group}, skip_existing=True)
        registry.insertDimensionData("exposure", _exposure(camera, info), skip_existing=True)
        if info.image_type in _SKY:
            _register_visit(butler, camera, info)


def _register_visit(butler: Butler, camera: Camera, info: ImageInfo) -> None:
    """A visit with the regions of its science detectors; its id is that of its first snap."""
    registry, instrument = butler.registry, camera.instrument
    visit = info.exposure - (info.snap - 1)
    key: dict[str, Any] = {"instrument": instrument, "visit": visit}
    there = butler.query_dimension_records("visit", data_id=key, explain=False)
    if there:
        # The second snap makes the visit longer; the sky is that of the first.
        record = there[0].toDict()
        span = record["timespan"]
        begin, end = (_time(t) for t in (info.mjd_begin_tai, info.mjd_end_tai))
        record["timespan"] = Timespan(min(span.begin, begin), max(span.end, end))
        record["exposure_time"] += info.exposure_time_s
        registry.syncDimensionData("visit", record, update=True)
    else:
        science = [d for d in camera.detectors if d.purpose == "SCIENCE"]
        pointing = (info.ra_deg, info.dec_deg, info.rotation_deg)
        regions = {d.id: camera.region(d, *pointing) for d in science}
        corners = [
            UnitVector3d(LonLat.fromDegrees(float(r), float(d))) for g in regions.values() for r, d in g.vertices
        ]
        registry.insertDimensionData("visit", _visit(camera, info, visit, ConvexPolygon.convexHull(corners)))
        registry.insertDimensionData("visit_system_membership", key | {"visit_system": VISIT_SYSTEM})
        registry.insertDimensionData(
            "visit_detector_region",
            *(key | {"detector": d, "region": region.to_sphgeom()} for d, region in regions.items()),
        )
    registry.insertDimensionData("visit_definition", key | {"exposure": info.exposure})


def _exposure(camera: Camera, info: ImageInfo) -> Mapping[str, Any]:
    sequence = info.exposure % 100_000
    physical = filter_named(camera, info)
    return {
        "instrument": camera.instrument,
        "id": info.exposure,
        "obs_id": image_name(info.exposure, camera.image_prefix),
        "physical_filter": physical.physical_filter if physical else NO_FILTER["name"],
        "group": info.group,
        "day_obs": day_obs_of(info.exposure),
        "exposure_time": info.exposure_time_s,
        "observation_type": "science" if info.image_type in _SKY else info.image_type.lower(),
        "seq_num": sequence,
        "seq_start": sequence - (info.snap - 1),
        "tracking_ra": _known(info.ra_deg),
        "tracking_dec": _known(info.dec_deg),
        "sky_angle": _known(info.rotation_deg),
        "can_see_sky": info.image_type in _SKY,
        "timespan": Timespan(_time(info.mjd_begin_tai), _time(info.mjd_end_tai)),
    }


def _visit(camera: Camera, info: ImageInfo, visit: int, region: ConvexPolygon) -> Mapping[str, Any]:
    return {
        "instrument": camera.instrument,
        "id": visit,
        "name": image_name(visit, camera.image_prefix),
        "physical_filter": camera.filter(info.physical_filter).physical_filter,
        "day_obs": day_obs_of(visit),
        "seq_num": visit % 100_000,
        "exposure_time": info.exposure_time_s,
        "timespan": Timespan(_time(info.mjd_begin_tai), _time(info.mjd_end_tai)),
        "region": region,
    }


def _known(number: float) -> float | None:
    return None if math.isnan(number) else number


def _time(mjd_tai: float) -> Time:
    return Time(mjd_tai, format="mjd", scale="tai")


def _day(info: ImageInfo) -> Timespan:
    noon = int(info.mjd_begin_tai - 0.5) + 0.5
    return Timespan(_time(noon), _time(noon + 1.0))
