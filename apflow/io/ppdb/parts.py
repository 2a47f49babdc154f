"""Rows of many detectors, read at once and cut into each one's: what backends do alike after they have read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
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
    found = []
    for w, ids in zip(wanted, own, strict=True):
        at = np.searchsorted(known, ids)
        found.append(ids[_near(w.ra, w.dec, ra[at], dec[at], radius_arcsec)])
    return found


def _near(ra: Any, dec: Any, object_ra: Any, object_dec: Any, radius_arcsec: float) -> NDArray[np.bool_]:
    if not len(ra) or not len(object_ra):
        return np.zeros(len(object_ra), bool)
    tree = cKDTree(unit_vectors(ra, dec))
    reach = chord(radius_arcsec) * (1 + 1e-9)  # the bound itself is left out
    distance, _ = tree.query(unit_vectors(object_ra, object_dec), distance_upper_bound=reach)
    return np.asarray(np.isfinite(distance))


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
    n = max(len(row_id), 1)
    every = np.unique(np.concatenate(ids))
    order = _order(row_id, mjd)
    mine = np.searchsorted(every, objects[order])
    by_object = np.argsort(mine, kind="stable")
    starts = np.searchsorted(mine[by_object], np.arange(len(every) + 1))
    # A detector's objects, each with its rows: by_object[first[j]:first[j] + count[j]].
    wanted = np.searchsorted(every, np.concatenate(ids))
    first, count = starts[wanted], starts[wanted + 1] - starts[wanted]
    end = np.cumsum(count)
    take = by_object[np.arange(end[-1] if len(end) else 0) - np.repeat(end - count - first, count)]
    detector = np.repeat(np.repeat(np.arange(len(ids)), [len(i) for i in ids]), count)
    time = mjd[order[take]]
    keep = (time >= since[detector]) & (time <= until[detector])
    # One number for detector and place: sorting it sorts both.
    place = np.sort(detector[keep] * n + take[keep])
    detector, take = np.divmod(place, n)
    return order[take], np.searchsorted(detector, np.arange(len(ids) + 1))


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
