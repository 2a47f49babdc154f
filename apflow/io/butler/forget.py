"""Making room: files of datasets that nobody will read again."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING

from lsst.daf.butler import DatasetRef

from apflow.io.butler import paths
from apflow.io.butler.ingest import CALIBS

if TYPE_CHECKING:
    from apflow.io.butler.repository import Repository


def forget_pixels(repository: Repository, detectors: Collection[int], cells: Collection[tuple[int, int]]) -> int:
    """Remove the images of some detectors, and some template cells, from the registry and from the disk.

    Raw images, master calibs and difference images of every exposure, visit and
    validity go; tables, metrics and provenance stay. Files outside the
    repository stay, too, but are not registered any more.

    Parameters
    ----------
    repository : `Repository`
    detectors : collection of `int`
    cells : collection of `tuple` [`int`, `int`]
        Tract and patch.

    Returns
    -------
    removed : `int`
        How many datasets went; calling again is harmless.
    """
    refs = [*_of_detectors(repository, set(detectors)), *_templates(repository, set(cells))]
    repository.butler.pruneDatasets(refs, disassociate=True, unstore=True, purge=True)
    return len(refs)


def _of_detectors(repository: Repository, detectors: Collection[int]) -> Iterator[DatasetRef]:
    instrument = repository.instrument
    places = {"raw": paths.raw_run(instrument), "difference_image": paths.prompt_chain(instrument)}
    places |= dict.fromkeys(CALIBS, f"{paths.calib_collection(instrument)}/*")
    for name, collections in places.items():
        found = repository.butler.query_datasets(name, collections, find_first=False, limit=None, explain=False)
        yield from (ref for ref in found if ref.dataId["detector"] in detectors)


def _templates(repository: Repository, cells: Collection[tuple[int, int]]) -> Iterator[DatasetRef]:
    skymap = repository.skymap()
    if skymap is not None and cells:
        run = paths.template_run(skymap.name)
        found = repository.butler.query_datasets("template_coadd", run, limit=None, explain=False)
        yield from (ref for ref in found if (ref.dataId["tract"], ref.dataId["patch"]) in cells)
