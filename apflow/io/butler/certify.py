"""Master calibs and when they are valid: what is certified, and certifying more of it, all or nothing."""

from __future__ import annotations

import datetime as dt
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astropy.time import Time
from lsst.daf.butler import Butler, FileDataset, Timespan
from lsst.daf.butler.registry import ConflictingDefinitionError
from sqlalchemy.exc import OperationalError

from apflow.errors import BadRequest, ServiceError
from apflow.io.atomic import atomic
from apflow.io.butler import paths
from apflow.io.butler.ingest import CALIBS, references
from apflow.io.butler.repository import Repository


@dataclass(frozen=True)
class Certified:
    """A master calib of one detector and when it is valid.

    Attributes
    ----------
    kind : `str`
    detector : `int`
    physical_filter : `str`
        Of flats; else empty.
    span : `lsst.daf.butler.Timespan`
        End exclusive; open where a bound is None.
    run : `str`
        RUN collection.
    """

    kind: str
    detector: int
    physical_filter: str
    span: Timespan
    run: str


def certified(repository: Repository, kinds: Iterable[str] = CALIBS) -> list[Certified]:
    """All that is valid at some time, by kind, filter, begin and detector."""
    collection = paths.calib_collection(repository.instrument)
    found = []
    for kind in kinds:
        for one in repository.butler.registry.queryDatasetAssociations(kind, collections=[collection]):
            data_id, span = one.ref.dataId.required, one.timespan
            assert span is not None  # of a CALIBRATION collection
            name = str(data_id.get("physical_filter", ""))
            found.append(Certified(kind, int(data_id["detector"]), name, span, one.ref.run))
    return sorted(found, key=lambda c: (c.kind, c.physical_filter, c.span.nsec, c.detector))


def next_begin(
    repository: Repository, kind: str, detectors: Iterable[int], physical_filter: str, after: Time
) -> Time | None:
    """When the next calib of one of the detectors begins after a time; None where none does."""
    begins = (c.span.begin for c in _those(repository, kind, detectors, physical_filter))
    return min((begin for begin in begins if isinstance(begin, Time) and begin > after), default=None)


def check_free(
    repository: Repository, kind: str, detectors: Iterable[int], physical_filter: str, valid: Timespan
) -> None:
    """See that no calib of the detectors is valid within a range.

    Raises
    ------
    BadRequest
        One is; the message names it and its range.
    """
    if there := _overlapping(repository, kind, detectors, physical_filter, valid):
        raise _taken(repository, there, valid)


def _overlapping(
    repository: Repository, kind: str, detectors: Iterable[int], physical_filter: str, valid: Timespan
) -> list[Certified]:
    return [c for c in _those(repository, kind, detectors, physical_filter) if c.span.overlaps(valid)]


def _taken(repository: Repository, there: Sequence[Certified], valid: Timespan) -> BadRequest:
    first = there[0]
    what = f"{first.kind} {first.physical_filter}".strip()
    more = f" (and {len(there) - 1} more)" if len(there) > 1 else ""
    name = repository.camera.detector(first.detector).name
    return BadRequest(
        f"{what} of {name}{more} is valid {spoken(first.span)} ({first.run}), which overlaps {spoken(valid)}; "
        "accepted: another range, or --replace to shorten what is there"
    )


def _those(repository: Repository, kind: str, detectors: Iterable[int], physical_filter: str) -> list[Certified]:
    wanted = set(detectors)
    found = certified(repository, [kind])
    return [c for c in found if c.detector in wanted and c.physical_filter == physical_filter]


def certify(
    repository: Repository,
    kind: str,
    files: Mapping[int, Path],
    physical_filter: str,
    valid: Timespan,
    *,
    replace: bool = False,
    move: bool = False,
) -> str:
    """Take master calibs into the repository and certify them for a range of time, all of them or none.

    Everything that can be seen is one transaction of the registry: files that
    a crash leaves behind belong to no dataset.

    Parameters
    ----------
    repository : `Repository`
    kind : `str`
        ``bias``, ``dark``, ``flat`` or ``defects``.
    files : mapping of `int` to `pathlib.Path`
        By detector.
    physical_filter : `str`
        Of flats; else empty.
    valid : `lsst.daf.butler.Timespan`
        Not empty.
    replace : `bool`
        Whether calibs that are valid within the range lose that part of their validity.
    move : `bool`
        Whether the files are moved into the repository and not copied.

    Returns
    -------
    run : `str`
        Their RUN collection.

    Raises
    ------
    BadRequest
        There is no such kind, detector or filter, no file, or, without `replace`, another calib is valid within the
        range.
    ServiceError
        The registry failed; nothing was certified.
    """
    if kind not in CALIBS:
        raise BadRequest(f"calib {kind!r} is unknown; accepted: {', '.join(CALIBS)}")
    if not files:
        raise BadRequest(f"no file of {kind} to certify; accepted: one a detector")
    if (kind == "flat") != bool(physical_filter):
        raise BadRequest(f"physical_filter of a {kind} is {physical_filter!r}; a flat has one, others have none")
    camera = repository.camera
    extra = {"physical_filter": camera.filter(physical_filter).physical_filter} if physical_filter else {}
    ids = {camera.detector(d).id: path for d, path in files.items()}
    there = _overlapping(repository, kind, ids, extra.get("physical_filter", ""), valid)
    if there and not replace:
        raise _taken(repository, there, valid)
    data_ids = {d: {"instrument": camera.instrument, "detector": d} | extra for d in ids}
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S%fZ")
    run = f"{paths.calib_collection(camera.instrument)}/{kind}/{stamp}"
    folder = repository.root / run
    try:
        placed = [(_place(path, folder, move), kind, data_ids[d]) for d, path in ids.items()]
        _register(repository.butler, run, placed, valid, shorten=bool(there))
    except ConflictingDefinitionError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise BadRequest(f"another {kind} was certified meanwhile; look at: apflow calib ls ({error})") from error
    except OperationalError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise ServiceError(f"the Butler's registry failed, no {kind} was certified: {error.orig}") from error
    return run


def _register(
    butler: Butler,
    run: str,
    files: Sequence[tuple[Path, str, Mapping[str, Any]]],
    valid: Timespan,
    *,
    shorten: bool,
) -> None:
    kind, collection = files[0][1], run.rsplit("/", 2)[0]
    butler.collections.register(run)
    with butler.transaction():
        pairs = references(butler, run, files)
        datasets = [FileDataset(path=str(path), refs=[ref]) for path, ref in pairs]
        butler.ingest(*datasets, transfer=None, record_validation_info=False)
        if shorten:
            butler.registry.decertify(collection, kind, valid, dataIds=[ref.dataId for _, ref in pairs])
        butler.registry.certify(collection, [ref for _, ref in pairs], valid)


def spoken(span: Timespan) -> str:
    """A range of time as people read it, in TAI."""
    begin, end = (str(t.tai.isot[:19]) if isinstance(t, Time) else "" for t in (span.begin, span.end))
    if not end:
        return f"from {begin} on" if begin else "always"
    return f"from {begin} to {end}" if begin else f"until {end}"


def _place(source: Path, folder: Path, move: bool) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / source.name
    if move:
        os.replace(source, target)
    else:
        with open(source, "rb") as read, atomic(target) as file:
            shutil.copyfileobj(read, file)
    return target
