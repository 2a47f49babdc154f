"""Raw images: checked, put in their places, registered and announced."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lsst.daf.butler import DataCoordinate, DatasetIdGenEnum, DatasetRef, FileDataset
from lsst.daf.butler.registry import ConflictingDefinitionError
from sqlalchemy.exc import IntegrityError

from apflow.errors import ApflowError, BadRequest, DataError, ServiceError
from apflow.io.arrivals.announce import arrived, told
from apflow.io.arrivals.board import Key, Message
from apflow.io.atomic import atomic
from apflow.io.butler import paths
from apflow.io.butler.exposures import filter_named, register_exposures
from apflow.io.butler.ingest import references
from apflow.io.fits import info_of
from apflow.io.hdu import read_headers
from apflow.model.camera import Camera
from apflow.model.exposure import ImageInfo
from apflow.model.ids import ImageName, image_name, parse_image_name
from apflow.model.sighting import Sighting

if TYPE_CHECKING:
    from apflow.io.butler.repository import Repository

#: Exposures whose raws may still be coming.
_EXPOSURES = 50
#: As the Butler's dimension has it.
_LONGEST_GROUP = 64


@dataclass(frozen=True)
class Ingested:
    """What became of one raw file.

    Attributes
    ----------
    source : `pathlib.Path`
        The file as given.
    path : `pathlib.Path` or `None`
        Where it is in the repository; None when it was rejected.
    info : `ImageInfo` or `None`
        Its header, where it could be read.
    name : `ImageName` or `None`
        Its name, where it is of the form of an image's.
    new : `bool`
        Whether it was not registered before.
    error : `str`
        Why it was rejected; empty when it was not.
    nsnaps : `int`
        Snaps of its visit; 0 where the header does not tell.
    """

    source: Path
    path: Path | None
    info: ImageInfo | None
    name: ImageName | None
    new: bool = False
    error: str = ""
    nsnaps: int = 0


def ingest_raws(
    repository: Repository,
    files: Iterable[str | Path],
    transfer: str,
    arrived_unix: Mapping[Path, float] | None = None,
) -> list[Ingested]:
    """Register raw images in one transaction, with their exposures and visits, and announce them.

    Parameters
    ----------
    repository : `Repository`
    files : iterable of paths
    transfer : `str`
        ``copy`` leaves the given files (a hard link where the file system
        allows it), ``move`` removes them once they are announced.
    arrived_unix : mapping of `pathlib.Path` to `float`, optional
        When each file landed; else the time of its last change.

    Returns
    -------
    ingested : `list` [`Ingested`]
        One a file, in order. Files that cannot be accepted are named with the
        reason and left where they are; they do not keep the others out.
    """
    if transfer not in ("copy", "move"):
        raise BadRequest(f"transfer {transfer!r} of raws is unknown; accepted: copy, move")
    read = [_examine(repository.camera, Path(file)) for file in files]
    good: dict[Path, Ingested] = {}
    for one in read:
        if one.path is not None:
            good.setdefault(one.path, one)  # the same image twice in one batch
    raws = [(one.path, one.source, one.info) for one in good.values() if one.path and one.info]
    times = arrived_unix or {}
    sightings = {
        one.path: _sighting(repository.camera, one, times.get(one.source) or one.source.stat().st_mtime)
        for one in good.values()
    }
    try:
        known = _register(repository, raws)
    except (IntegrityError, ConflictingDefinitionError) as error:
        # Another ingestor was faster with the same exposure; what it registered is known the next time.
        raise ServiceError(f"raws cannot be registered together with what was before: {error}") from error
    messages: dict[Key, Message] = {}
    for path, sighting in sightings.items():
        messages |= arrived(sighting, str(path))
    repository.board.put(messages | told(repository.instrument, sightings.values()))
    if transfer == "move":
        for one in read:
            if one.path is not None:
                one.source.unlink(missing_ok=True)
    return [
        replace(one, new=good[one.path] is one and one.path not in known) if one.path is not None else one
        for one in read
    ]


def _sighting(camera: Camera, one: Ingested, arrived_unix: float) -> Sighting:
    """What the header of a registered raw tells."""
    info = one.info
    assert info is not None
    physical = filter_named(camera, info)
    return Sighting(
        instrument=info.instrument,
        group=info.group,
        exposure=info.exposure,
        image=image_name(info.exposure, camera.image_prefix),
        snap=info.snap,
        nsnaps=one.nsnaps,
        detector=info.detector,
        ra_deg=info.ra_deg,
        dec_deg=info.dec_deg,
        rotation_deg=info.rotation_deg,
        physical_filter=physical.physical_filter if physical else "",
        band=physical.band if physical else "",
        exposure_time_s=info.exposure_time_s,
        image_type=info.image_type,
        arrived_unix=arrived_unix,
        registered=True,
    )


def _examine(camera: Camera, file: Path) -> Ingested:
    """Read the header of a raw and check it against the camera and the file's name."""
    name, info, nsnaps = _name(file), None, 0
    try:
        primary, *rest = read_headers(file)
        info = info_of(primary.header, file)
        nsnaps = nsnaps_of(primary.header)
        detector = camera.detector(info.detector)
        if info.instrument != camera.instrument:
            raise DataError(f"{file}: INSTRUME is {info.instrument!r}; accepted: {camera.instrument}")
        if name and (name.exposure != info.exposure or name.detector not in (None, detector.name)):
            was = f"{image_name(info.exposure, camera.image_prefix)}_{detector.name}"
            raise DataError(f"{file}: its name and its header disagree, the header is that of {was}")
        filter_named(camera, info)
        if not info.group.isprintable() or not 0 < len(info.group) <= _LONGEST_GROUP:
            raise DataError(f"{file}: GROUPID is {info.group!r}; accepted: 1 to {_LONGEST_GROUP} printable characters")
        missing = {a.segment for a in detector.amplifiers} - {hdu.name for hdu in rest}
        if missing:
            raise DataError(
                f"{file} is truncated or of another camera: {detector.name} has a segment {min(missing)} too"
            )
    except ApflowError as error:
        return Ingested(file, None, info, name, error=str(error))
    root = Path()
    path = paths.raw_path(root, camera.instrument, info.exposure, camera.image_prefix, detector.name)
    return Ingested(file, path, info, name, nsnaps=nsnaps)


