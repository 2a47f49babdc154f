"""One detector by hand: the command of DMTN-092 section 2.2."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence

import pandas as pd

from apflow.config import Config
from apflow.errors import ApflowError, BadRequest, DataError, ImageTimeout
from apflow.io.arrivals import await_named_images
from apflow.io.fits import read_info
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.model import ids
from apflow.model.calibration import refuse_calibration
from apflow.model.camera import Camera, Detector, load_camera
from apflow.model.exposure import ImageInfo
from apflow.model.ledger import Outcome, State
from apflow.model.sky import separation_arcsec
from apflow.model.visit import Visit
from apflow.operate.recover import recover
from apflow.operate.repository import repository_config

#: Announced and actual boresight may differ by this before it is reported, arcsec.
_POINTING_TOLERANCE = 60.0
#: And exposure times by this part of the announced one: the shutter takes a little more or less.
_EXPOSURE_TOLERANCE = 0.05


@dataclasses.dataclass(frozen=True)
class Request:
    """The arguments of DMTN-092 section 2.1, checked.

    Attributes
    ----------
    camera : `Camera`
    detector : `Detector`
    visit : `Visit`
        As announced: rotation and group are those of the header, which is not there yet.
    config : `Config`
    """

    camera: Camera
    detector: Detector
    visit: Visit
    config: Config


def check_request(
    ccd: str,
    ra_deg: float,
    dec_deg: float,
    exposure_time_s: float,
    physical_filter: str,
    butler: str,
    images: Sequence[str],
    *,
    ppdb: str = "",
    alerts: str = "",
    timeout_s: float = 120.0,
) -> Request:
    """Check the arguments of one CCD; a filter that is empty or ``none`` is that of the header.

    Raises
    ------
    BadRequest
        One is not acceptable; the message names it and what is.
    """
    if not timeout_s >= 0:
        raise BadRequest(f"timeout {timeout_s} s is not accepted: 0 or more")
    config = repository_config(butler, ppdb, alerts, timeout_s)
    camera = load_camera(config.camera, config.size)
    detector = camera.detector(ccd)
    exposures = _exposures(images, camera, detector)
    given = physical_filter if physical_filter.lower() != "none" else ""
    announced = camera.filter(given) if given else None
    visit = Visit(
        instrument=camera.instrument,
        visit=exposures[0],
        group="",
        ra_deg=ra_deg,
        dec_deg=dec_deg,
        rotation_deg=0.0,
        physical_filter=announced.physical_filter if announced else "",
        band=announced.band if announced else "",
        exposure_time_s=exposure_time_s,
        images=tuple(ids.image_name(exposure, camera.image_prefix) for exposure in exposures),
    )
    return Request(camera, detector, visit, config)


def process_detector(request: Request) -> Outcome:
    """Run the graph of alert production for one CCD, here and now.

    The arguments do not say how the camera is rotated, so the image is awaited
    first and the rotation, like everything else, taken from its header.

    Returns
    -------
    outcome : `Outcome`
        How the detector-visit ended; one that was done before is left as it is.

    Raises
    ------
    ImageTimeout, DataError
        No image came in time, or none that can be read; the ledger says so, too.
    """
    # The steps take as long to import as the rest of what batch jobs need before their image is there.
    from apflow.graphs import alert_production
    from apflow.run import EagerRunner

    with open_ppdb(request.config.ppdb_url, create=True) as database:
        if (before := done_before(database, request)) is not None:
            return before
        visit, config = await_visit(database, request)
        outcomes: tuple[Outcome, ...] = EagerRunner().run(alert_production.visit, visit, [request.detector.id], config)
    return outcomes[0]


def done_before(database: Ppdb, request: Request) -> Outcome | None:
    """The outcome of a detector-visit that is done already; what an end of its process left over is seen to."""
    for outcome in outcomes_of(database, [request.visit.visit]):
        if (outcome.detector, outcome.state) == (request.detector.id, State.DONE):
            # Again would only leave the same alerts in the archive twice; a run that was killed may owe the rest.
            return recover(database, [request.visit], [outcome], request.config)[0]
    return None


def await_visit(database: Ppdb, request: Request) -> tuple[Visit, Config]:
    """Wait for the first image of a visit.

    Returns
    -------
    visit : `Visit`
        With what the header tells.
    config : `Config`
        With the time that is left to wait for another snap.

    Raises
    ------
    ImageTimeout, DataError
        No image came in time, or none that can be read; the ledger says so, too.
    """
    visit, config, detector = request.visit, request.config, request.detector.id
    deadline = time.monotonic() + config.timing.image_timeout_s
    try:
        path = await_named_images(
            config.butler, visit.instrument, visit.images, detector, config.timing.image_timeout_s
        )
        visit = _with_header(visit, read_info(path))
    except (ImageTimeout, DataError) as error:
        state, cause = State(error.state), f"{type(error).__name__}: {error}"
        ended = Outcome(visit.instrument, visit.visit, detector, state, cause, "await_science_images")
        database.settle([ended])
        _measure(visit, ended, config)
        raise
    left_s = max(0.0, deadline - time.monotonic())
    return visit, dataclasses.replace(config, timing=dataclasses.replace(config.timing, image_timeout_s=left_s))


def _measure(visit: Visit, ended: Outcome, config: Config) -> None:
    """Keep the metrics of a detector-visit that came to its end before the graph began."""
    from apflow.steps.metrics import keep_metrics

    try:
        keep_metrics(visit, [ended], config)
    except ApflowError as error:
        _warn(f"the metrics of visit {visit.visit} detector {ended.detector} are not kept: {error}")


def outcomes_of(ppdb: Ppdb, visits: Sequence[int] | None = None) -> list[Outcome]:
    """What the ledger of a PPDB says of the detector-visits that came to an end; of all, or of some visits."""
    ledger = ppdb.table("ledger", None if visits is None else {"visit": visits})
    ended = ledger[ledger["state"].isin([str(state) for state in State])]
    return [
        Outcome(
            row["instrument"],
            int(row["visit"]),
            int(row["detector"]),
            State(row["state"]),
            cause=_text(row["cause"]),
            step=_text(row["step"]),
            n_sources=int(row["n_sources"]),
            n_alerts=int(row["n_alerts"]),
            arrived_unix=_time(row["arrived_unix"]),
            stored_unix=_time(row["stored_unix"]),
            published_unix=_time(row["published_unix"]),
        )
        for row in ended.to_dict("records")
    ]


def _time(value: float) -> float | None:
    return None if pd.isna(value) else float(value)


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _exposures(images: Sequence[str], camera: Camera, detector: Detector) -> list[int]:
    """Exposure ids of image names in order; names must be of this camera, of this detector if of any, and differ."""
    form = f"{camera.image_prefix}_YYYYMMDD_NNNNNN"
    exposures = []
    for name in images:
        parts = ids.parse_image_name(name)
        if not name.startswith(camera.image_prefix):
            raise BadRequest(f"image {name!r} is not one of {camera.instrument}; accepted: {form}")
        if parts.detector not in (None, detector.name):
            raise BadRequest(f"image {name!r} is not one of {detector.name}; accepted: {form}[_{detector.name}]")
        exposures.append(parts.exposure)
    if len(set(exposures)) != len(images) or not 1 <= len(images) <= 2:
        raise BadRequest(f"images {' '.join(images)} are not accepted: one, or the two snaps of a visit")
    return sorted(exposures)


def _with_header(visit: Visit, info: ImageInfo) -> Visit:
    """The visit with what the header tells; where it was announced otherwise, the header is right and it is said."""
    refuse_calibration(" ".join(visit.images), info.image_type)
    offset = float(separation_arcsec(visit.ra_deg, visit.dec_deg, info.ra_deg, info.dec_deg))
    if offset > _POINTING_TOLERANCE:
        _warn(f"the header's boresight is {offset:.0f} arcsec from the announced one; the header's is used")
    if visit.physical_filter and visit.physical_filter != info.physical_filter:
        filters = f"the header's filter is {info.physical_filter!r}, announced was {visit.physical_filter!r}"
        _warn(f"{filters}; the header's is used")
    if abs(info.exposure_time_s - visit.exposure_time_s) > _EXPOSURE_TOLERANCE * visit.exposure_time_s:
        times = f"the header's exposure time is {info.exposure_time_s:g} s, announced were {visit.exposure_time_s:g} s"
        _warn(f"{times}; the header's is used")
    return dataclasses.replace(
        visit,
        group=info.group,
        ra_deg=info.ra_deg,
        dec_deg=info.dec_deg,
        rotation_deg=info.rotation_deg,
        physical_filter=info.physical_filter,
        band=info.band,
        exposure_time_s=info.exposure_time_s,
    )


def _warn(what: str) -> None:
    print(f"warning: {what}", file=sys.stderr)
