"""The arguments of a visit's jobs: from the summit's events, or of a visit whose raw images are registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apflow.errors import BadRequest
from apflow.io.butler import Repository
from apflow.model.calibration import refuse_calibration
from apflow.model.camera import Camera
from apflow.model.ids import image_name
from apflow.model.next_visit import NextVisit, StartIntegration
from apflow.operate.batch.submission import VisitArguments


def read_event(path: Path) -> dict[str, Any]:
    """The fields of an event in a JSON file.

    Raises
    ------
    BadRequest
        The file can't be read, or holds no JSON object.
    """
    try:
        fields = json.loads(path.read_text())
    except OSError as error:
        raise BadRequest(f"event {path}: {error.strerror}; accepted: a JSON file with the event's fields") from error
    except ValueError as error:
        raise BadRequest(f"event {path} is no JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadRequest(f"event {path} is not accepted: a JSON object with the event's fields")
    return fields


def from_next_visit(event: NextVisit, camera: Camera, exposure_time_s: float | None = None) -> VisitArguments:
    """Arguments of the visit that an event announces; the images have no names yet.

    Parameters
    ----------
    event : `apflow.model.next_visit.NextVisit`
    camera : `apflow.model.camera.Camera`
    exposure_time_s : `float`, optional
        For an event that doesn't carry it, as the summit's do not.

    Raises
    ------
    BadRequest
        The event is another instrument's, names an unknown filter, or no
        visit can be prepared from it.
    """
    event.check(camera)
    if event.unfit:
        raise BadRequest(event.unfit)
    one = event.filters[0] if len(event.filters) == 1 else ""
    return VisitArguments(
        group=event.group,
        ra_deg=event.position[0],
        dec_deg=event.position[1],
        physical_filter=camera.filter(one).physical_filter if one else "",
        exposure_time_s=exposure_time_s if event.exposure_time_s is None else event.exposure_time_s,
    )


def images_of(start: StartIntegration, group: str, camera: Camera, nimages: int = 0) -> tuple[str, ...]:
    """Names of a visit's images, one a snap, from the first startIntegration of its group.

    Parameters
    ----------
    start : `apflow.model.next_visit.StartIntegration`
    group : `str`
        Of the visit.
    camera : `apflow.model.camera.Camera`
    nimages : `int`, optional
        Snaps as nextVisit told them, for an event that does not; 0 where unknown.

    Raises
    ------
    BadRequest
        The event is another group's, or a calibration's.
    """
    refuse_calibration(start.image, start.image_type)
    if start.group and group and start.group != group:
        raise BadRequest(f"startIntegration of group {start.group!r} is not the visit's, {group!r}")
    snaps = start.nsnaps or nimages or 1
    return tuple(image_name(start.first_exposure + snap, camera.image_prefix) for snap in range(snaps))


def from_repository(which: str, butler: str) -> VisitArguments:
    """Arguments of a visit whose raw images are registered.

    Parameters
    ----------
    which : `str`
        Its id, its group, or the name of an image of it.
    butler : `str`
        Root of the repository.

    Raises
    ------
    BadRequest
        There is none, or it is none of the sky.
    """
    with Repository(butler) as repository:
        records = repository.butler.query_dimension_records(
            "exposure",
            instrument=repository.instrument,
            where="exposure.group = name OR exposure.obs_id = name OR exposure = number",
            bind={"name": which, "number": _number(which)},
            explain=False,
        )
        groups = {record.group for record in records}
        if not groups:
            raise BadRequest(
                f"visit {which!r} is neither a JSON file of nextVisit nor registered in {butler}; accepted there: "
                "a visit's id, its group, the name of an image"
            )
        snaps = sorted(
            repository.butler.query_dimension_records(
                "exposure",
                instrument=repository.instrument,
                where="exposure.group = name",
                bind={"name": groups.pop()},
            ),
            key=lambda record: record.id,
        )
    first = snaps[0]
    refuse_calibration(first.obs_id, first.observation_type)
    if first.tracking_ra is None:
        raise BadRequest(f"visit {which!r} is not one of the sky: {first.obs_id} is a {first.observation_type}")
    return VisitArguments(
        group=first.group,
        ra_deg=first.tracking_ra,
        dec_deg=first.tracking_dec,
        physical_filter=first.physical_filter,
        exposure_time_s=first.exposure_time,
        images=tuple(record.obs_id for record in snaps),
    )


def _number(text: str) -> int:
    """The id that a text may be; 0, which nothing has, where it is none."""
    return int(text) if text.isdecimal() and len(text) <= 18 else 0
