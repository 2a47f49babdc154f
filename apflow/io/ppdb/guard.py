"""Who of a batch may still be stored: decisions that no database makes, on what it said.

A backend reads, within the transaction that stores, the current versions of
`wanted_ids` and of all DiaObjects in `cells_near` the new sources; `judge`
then says who lost a race.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

import hpgeom
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from apflow.errors import BadRequest, DataError
from apflow.io.ppdb.batch import Batch
from apflow.io.ppdb.sky_index import ORDER, chord, distinct, pixel_id, unit_vectors
from apflow.io.ppdb.turns import Key

#: Pixels of this order (13") and their neighbours hold every object near a source.
NEAR_ORDER = 14
#: What `judge` has to know of DiaObject versions.
VERSION_COLUMNS = ("diaObjectId", "validityStartMjdTai", "ra", "dec")
_MAX_RADIUS_ARCSEC = 5.0


def check_radius(batch: Batch) -> None:
    """Refuse a radius beyond what `cells_near` holds."""
    if not 0.0 < batch.radius_arcsec <= _MAX_RADIUS_ARCSEC:
        raise BadRequest(f"association radius {batch.radius_arcsec} arcsec; accepted: up to {_MAX_RADIUS_ARCSEC:g}")


def split_stored(keys: Sequence[Key], stored: set[Key]) -> tuple[list[int], list[int]]:
    """Indices of the keys that are new, and of those that are stored or come a second time."""
    new: list[int] = []
    already: list[int] = []
    seen = set(stored)
    for i, key in enumerate(keys):
        (already if key in seen else new).append(i)
        seen.add(key)
    return new, already


def wanted_ids(batch: Batch, which: Sequence[int]) -> list[int]:
    """DiaObjects whose current versions decide about some detectors; sorted."""
    objects = batch.rows["DiaObject"].of(which).column("diaObjectId").to_numpy()
    return sorted({k for i in which for k in batch.guards[i]} | set(objects.tolist()))


def cells_near(batch: Batch, which: Sequence[int], names: Sequence[str] = ("DiaSource",)) -> NDArray[np.int64]:
    """HEALPix pixels of `NEAR_ORDER`, nested, that hold every object near a row of some detectors; sorted."""
    parts = [batch.rows[name].of(which).select(("ra", "dec")) for name in names]
    ra, dec = (np.concatenate([p.column(c).to_numpy() for p in parts]) for c in ("ra", "dec"))
    own = distinct(pixel_id(ra, dec) >> 2 * (ORDER - NEAR_ORDER))
    if not len(own):
        return own
    found = distinct(np.concatenate([own, hpgeom.neighbors(2**NEAR_ORDER, own).ravel()]))
    return found[found >= 0]  # where eight pixels meet, a neighbour may be missing: -1


def judge(batch: Batch, which: Sequence[int], current: pa.Table) -> tuple[list[int], list[int]]:
    """Split detectors into those to store and those that lost a race.

    A detector is accepted if each object of its guard has the version named
    there, none of its own objects appeared meanwhile, and no other object's
    current version lies within the radius of one of its sources. Versions of
    detectors that are accepted first count as current for the next.

    Parameters
    ----------
    current : `pyarrow.Table`
        Current versions, with `VERSION_COLUMNS`; one may be there twice.

    Raises
    ------
    DataError
        A new version does not begin after the one that it replaces.
    """
    versions = batch.rows["DiaObject"].of(which).select(VERSION_COLUMNS)
    both = pa.concat_tables([current.select(VERSION_COLUMNS), versions.cast(current.select(VERSION_COLUMNS).schema)])
    ids, start = both.column("diaObjectId").to_pylist(), both.column("validityStartMjdTai").to_pylist()
    near = iter(_objects_near(batch, which, both))
    end = current.num_rows
    version = dict(zip(ids[:end], start[:end], strict=True))
    latest = dict(zip(ids[:end], range(end), strict=True))
    accepted: list[int] = []
    lost: list[int] = []
    for i in which:
        offsets = batch.rows["DiaObject"].offsets
        begin, end = end, end + offsets[i + 1] - offsets[i]
        guard, own = batch.guards[i], dict(zip(ids[begin:end], start[begin:end], strict=True))
        stale = not guard.items() <= version.items()
        appeared = not version.keys() & own.keys() <= guard.keys()
        strangers = any(latest.get(ids[j]) == j for j in next(near) if ids[j] not in guard)
        if stale or appeared or strangers:
            lost.append(i)
            continue
        _check_order(batch.keys[i], guard, own)
        version |= own
        latest |= zip(ids[begin:end], range(begin, end), strict=True)
        accepted.append(i)
    return accepted, lost


def _objects_near(batch: Batch, which: Sequence[int], versions: pa.Table) -> list[list[int]]:
    """For each detector: indices of the versions within the radius of one of its sources."""
    sources = batch.rows["DiaSource"]
    counts = [sources.offsets[i + 1] - sources.offsets[i] for i in which]
    if not sum(counts) or not versions.num_rows:
        return [[] for _ in which]
    at, of = (
        cKDTree(unit_vectors(t.column("ra").to_numpy(), t.column("dec").to_numpy()))
        for t in (sources.of(which), versions)
    )
    pairs = at.sparse_distance_matrix(of, chord(batch.radius_arcsec) * (1.0 + 1e-9), output_type="ndarray")
    pairs = pairs[np.argsort(pairs["i"])]
    ends = np.searchsorted(pairs["i"], np.cumsum([0, *counts]))
    return [pairs["j"][a:b].tolist() for a, b in itertools.pairwise(ends)]


def _check_order(key: Key, guard: Mapping[int, float], versions: Mapping[int, float]) -> None:
    for k, start in versions.items():
        if k in guard and start <= guard[k]:
            raise DataError(
                f"visit {key[1]} detector {key[2]}: DiaObject {k} has validityStartMjdTai "
                f"{start!r}; accepted: later than that of its current version, {guard[k]!r}"
            )
