"""What the doctor looks at in the repository: Butler, calibs valid tonight, templates for tonight's fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from astropy.time import Time
from sqlalchemy.exc import DatabaseError

from apflow.errors import ApflowError, BadRequest
from apflow.io.butler import Repository
from apflow.io.butler.create import DATASET_TYPES
from apflow.io.butler.ingest import CALIBS
from apflow.io.butler.inputs import find_calibs
from apflow.model.camera import Camera, Filter
from apflow.model.ids import day_obs, exposure_id
from apflow.model.next_visit import NextVisit
from apflow.model.visit import Visit
from apflow.operate.night.finding import Finding, failure, fine, warning

_MOST_NAMES = 4


@dataclass(frozen=True)
class Field:
    """Where the telescope will point tonight: ICRS and position angle, degrees; a filter, empty for all."""

    ra_deg: float
    dec_deg: float
    rotation_deg: float = 0.0
    physical_filter: str = ""


def read_fields(path: Path, camera: Camera) -> list[Field]:
    """Fields of a file of JSON lines: nextVisit events, or objects of ra, dec and, optional, rotation and filter.

    Raises
    ------
    BadRequest
        It cannot be read; the message names the line.
    """
    fields = []
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise BadRequest(f"--visits {path}: {error.strerror}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "position" in record:
                event = NextVisit.from_record(record)
                event.check(camera)
                ra, dec = event.position
                kinds = [camera.filter(f).physical_filter for f in event.filters] or [""]
                fields += [Field(ra, dec, event.camera_angle_deg, f) for f in kinds]
            else:
                kind = record.get("filter", "")
                known = camera.filter(kind).physical_filter if kind else ""
                fields.append(Field(float(record["ra"]), float(record["dec"]), float(record.get("rotation", 0)), known))
        except (ValueError, KeyError, TypeError, AttributeError, BadRequest) as error:
            accepted = "a nextVisit event, or an object with ra, dec, rotation and filter"
            raise BadRequest(f"--visits {path}, line {number}: {error}; accepted: {accepted}") from error
    return fields


def check_repository(root: Path, fields: Sequence[Field], now: Time) -> Iterator[Finding]:
    """Look at the Butler, at the calibs of tonight, and at the templates of tonight's fields.

    Parameters
    ----------
    now : `astropy.time.Time`
        When the calibs must be valid, TAI.
    """
    try:
        repository = Repository(root)
    except ApflowError as error:
        yield failure("Butler", str(error), f"apflow init {root}, or give the right --butler")
        return
    except (OSError, DatabaseError) as error:
        cause = error.orig if isinstance(error, DatabaseError) else error
        yield failure("Butler", f"{root}: {cause}", "give back what is missing of the repository")
        return
    with repository:
        yield _butler(repository)
        yield from _calibs(repository, now)
        yield from _templates(repository, fields, now)


def _butler(repository: Repository) -> Finding:
    where = f"{repository.root}, {repository.instrument}"
    known = {t.name for t in repository.butler.registry.queryDatasetTypes()}
    if missing := sorted({name for name, *_ in DATASET_TYPES} - known):
        remedy = "an earlier version made it: a night registers them when it begins"
        return warning("Butler", f"{where} lacks the dataset types {', '.join(missing[:_MOST_NAMES])}", remedy)
    return fine("Butler", f"{where}, {len(known)} dataset types")


def _calibs(repository: Repository, now: Time) -> Iterator[Finding]:
    science = {d.id: d.name for d in repository.camera.detectors if d.purpose == "SCIENCE"}
    night = f"{now.isot[:16]} TAI"
    flats = {
        f.physical_filter: find_calibs(repository, "flat", now, f.physical_filter) for f in repository.camera.filters
    }
    have = [name for name, found in flats.items() if found]
    for kind in (k for k in CALIBS if k != "flat"):
        yield _complete(kind, science, find_calibs(repository, kind, now, ""), night)
    if not have:
        yield failure("flat", f"none of any filter is valid at {night}", "apflow calib build flat, then calib certify")
    for name in have:
        yield _complete(f"flat {name}", science, flats[name], night)
    if have and (lacking := sorted(set(flats) - set(have))):
        remedy = "visits in these filters will end as no_calib: apflow calib build flat"
        yield warning("flat", f"none in {', '.join(lacking)}", remedy)


def _complete(kind: str, science: dict[int, str], found: Mapping[int, object], night: str) -> Finding:
    missing = [name for d, name in science.items() if d not in found]
    if missing:
        text = f"{len(missing)} of {len(science)} science detectors have none valid at {night}: {_some(missing)}"
        return failure(kind, text, f"apflow calib ls {kind.split()[0]}; build, then certify one for them")
    return fine(kind, f"all {len(science)} science detectors at {night}")


def _templates(repository: Repository, fields: Sequence[Field], now: Time) -> Iterator[Finding]:
    if not fields:
        yield fine("templates", "not looked for: --visits or --ra and --dec tell where")
        return
    names = {d.id: d.name for d in repository.camera.detectors if d.purpose == "SCIENCE"}
    without: list[str] = []
    starless: dict[str, None] = {}
    bare = 0
    for field in fields:
        where = f"RA {field.ra_deg:.3f} Dec {field.dec_deg:+.3f}"
        for kind in (f for f in repository.camera.filters if field.physical_filter in ("", f.physical_filter)):
            inputs = repository.find_inputs(_visit(repository.camera, field, kind, now), list(names))
            if lacking := [name for d, name in names.items() if not inputs[d].templates]:
                without.append(f"{where} {kind.physical_filter}: {_part(lacking, len(names))}")
            if dark := [name for d, name in names.items() if not inputs[d].reference]:
                bare += len(dark) == len(names)
                starless[f"{where}: {_part(dark, len(names))}"] = None
    if without:
        remedy = "these will end as no_template, without alerts: ingest templates of these fields"
        yield warning("templates", "missing at " + _some(without, "; "), remedy)
    else:
        yield fine("templates", f"for all detectors at {len(fields)} fields")
    remedy = "without stars there is no astrometry: ingest a reference catalogue of these fields"
    if starless:
        yield (failure if bare else warning)("reference stars", "none at " + _some(list(starless), "; "), remedy)
    else:
        yield fine("reference stars", f"for all detectors at {len(fields)} fields")


def _visit(camera: Camera, field: Field, kind: Filter, now: Time) -> Visit:
    """A visit of the night that never was: number 0."""
    return Visit(
        instrument=camera.instrument,
        visit=exposure_id(day_obs(now.mjd), 0),
        group="",
        ra_deg=field.ra_deg,
        dec_deg=field.dec_deg,
        rotation_deg=field.rotation_deg,
        physical_filter=kind.physical_filter,
        band=kind.band,
        exposure_time_s=0.0,
        images=("",),
    )


def _part(names: Sequence[str], of: int) -> str:
    return f"all {of} detectors" if len(names) == of else f"{len(names)} of {of} ({_some(names)})"


def _some(names: Sequence[str], separator: str = ", ") -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return separator.join(names[:_MOST_NAMES]) + more
