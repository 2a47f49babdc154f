"""One detector by hand: the command of DMTN-092 section 2.2."""

from __future__ import annotations

import dataclasses
import sys

import pandas as pd

from apflow.errors import BadRequest
from apflow.graphs import alert_production
from apflow.io.arrivals import await_named_images
from apflow.io.fits import read_info
from apflow.io.ppdb import Ppdb, open_ppdb
from apflow.model import ids
from apflow.model.camera import Camera, Detector, load_camera
from apflow.model.exposure import ImageInfo
from apflow.model.ledger import Outcome, State
from apflow.model.sky import separation_arcsec
from apflow.model.visit import Visit
from apflow.operate.recover import recover
from apflow.operate.repository import repository_config
from apflow.run import EagerRunner

#: Announced and actual boresight may differ by this before it is reported, arcsec.
_POINTING_TOLERANCE = 60.0


def process_detector(
    ccd: str,
    ra_deg: float,
    dec_deg: float,
    exposure_time_s: float,
    physical_filter: str,
    butler: str,
    images: tuple[str, ...],
    *,
    ppdb: str = "",
    alerts: str = "",
    timeout_s: float = 120.0,
) -> Outcome:
    """Run the graph of alert production for one CCD, here and now.

    The arguments are those of DMTN-092 section 2.1. They do not say how the
    camera is rotated, so the image is awaited first and the rotation, like
    everything else, taken from its header.

    Returns
    -------
    outcome : `Outcome`
        How the detector-visit ended; one that was done before is left as it is.

    Raises
    ------
    BadRequest
        An argument is not acceptable.
    """
    if not timeout_s >= 0:
        raise BadRequest(f"timeout {timeout_s} s is not accepted: 0 or more")
    config = repository_config(butler, ppdb, alerts, timeout_s)
    camera = load_camera(config.camera, config.size)
    detector = camera.detector(ccd)
    exposures = _exposures(images, camera, detector)
    announced = camera.filter(physical_filter) if physical_filter else None
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
    with open_ppdb(config.ppdb_url, create=True) as database:
        for outcome in outcomes_of(database):
            if (outcome.visit, outcome.detector, outcome.state) == (visit.visit, detector.id, State.DONE):
                # Again would only leave the same alerts in the archive twice; a run that was killed may owe the rest.
                return recover(database, [visit], [outcome], config)[0]
        path = await_named_images(config.butler, camera.instrument, visit.images, detector.id, timeout_s)
        visit = _with_header(visit, read_info(path))
        outcomes: tuple[Outcome, ...] = EagerRunner().run(alert_production.visit, visit, [detector.id], config)
    return outcomes[0]


def outcomes_of(ppdb: Ppdb) -> list[Outcome]:
    """What the ledger of a PPDB says of the detector-visits that came to an end."""
    ledger = ppdb.ledger()
    ended = ledger[ledger["state"].isin([str(state) for state in State])]
    return [
        Outcome(
            row["instrument"],
            int(row["visit"]),
            int(row["detector"]),
            State(row["state"]),
            cause=row["cause"] or "",
            step=row["step"] or "",
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


def _exposures(images: tuple[str, ...], camera: Camera, detector: Detector) -> list[int]:
    """Exposure ids of image names, which must be of this camera, of this detector if of any, and differ."""
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
    return exposures


def _with_header(visit: Visit, info: ImageInfo) -> Visit:
    """The visit with what only the header knows; where the two disagree, the header is right and it is said."""
    offset = float(separation_arcsec(visit.ra_deg, visit.dec_deg, info.ra_deg, info.dec_deg))
    if offset > _POINTING_TOLERANCE:
        print(
            f"warning: the header's boresight is {offset:.0f} arcsec from the announced one; the header's is used",
            file=sys.stderr,
        )
    if visit.physical_filter and visit.physical_filter != info.physical_filter:
        raise BadRequest(
            f"filter {visit.physical_filter!r} was given; the image was taken with {info.physical_filter!r}"
        )
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
