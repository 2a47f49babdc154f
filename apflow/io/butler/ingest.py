"""Registering files by the hundred: calibs, templates, reference stars, outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from astropy.time import Time
from lsst.daf.butler import Butler, DataCoordinate, DatasetIdGenEnum, DatasetRef, FileDataset, Timespan
from lsst.daf.butler.registry import ConflictingDefinitionError
from lsst.sphgeom import HtmPixelization, LonLat, UnitVector3d

from apflow.errors import BadRequest
from apflow.io.butler import paths
from apflow.io.tables import write_table
from apflow.model.skymap import SkyMap

if TYPE_CHECKING:
    from apflow.io.butler.repository import Repository

CALIBS = ("bias", "dark", "flat", "defects")
HTM = HtmPixelization(7)
#: Files with their dataset type and data id.
Files = Iterable[tuple[Path, str, Mapping[str, Any]]]


def references(butler: Butler, run: str, files: Files) -> list[tuple[Path, DatasetRef]]:
    """Files with their refs, whose ids follow from type, data id and run: a file registered twice is one dataset."""
    types: dict[str, Any] = {}
    refs = []
    for path, name, data_id in files:
        if name not in types:
            types[name] = butler.get_dataset_type(name)
        coordinate = DataCoordinate.standardize(data_id, dimensions=types[name].dimensions, universe=butler.dimensions)
        ref = DatasetRef(types[name], coordinate, run=run, id_generation_mode=DatasetIdGenEnum.DATAID_TYPE_RUN)
        refs.append((path, ref))
    return refs


def ingest(butler: Butler, run: str, files: Files, transfer: str | None = None) -> list[DatasetRef]:
    """Register files in one transaction; those that are registered already are left as they are.

    Files stay where they are when `transfer` is None, and must then lie in the repository.
    """
    pairs = references(butler, run, files)
    datasets = [FileDataset(path=str(path), refs=[ref]) for path, ref in pairs]
    # Without validation info no file is measured: FITS files say themselves whether they are whole.
    butler.ingest(*datasets, transfer=transfer, record_validation_info=False, skip_existing=True)
    return [ref for _, ref in pairs]


def ingest_calibs(
    repository: Repository,
    kind: str,
    files: Mapping[int, str | Path],
    physical_filter: str | None,
    valid: tuple[float, float],
    transfer: str,
) -> int:
    """Register master calibs and certify them for a range of time.

    Parameters
    ----------
    repository : `Repository`
    kind : `str`
        ``bias``, ``dark``, ``flat`` or ``defects``.
    files : mapping of `int` to path
        By detector.
    physical_filter : `str` or `None`
        Of flats alone.
    valid : `tuple` [`float`, `float`]
        MJD TAI, end exclusive.
    transfer : `str`
        As in `lsst.daf.butler.Butler.ingest`; ``auto`` leaves files in the repository where they are.

    Returns
    -------
    certified : `int`
        How many were not there before.

    Raises
    ------
    BadRequest
        Unknown kind, detector or filter, an empty range, or one that overlaps another calib's.
    """
    if kind not in CALIBS:
        raise BadRequest(f"calib {kind!r} is unknown; accepted: {', '.join(CALIBS)}")
    if (kind == "flat") != (physical_filter is not None):
        raise BadRequest(f"physical_filter of a {kind} is {physical_filter!r}; a flat has one, others have none")
    if not valid[0] < valid[1]:
        raise BadRequest(f"validity {valid[0]} to {valid[1]} of {kind} is empty; accepted: begin before end, MJD TAI")
    butler, camera = repository.butler, repository.camera
    extra = {"physical_filter": camera.filter(physical_filter).physical_filter} if physical_filter else {}
    begin, end = (Time(t, format="mjd", scale="tai") for t in valid)
    run = f"{paths.calib_collection(camera.instrument)}/{valid[0]:.5f}_{valid[1]:.5f}"
    data_ids = {d: {"instrument": camera.instrument, "detector": camera.detector(d).id} | extra for d in files}
    butler.collections.register(run)
    with butler.transaction():
        pairs = references(butler, run, [(Path(files[d]), kind, data_ids[d]) for d in files])
        known = _known(butler, kind, run)
        new = [(path, ref) for path, ref in pairs if ref.id not in known]
        datasets = [FileDataset(path=str(path.resolve()), refs=[ref]) for path, ref in new]
        butler.ingest(*datasets, transfer=transfer, record_validation_info=False)
        try:
            butler.registry.certify(
                paths.calib_collection(camera.instrument), [ref for _, ref in new], Timespan(begin, end)
            )
        except ConflictingDefinitionError as error:
            raise BadRequest(
                f"validity {valid[0]} to {valid[1]} of {kind} overlaps that of one that is there: {error}"
            ) from error
    return len(new)


def _known(butler: Butler, dataset_type: str, run: str) -> set[Any]:
    return {ref.id for ref in butler.query_datasets(dataset_type, run, limit=None, explain=False)}


def ingest_templates(
    repository: Repository, files: Mapping[tuple[int, int], str | Path], skymap: SkyMap, band: str, transfer: str
) -> int:
    """Register template cells, by (tract, patch), with their skymap, tracts and patches.

    Returns
    -------
    registered : `int`
        How many files were given.

    Raises
    ------
    BadRequest
        The camera has no such band.
    """
    butler, camera = repository.butler, repository.camera
    if band not in {f.band for f in camera.filters}:
        raise BadRequest(f"{camera.instrument} has no band {band!r}; accepted: {', '.join(_bands(repository))}")
    run, registry = paths.template_run(skymap.name), butler.registry
    if butler.collections.register(run):
        butler.collections.extend_chain(paths.defaults_chain(camera.instrument), run)
    side = skymap.cells_per_side
    record = {
        "name": skymap.name,
        "hash": hashlib.sha1(skymap.name.encode(), usedforsecurity=False).hexdigest().encode(),
        "tract_max": skymap.tract_max,
        "patch_nx_max": side,
        "patch_ny_max": side,
    }
    tracts = [
        {"skymap": skymap.name, "id": tract, "region": skymap.tract_region(tract).to_sphgeom()}
        for tract in sorted({tract for tract, _ in files})
    ]
    patches = [
        {
            "skymap": skymap.name,
            "tract": tract,
            "id": patch,
            "cell_x": patch % side,
            "cell_y": patch // side,
            "region": skymap.cell(tract, patch).region.to_sphgeom(),
        }
        for tract, patch in files
    ]
    with butler.transaction():
        registry.syncDimensionData("skymap", record)
        registry.insertDimensionData("tract", *tracts, skip_existing=True)
        registry.insertDimensionData("patch", *patches, skip_existing=True)
        data_ids = (
            (Path(path).resolve(), "template_coadd", {"skymap": skymap.name, "tract": t, "patch": p, "band": band})
            for (t, p), path in files.items()
        )
        ingest(butler, run, data_ids, transfer)
    return len(files)


def _bands(repository: Repository) -> list[str]:
    return sorted({f.band for f in repository.camera.filters})


def ingest_reference(repository: Repository, stars: pd.DataFrame) -> int:
    """Store a reference catalogue in shards of the sky (HTM level 7).

    Parameters
    ----------
    repository : `Repository`
    stars : `pandas.DataFrame`
        Columns ra, dec (ICRS degrees), mag (AB), band, and any others. Stars
        of shards that are there already replace those of the same bands.

    Returns
    -------
    shards : `int`
    """
    missing = {"ra", "dec", "mag", "band"} - set(stars.columns)
    if missing:
        raise BadRequest(f"reference catalogue has no column {sorted(missing)[0]!r}; accepted: ra, dec, mag, band")
    butler, run = repository.butler, paths.REFERENCE_RUN
    shard = [HTM.index(UnitVector3d(LonLat.fromDegrees(r, d))) for r, d in zip(stars["ra"], stars["dec"], strict=True)]
    files: list[tuple[Path, str, Mapping[str, Any]]] = []
    for number, part in stars.groupby(pd.Series(shard, index=stars.index)):
        path = repository.root / run / f"reference_catalog_htm7_{number}.parquet"
        if path.is_file():
            before = pd.read_parquet(path)
            part = pd.concat([before[~before["band"].isin(part["band"].unique())], part])
        write_table(path, part)
        files.append((path, "reference_catalog", {"htm7": int(str(number))}))
    ingest(butler, run, files)
    return len(files)


def ingest_ss_objects(repository: Repository, group: str, objects: Mapping[int, pd.DataFrame]) -> int:
    """Store positions of Solar System objects predicted for a visit, before or after its images are known.

    Parameters
    ----------
    repository : `Repository`
    group : `str`
        Of the visit: what is known of it before its images exist.
    objects : mapping of `int` to `pandas.DataFrame`
        By detector: ssObjectId, ra, dec, their errors, and what else
        `apflow.catalogs.solar_system.predicted` takes. They replace those that
        are there.

    Returns
    -------
    stored : `int`
        How many detectors' positions were stored.

    Raises
    ------
    BadRequest
        Unknown detector, or a column is missing.
    """
    butler, camera = repository.butler, repository.camera
    if not group:
        raise BadRequest("predictions of SSObjects for group ''; accepted: the group of a visit")
    ids = {d: camera.detector(d).id for d in objects}
    for detector, table in objects.items():
        errors = {"raErr", "decErr"} if "raErr" in table.columns else {"Err(arcsec)"}
        missing = {"ssObjectId", "ra", "dec", *errors} - set(table.columns)
        if missing:
            raise BadRequest(
                f"predictions of SSObjects of detector {detector} have no column {sorted(missing)[0]!r}; accepted: "
                "ssObjectId, ra, dec, and raErr with decErr or Err(arcsec)"
            )
    files: list[tuple[Path, str, Mapping[str, Any]]] = []
    for detector, table in objects.items():
        path = paths.ss_objects_path(repository.root, camera.instrument, group, ids[detector])
        write_table(path, table)
        data_id = {"instrument": camera.instrument, "group": group, "detector": ids[detector]}
        files.append((path, paths.SS_OBJECTS, data_id))
    record = {"instrument": camera.instrument, "name": group}
    butler.registry.insertDimensionData("group", record, skip_existing=True)
    ingest(butler, paths.ephemerides_run(camera.instrument), files)
    return len(files)
