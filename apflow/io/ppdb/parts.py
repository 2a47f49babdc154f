"""Rows of many detectors, read at once and cut into each one's: what backends do alike after they have read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from apflow.io.ppdb.interface import Wanted
from apflow.io.ppdb.sky_index import chord, unit_vectors

I8 = NDArray[np.int64]
#: Ids of the rows of the two histories.
ROW_ID = {"DiaSource": "diaSourceId", "DiaForcedSource": "diaForcedSourceId"}


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one table for many detectors: those of the i-th are ``rows[take[offsets[i]:offsets[i + 1]]]``."""

    rows: pa.Table
    take: I8
    offsets: I8


def part_of(rows: pa.Table, which: Sequence[I8]) -> Part:
    """Rows with the indices of each detector's."""
    return Part(rows, np.concatenate(which), np.cumsum([0, *(len(w) for w in which)]))


def ids_near(
    wanted: Sequence[Wanted], own: Sequence[I8], known: I8, ra: Any, dec: Any, radius_arcsec: float
) -> list[I8]:
    """The ids among each detector's `own` whose objects lie within a radius of one of its sources.

    `known` are the ids of the positions `ra` and `dec`, ascending; `own` as well.
    """
    at = [np.searchsorted(known, ids) for ids in own]
    sources = _apart([w.ra for w in wanted], [w.dec for w in wanted])
    objects = _apart([ra[i] for i in at], [dec[i] for i in at])
    near = np.zeros(len(objects), bool)
    if len(sources) and len(objects):
        reach = chord(radius_arcsec) * (1 + 1e-9)  # the bound itself is left out
        near = np.isfinite(cKDTree(sources).query(objects, distance_upper_bound=reach)[0])
    return [ids[n] for ids, n in zip(own, np.split(near, np.cumsum([len(i) for i in own])[:-1]), strict=True)]


def _apart(ra: Sequence[Any], dec: Sequence[Any]) -> NDArray[np.float64]:
    """Unit vectors with a fourth coordinate that keeps detectors apart."""
    detector = np.repeat(10.0 * np.arange(len(ra)), [len(r) for r in ra])
    return np.column_stack([unit_vectors(np.concatenate(ra), np.concatenate(dec)), detector])


def history_part(rows: pa.Table, name: str, ids: Sequence[I8], since: Any, until: Any) -> Part:
    """Rows of the objects of each detector within its time, by time and id."""
    row_id, mjd, objects = (rows.column(c).to_numpy() for c in (ROW_ID[name], "midpointMjdTai", "diaObjectId"))
    return Part(rows, *history_order(row_id, mjd, objects, ids, since, until))


def history_order(row_id: I8, mjd: Any, objects: I8, ids: Sequence[I8], since: Any, until: Any) -> tuple[I8, I8]:
    """`take` and `offsets`, see `Part`, of the rows of each detector within its time, by time and id.

    Parameters
    ----------
    row_id, mjd, objects
        Id, time and DiaObject of each row.
    ids
        DiaObjects of each detector.
    since, until
        Time of each detector.
    """
    every, wanted = np.unique(np.concatenate(ids), return_inverse=True)
    detectors = np.repeat(np.arange(len(ids)), [len(i) for i in ids])[np.argsort(wanted, kind="stable")]
    # The detectors of an object: one, but where regions overlap.
    first = np.append(0, np.cumsum(np.bincount(wanted, minlength=len(every))))
    order = _order(row_id, mjd)
    mjd, objects = mjd.copy(), objects.copy()  # what cannot be written is another type, to be compiled for
    offsets = np.zeros(len(ids) + 1, np.int64)
    at = np.empty(len(order), np.int64)
    _count(order, mjd, objects, every, first, detectors, since, until, at, offsets)
    offsets = np.cumsum(offsets)
    take = np.empty(offsets[-1], np.int64)
    _deal(order, mjd, at, first, detectors, since, until, offsets[:-1].copy(), take)
    return take, offsets


@njit(cache=True, nogil=True)
def _count(  # type: ignore[no-untyped-def]
    order, mjd, objects, every, first, detectors, since, until, at, counts
):
    """Where the DiaObject of each row is in `every`, and how many rows each detector gets, in ``counts[1:]``."""
    j = -1
    for i in range(len(order)):
        row = order[i]
        if j + 1 < len(every) and every[j + 1] == objects[row]:  # rows of a visit mostly come by object
            j += 1
        else:
            j = np.searchsorted(every, objects[row])
        at[i] = j
        for k in range(first[j], first[j + 1]):
            if since[detectors[k]] <= mjd[row] <= until[detectors[k]]:
                counts[detectors[k] + 1] += 1


@njit(cache=True, nogil=True)
def _deal(order, mjd, at, first, detectors, since, until, free, take):  # type: ignore[no-untyped-def]
    """Deal the rows out to the detectors; `free` is where the next one of each detector goes."""
    for i in range(len(order)):
        row = order[i]
        for k in range(first[at[i]], first[at[i] + 1]):
            d = detectors[k]
            if since[d] <= mjd[row] <= until[d]:
                take[free[d]] = row
                free[d] += 1


def ordered(rows: pa.Table, *columns: str) -> pa.Table:
    """Rows in order, last column first. Not in SQL: most come in order, and moving all columns costs more."""
    order = _order(*(rows.column(c).to_numpy() for c in columns))
    return rows if (order[1:] > order[:-1]).all() else rows.take(pa.array(order))


def _order(*keys: NDArray[Any]) -> I8:
    """Indices that put rows in the order of some keys, the last one first."""
    later = np.zeros(max(len(keys[0]) - 1, 0), bool)
    for key in keys:
        later = (key[1:] > key[:-1]) | ((key[1:] == key[:-1]) & later)
    return np.arange(len(keys[0])) if later.all() else np.lexsort(keys)
