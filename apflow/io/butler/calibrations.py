"""What a calibration exposure needs from the repository, and what is found of it, by a handful of queries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from astropy.time import Time
from lsst.daf.butler import DatasetRef, DimensionRecord, MissingDatasetTypeError
from lsst.daf.butler.registry import (  # type: ignore[attr-defined]
    CollectionType,
    ConflictingDefinitionError,
    MissingCollectionError,
)

from apflow.io.butler import paths
from apflow.io.butler.create import register_types
from apflow.io.butler.ingest import ingest
from apflow.io.butler.inputs import copy_paths, find_calibs, local_paths
from apflow.io.butler.repository import Repository, service
from apflow.model.calibration import SAME_LIGHT, CalibrationExposure, CalibrationPlan, Intent
from apflow.model.ids import day_obs_of, mid_night, parse_image_name
from apflow.model.products import OutputFile

#: Earlier flats of which the latest that has an image of a detector is its partner.
_MOST_PARTNERS = 3


@service
def find_plan(repository: Repository, exposure: CalibrationExposure, detectors: Sequence[int]) -> CalibrationPlan:
    """Resolve the inputs of all detectors of an exposure.

    Masters are those valid when the exposure began, or in the middle of its
    night while it is not registered.
    """
    record = _record(repository, exposure.exposure)
    time = record.timespan.begin if record else Time(mid_night(exposure.exposure), format="mjd", scale="tai")
    known = {f.physical_filter for f in repository.camera.filters}
    physical_filter = exposure.physical_filter or (record.physical_filter if record else "")
    physical_filter = physical_filter if physical_filter in known else ""
    found = _masters(repository, exposure.intent, time, physical_filter)
    refs = [ref for of in found.values() for ref in of.values()]
    local, copies = local_paths(repository, refs), copy_paths(repository, refs)
    partners = _partners(repository, exposure, physical_filter) if exposure.intent is Intent.FLAT else []
    return CalibrationPlan(
        exposure,
        paths.checks_run(exposure.instrument, exposure.exposure),
        masters={d: {kind: local[of[d].id] for kind, of in found.items() if d in of} for d in detectors},
        partners={d: tuple(_raw(repository, number, d) for number in partners) for d in detectors},
        copies={local[key]: copy for key, copy in copies.items()},
    )


def _record(repository: Repository, exposure: int) -> DimensionRecord | None:
    records = repository.butler.query_dimension_records(
        "exposure", instrument=repository.instrument, exposure=exposure, explain=False
    )
    return records[0] if records else None


def _masters(
    repository: Repository, intent: Intent, time: Time, physical_filter: str
) -> dict[str, dict[int, DatasetRef]]:
    """Masters by what they are called in a plan, by detector."""
    filters = (
        {"": physical_filter}
        if physical_filter
        else {f" {f.physical_filter}": f.physical_filter for f in repository.camera.filters}
    )
    found: dict[str, dict[int, DatasetRef]] = {}
    for kind in intent.masters:
        if kind == "flat":
            found |= {kind + suffix: find_calibs(repository, kind, time, name) for suffix, name in filters.items()}
        else:
            found[kind] = find_calibs(repository, kind, time, "")
    return found


def _partners(repository: Repository, exposure: CalibrationExposure, physical_filter: str) -> list[int]:
    """Exposures that may be an earlier flat of the same light, the best first.

    The one that is named, or else the latest earlier flats of the night with
    the same filter and exposure time. The exposure right before comes first
    while nobody knows what it is: images of a pair are often registered after
    the second was announced.
    """
    if exposure.partner:
        return [parse_image_name(exposure.partner).exposure]
    number, before = exposure.exposure, exposure.exposure - 1
    records = repository.butler.query_dimension_records(
        "exposure",
        instrument=exposure.instrument,
        where="exposure.day_obs = day AND exposure.id < number AND "
        "(exposure.observation_type = 'flat' OR exposure.id = before)",
        bind={"day": day_obs_of(number), "number": number, "before": before},
        limit=None,
        explain=False,
    )
    same = [r.id for r in records if _same_light(r, physical_filter, exposure.exposure_time_s)]
    unknown = [] if before in {r.id for r in records} else [before]
    return [*unknown, *sorted(same, reverse=True)[:_MOST_PARTNERS]]


def _raw(repository: Repository, exposure: int, detector: int) -> str:
    camera = repository.camera
    name = camera.detector(detector).name
    return str(paths.raw_path(repository.root, camera.instrument, exposure, camera.image_prefix, name))


def _same_light(record: DimensionRecord, physical_filter: str, exposure_time_s: float) -> bool:
    if record.observation_type != Intent.FLAT or physical_filter not in ("", record.physical_filter):
        return False
    return bool(abs(record.exposure_time - exposure_time_s) <= SAME_LIGHT * exposure_time_s)


@service
def register_checks(repository: Repository, run: str, outputs: Iterable[tuple[OutputFile, Mapping[str, Any]]]) -> int:
    """Register files with their data ids by one ingest; those that are registered are left as they are.

    A repository that an earlier version made gets the dataset types and collections that it lacks.

    Returns
    -------
    registered : `int`
        How many files were given.
    """
    butler, instrument = repository.butler, repository.instrument
    files = [(Path(o.path), o.dataset_type, {"instrument": instrument, **data_id}) for o, data_id in outputs]
    _join_chain(repository, run)
    try:
        ingest(butler, run, files)
    except MissingDatasetTypeError:
        register_types(butler)
        ingest(butler, run, files)
    except ConflictingDefinitionError:
        # A gather that was run again elsewhere was faster: what it registered is now skipped.
        ingest(butler, run, files)
    return len(files)


def _join_chain(repository: Repository, run: str) -> None:
    collections, chain = repository.butler.collections, paths.checks_chain(repository.instrument)
    collections.register(run)
    try:
        children = collections.get_info(chain).children
    except MissingCollectionError:
        collections.register(chain, CollectionType.CHAINED)
        children = ()
    if run not in children:
        collections.prepend_chain(chain, run)