def nsnaps_of(header: Mapping[str, Any]) -> int:
    """Snaps of a visit as a header tells (MAXINDEX); 0 where it does not."""
    number = header.get("MAXINDEX")
    return number if type(number) is int and number > 0 else 0


def _name(file: Path) -> ImageName | None:
    try:
        return parse_image_name(file.name.split(".", 1)[0])
    except BadRequest:
        return None


def _register(repository: Repository, raws: Sequence[tuple[Path, Path, ImageInfo]]) -> set[Path]:
    """Put files in their places and register them; returns those (relative to the root) that were there before."""
    butler, run = repository.butler, paths.raw_run(repository.instrument)
    known = _known(repository, [(path, info) for path, _, info in raws if (repository.root / path).exists()])
    new = [(path, source, info) for path, source, info in raws if path not in known]
    if not new:
        return known
    for path, source, _ in new:
        _place(source, repository.root / path)
    with butler.transaction():
        exposures = dict(repository.exposures)
        register_exposures(butler, repository.camera, [i for _, _, i in new if i.exposure not in exposures])
        for exposure in {info.exposure for _, _, info in new} - exposures.keys():
            exposures[exposure] = butler.registry.expandDataId(instrument=repository.instrument, exposure=exposure)
        raw = butler.get_dataset_type("raw")
        datasets = []
        for path, _, info in new:
            data_id = _expanded(repository, exposures[info.exposure], info.detector)
            ref = DatasetRef(raw, data_id, run=run, id_generation_mode=DatasetIdGenEnum.DATAID_TYPE_RUN)
            datasets.append(FileDataset(path=str(repository.root / path), refs=[ref]))
        butler.ingest(*datasets, transfer=None, record_validation_info=False, skip_existing=True)
    # The oldest first: a dict keeps its order.
    repository.exposures = dict(list(exposures.items())[-_EXPOSURES:])
    return known


def _known(repository: Repository, raws: Sequence[tuple[Path, ImageInfo]]) -> set[Path]:
    """Those of some files in their places that are registered too."""
    if not raws:
        return set()
    instrument = repository.instrument
    data_ids = [
        (path, "raw", {"instrument": instrument, "exposure": info.exposure, "detector": info.detector})
        for path, info in raws
    ]
    refs = references(repository.butler, paths.raw_run(instrument), data_ids)
    stored = repository.butler.stored_many([ref for _, ref in refs])
    return {path for path, ref in refs if stored[ref]}


def _expanded(repository: Repository, exposure: DataCoordinate, detector: int) -> DataCoordinate:
    """The data id of a raw with all its records, so that the Butler asks for none of them."""
    universe = repository.butler.dimensions
    records = {name: exposure.records[name] for name in exposure.dimensions.elements}
    records["detector"] = repository.detectors[detector]
    key = {"instrument": repository.instrument, "exposure": exposure["exposure"], "detector": detector}
    full = dict(exposure.mapping) | key
    return DataCoordinate.standardize(full, dimensions=universe.conform(["exposure", "detector"])).expanded(
        records=records
    )


def _place(source: Path, target: Path) -> None:
    """A file under another name, whatever was there before: a hard link, or a copy across file systems."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        os.replace(temporary, target)
    except OSError:
        with atomic(target) as file:
            file.write(source.read_bytes())
