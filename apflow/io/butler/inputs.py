"""What a visit needs from the repository, found by a handful of queries for all its detectors."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from astropy.time import Time
from lsst.daf.butler import DatasetRef, MissingDatasetTypeError
from lsst.daf.butler.datastore import DatasetRefURIs, Datastore
from lsst.daf.butler.datastores.chainedDatastore import ChainedDatastore

from apflow.io.butler import paths
from apflow.io.butler.ingest import CALIBS, HTM
from apflow.model.camera import Camera
from apflow.model.ids import day_obs_of
from apflow.model.products import InputRef, Inputs
from apflow.model.region import Region
from apflow.model.visit import Visit

if TYPE_CHECKING:
    from apflow.io.butler.repository import Repository

#: Pointing errors reach 2" and rotation errors 32" (LDM-151): 2 px at the edge of the field.
_MARGIN_ARCSEC = 10.0


def find_inputs(repository: Repository, visit: Visit, detectors: Sequence[int], camera: Camera) -> dict[int, Inputs]:
    """Files that each detector of a visit reads.

    Calibs are those valid at the visit's time: that of its images where they
    are registered, else the middle of its night. Flats and templates are found
    by the visit's filter; where the announcement leaves it open, the filter of
    the registered images is taken, and without those there are none.

    Returns
    -------
    inputs : `dict` [`int`, `Inputs`]
        By detector; a calib is None where none is valid, templates and
        reference shards are empty where none overlaps; predictions of Solar
        System objects are None where nobody made any.
    """
    regions = {
        d: camera.region(camera.detector(d), visit.ra_deg, visit.dec_deg, visit.rotation_deg, _MARGIN_ARCSEC)
        for d in detectors
    }
    time, physical_filter, band = _circumstances(repository, visit)
    calibs = {kind: find_calibs(repository, kind, time, physical_filter) for kind in CALIBS}
    skymap, cells, templates = _templates(repository, regions, band)
    shards = {d: _shards(region) for d, region in regions.items()}
    reference = _reference(repository, {s for of in shards.values() for s in of})
    moving = _ss_objects(repository, visit.group)
    fast = [*templates.values(), *reference.values(), *(ref for kind in calibs.values() for ref in kind.values())]
    local, copies = local_paths(repository, [*fast, *moving.values()]), copy_paths(repository, fast)
    found: dict[int, Inputs] = {}
    for d in detectors:
        one = {kind: calibs[kind][d] for kind in CALIBS if d in calibs[kind]}
        of_cells = [(t, p, templates[t, p]) for t, p in cells[d] if (t, p) in templates]
        stars = [reference[s] for s in shards[d] if s in reference]
        predicted = [moving[d]] if d in moving else []
        refs = [*one.values(), *(ref for *_, ref in of_cells), *stars, *predicted]
        found[d] = Inputs(
            **{kind: local[one[kind].id] if kind in one else None for kind in CALIBS},
            templates=tuple((t, p, local[ref.id]) for t, p, ref in of_cells),
            reference=tuple(local[ref.id] for ref in stars),
            skymap=skymap,
            ss_objects=local[moving[d].id] if d in moving else None,
            refs=tuple(InputRef(ref.datasetType.name, ref.run, str(ref.id)) for ref in refs),
            copies={local[ref.id]: copies[ref.id] for ref in refs if ref.id in copies},
        )
    return found


def _circumstances(repository: Repository, visit: Visit) -> tuple[Time, str, str]:
    """Time, physical filter and band of a visit."""
    records = repository.butler.query_dimension_records(
        "visit", instrument=visit.instrument, visit=visit.visit, explain=False
    )
    physical_filter, band = visit.physical_filter, visit.band
    if records:
        if not physical_filter:
            physical_filter = records[0].physical_filter
            band = repository.camera.filter(physical_filter).band
        return records[0].timespan.begin, physical_filter, band
    day = day_obs_of(visit.visit)
    try:
        date = dt.date(day // 10_000, day // 100 % 100, day % 100)
    except ValueError:
        return Time.now().tai, physical_filter, band
    # A day of observation runs from noon to noon TAI.
    return Time((date - dt.date(1858, 11, 17)).days + 1.0, format="mjd", scale="tai"), physical_filter, band


def find_calibs(repository: Repository, kind: str, time: Time, physical_filter: str) -> dict[int, DatasetRef]:
    """Calibs of one kind that are valid at a time, by detector."""
    where: dict[str, Any] = {"instrument": repository.instrument}
    if kind == "flat":
        if not physical_filter:
            return {}
        where["physical_filter"] = physical_filter
    with repository.butler.query() as query:
        valid = query.expression_factory[kind].timespan.overlaps(time)
        datasets = query.datasets(kind, paths.calib_collection(repository.instrument), find_first=False)
        return {int(ref.dataId["detector"]): ref for ref in datasets.where(valid, **where)}


def _templates(
    repository: Repository, regions: Mapping[int, Region], band: str
) -> tuple[str, dict[int, list[tuple[int, int]]], dict[tuple[int, int], DatasetRef]]:
    """Name of the skymap, cells of each detector, and templates by cell."""
    skymap = repository.skymap()
    if skymap is None or not band:
        return "", {d: [] for d in regions}, {}
    cells = {d: [(c.tract, c.patch) for c in skymap.cells(region)] for d, region in regions.items()}
    wanted = {cell for of in cells.values() for cell in of}
    found: dict[tuple[int, int], DatasetRef] = {}
    with repository.butler.query() as query:
        datasets = query.datasets("template_coadd", paths.template_run(skymap.name))
        for tract in {t for t, _ in wanted}:
            bounds = datasets.where(skymap=skymap.name, tract=tract, band=band)
            patches = sorted(p for t, p in wanted if t == tract)
            for ref in bounds.where("patch >= low AND patch <= high", bind={"low": patches[0], "high": patches[-1]}):
                found[tract, int(ref.dataId["patch"])] = ref
    return skymap.name, cells, {cell: ref for cell, ref in found.items() if cell in wanted}


def _shards(region: Region) -> list[int]:
    ranges = HTM.envelope(region.to_sphgeom())
    return [i for begin, end in ranges.ranges() for i in range(begin, end)]


def _reference(repository: Repository, shards: set[int]) -> dict[int, DatasetRef]:
    """Reference shards by HTM index."""
    if not shards:
        return {}
    with repository.butler.query() as query:
        datasets = query.datasets("reference_catalog", paths.REFERENCE_RUN)
        bounds = {"low": min(shards), "high": max(shards)}
        refs = datasets.where("htm7 >= low AND htm7 <= high", bind=bounds)
        return {int(ref.dataId["htm7"]): ref for ref in refs if ref.dataId["htm7"] in shards}


def _ss_objects(repository: Repository, group: str) -> dict[int, DatasetRef]:
    """Predictions of Solar System objects by detector."""
    if not group:
        return {}
    run = paths.ephemerides_run(repository.instrument)
    with repository.butler.query() as query:
        try:
            datasets = query.datasets(paths.SS_OBJECTS, run)
        except MissingDatasetTypeError:  # a repository that an earlier version made
            return {}
        return {int(r.dataId["detector"]): r for r in datasets.where(instrument=repository.instrument, group=group)}


def local_paths(repository: Repository, refs: Sequence[DatasetRef]) -> dict[Any, str]:
    """Paths in the main Datastore by dataset id: one query for all, where `Butler.getURI` asks once a dataset."""
    return _paths(_datastores(repository)[-1].getManyURIs(refs))


def copy_paths(repository: Repository, refs: Sequence[DatasetRef]) -> dict[Any, str]:
    """Paths in the fast Datastore, where there is one, by dataset id: nothing is asked of it."""
    *fast, _ = _datastores(repository)
    return _paths(fast[0].getManyURIs(refs, predict=True)) if fast else {}


def _datastores(repository: Repository) -> Sequence[Datastore]:
    """The Datastores that hold files, the main one last."""
    whole = repository.butler._datastore
    return whole.datastores if isinstance(whole, ChainedDatastore) else [whole]


def _paths(uris: Mapping[DatasetRef, DatasetRefURIs]) -> dict[Any, str]:
    return {ref.id: of.primaryURI.ospath for ref, of in uris.items() if of.primaryURI is not None}
