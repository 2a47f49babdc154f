"""What ``apflow calib build`` was asked for: exposures, detectors and a range of time, found and checked."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence
from dataclasses import dataclass

from astropy.time import Time
from lsst.daf.butler import DimensionRecord, MissingDatasetTypeError, Timespan
from lsst.daf.butler.registry import MissingCollectionError  # type: ignore[attr-defined]

from apflow.errors import BadRequest
from apflow.io.butler import Repository, paths
from apflow.io.butler.inputs import local_paths
from apflow.model.calibration import SAME_LIGHT, Intent
from apflow.model.ids import day_obs_of, parse_image_name

#: With fewer a cosmic ray cannot be told from the pixel.
MIN_FRAMES = 3
_DARK_OR_FLAT = (Intent.DARK, Intent.FLAT)


@dataclass(frozen=True)
class Chosen:
    """The images from which to choose exposures; all empty for the latest day that has any.

    Attributes
    ----------
    images : `tuple` [`str`, ...]
        By name.
    first, last : `str`
        Or all of the intent from one name to another, both included.
    day_obs : `int` or `None`
        Or all of a day of observation.
    physical_filter : `str`
        Of flats; empty for whatever filter they are in.
    """

    images: tuple[str, ...] = ()
    first: str = ""
    last: str = ""
    day_obs: int | None = None
    physical_filter: str = ""


@dataclass(frozen=True)
class Frame:
    """One raw image of a detector, and where the checks of it are, if there are any."""

    image: str
    exposure: int
    path: str
    checks: str = ""


def find_exposures(repository: Repository, intent: Intent, chosen: Chosen) -> list[DimensionRecord]:
    """Records of the exposures to combine, in order.

    Raises
    ------
    BadRequest
        An image is not registered, of another intent or filter; exposures
        differ in time or filter; or there are fewer than `MIN_FRAMES`.
    """
    records = _named(repository, chosen.images, intent) if chosen.images else _those_of(repository, intent, chosen)
    if chosen.physical_filter:
        name = repository.camera.filter(chosen.physical_filter).physical_filter
        other = [r for r in records if r.physical_filter != name]
        if other and chosen.images:
            raise BadRequest(f"image {other[0].obs_id} is in filter {other[0].physical_filter}; accepted: {name}")
        records = [r for r in records if r.physical_filter == name]
    if len(records) < MIN_FRAMES:
        names = ", ".join(r.obs_id for r in records) or "none"
        raise BadRequest(f"{len(records)} {intent} exposures ({names}) are too few; accepted: {MIN_FRAMES} or more")
    _check_alike(records, intent)
    return records


def _check_alike(records: Sequence[DimensionRecord], intent: Intent) -> None:
    first = records[0]
    for other in records[1:]:
        if intent is Intent.FLAT and other.physical_filter != first.physical_filter:
            raise BadRequest(
                f"{first.obs_id} is in filter {first.physical_filter}, {other.obs_id} in {other.physical_filter}; "
                "accepted: one of them, by --filter"
            )
        if abs(other.exposure_time - first.exposure_time) > SAME_LIGHT * first.exposure_time:
            raise BadRequest(
                f"{first.obs_id} was exposed for {first.exposure_time:g} s, {other.obs_id} for "
                f"{other.exposure_time:g} s; accepted: exposures of one time, by --image or --from and --to"
            )


def _named(repository: Repository, images: Sequence[str], intent: Intent) -> list[DimensionRecord]:
    numbers = [parse_image_name(name).exposure for name in images]
    if len(set(numbers)) < len(numbers):
        raise BadRequest(f"images {' '.join(images)} are not accepted: each once")
    found = {r.id: r for r in _query(repository, "exposure IN (numbers)", {"numbers": numbers})}
    for number, name in zip(numbers, images, strict=True):
        if number not in found:
            raise BadRequest(f"image {name} is not registered in {repository.root}")
        if found[number].observation_type != intent:
            raise BadRequest(f"image {name} is of type {found[number].observation_type}; accepted: {intent}")
    return [found[number] for number in sorted(numbers)]


def _those_of(repository: Repository, intent: Intent, chosen: Chosen) -> list[DimensionRecord]:
    where = "exposure.observation_type = intent"
    bind: dict[str, object] = {"intent": str(intent)}
    if chosen.first or chosen.last:
        if not (chosen.first and chosen.last):
            raise BadRequest(f"images from {chosen.first!r} to {chosen.last!r} are not accepted: give both")
        limits = {key: parse_image_name(name).exposure for key, name in (("low", chosen.first), ("high", chosen.last))}
        return _query(repository, f"{where} AND exposure.id >= low AND exposure.id <= high", bind | limits)
    day = chosen.day_obs or latest_day(repository, (intent,))
    return _query(repository, f"{where} AND exposure.day_obs = day", bind | {"day": day}) if day else []


def latest_day(repository: Repository, intents: Sequence[Intent] = _DARK_OR_FLAT) -> int | None:
    """The latest day of observation with exposures of some intents; None where there is none."""
    records = repository.butler.query_dimension_records(
        "exposure",
        instrument=repository.instrument,
        where="exposure.observation_type IN (intents)",
        bind={"intents": [str(i) for i in intents]},
        order_by=["-exposure.id"],
        limit=1,
        explain=False,
    )
    return records[0].day_obs if records else None


def _query(repository: Repository, where: str, bind: dict[str, object]) -> list[DimensionRecord]:
    records = repository.butler.query_dimension_records(
        "exposure", instrument=repository.instrument, where=where, bind=bind, limit=None, explain=False
    )
    return sorted(records, key=lambda r: r.id)


def find_frames(
    repository: Repository, exposures: Sequence[DimensionRecord], detectors: Sequence[int]
) -> dict[int, list[Frame]]:
    """Raw images of some exposures by detector, with their checks.

    Parameters
    ----------
    detectors : sequence of `int`
        Empty for all that have one.

    Raises
    ------
    BadRequest
        A detector has fewer than `MIN_FRAMES`.
    """
    names = {r.id: r.obs_id for r in exposures}
    raws, checks = _files(repository, "raw", list(names)), _files(repository, "calibration_metrics", list(names))
    found: dict[int, list[Frame]] = {d: [] for d in detectors or sorted({d for _, d in raws})}
    for (exposure, detector), path in sorted(raws.items()):
        if detector in found:
            checked = checks.get((exposure, detector), "")
            found[detector].append(Frame(names[exposure], exposure, path, checked))
    for detector, frames in found.items():
        if len(frames) < MIN_FRAMES:
            name = repository.camera.detector(detector).name
            raise BadRequest(f"{name} has {len(frames)} raws of {len(names)} exposures; accepted: {MIN_FRAMES} or more")
    return found


def _files(repository: Repository, dataset_type: str, exposures: list[int]) -> dict[tuple[int, int], str]:
    """Paths by exposure and detector."""
    instrument = repository.instrument
    of_raws = dataset_type == "raw"
    collection = paths.raw_run(instrument) if of_raws else paths.checks_chain(instrument)
    try:
        refs = repository.butler.query_datasets(
            dataset_type,
            collection,
            instrument=instrument,
            where="exposure IN (exposures)",
            bind={"exposures": exposures},
            limit=None,
            explain=False,
        )
    except (MissingDatasetTypeError, MissingCollectionError):  # nothing was checked yet
        return {}
    local = local_paths(repository, refs)
    return {(int(r.dataId["exposure"]), int(r.dataId["detector"])): local[r.id] for r in refs}


def parse_time(text: str) -> Time:
    """A time in TAI: a day of observation (YYYYMMDD, which begins at noon), an MJD, or ISO 8601.

    Raises
    ------
    BadRequest
        It is none of these.
    """
    try:
        if text.isdigit() and len(text) == 8:
            return begin_of_day(int(text))
        if text.replace(".", "", 1).isdigit():
            return Time(float(text), format="mjd", scale="tai")
        return Time(text, scale="tai")
    except ValueError:
        raise BadRequest(f"time {text!r} is not accepted: YYYYMMDD, an MJD, or YYYY-MM-DDThh:mm:ss, in TAI") from None


def begin_of_day(day: int) -> Time:
    """Noon TAI, when a day of observation begins."""
    date = dt.datetime.strptime(str(day), "%Y%m%d").date()
    return Time((date - dt.date(1858, 11, 17)).days + 0.5, format="mjd", scale="tai")


def begin_of(exposures: Sequence[DimensionRecord]) -> Time:
    """When the day of observation of the latest of some exposures begins."""
    return begin_of_day(day_obs_of(exposures[-1].id))


def span_of(begin: Time, end: Time | None) -> Timespan:
    """A range of time that is not empty.

    Raises
    ------
    BadRequest
        It is empty.
    """
    if end is not None and not begin < end:
        raise BadRequest(f"validity from {begin.isot[:19]} to {end.isot[:19]} is empty; accepted: begin before end")
    return Timespan(begin, end)
