"""Association of new DiaSources with known DiaObjects."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from apflow.catalogs.diaobject import new_versions
from apflow.catalogs.positions import offsets_arcsec, position_variance, unit_vectors
from apflow.errors import DataError
from apflow.model import schema
from apflow.model.products import Associated, History
from apflow.model.region import Region

I8 = NDArray[np.int64]
F8 = NDArray[np.float64]

_POSITION = ["ra", "dec", "raErr", "decErr", "ra_dec_Cov"]


def associate(
    sources: pd.DataFrame,
    history: History,
    *,
    radius_arcsec: float,
    position_floor_arcsec: float,
    max_new_objects: int,
    region: Region,
) -> Associated:
    """Give each DiaSource its DiaObject: the match of least total cost.

    A pair within `radius_arcsec` costs ``0.5 chi^2 + 0.5 ln(det C)`` where C
    is the sum of both position covariances and of `position_floor_arcsec`
    squared (minus twice the log-likelihood of Sutherland & Saunders 1992, up
    to constants). A source left alone costs what a pair at the radius costs
    with errors at the floor, and becomes a new DiaObject with its own id.

    Parameters
    ----------
    sources : `pandas.DataFrame`
        DiaSources with final diaSourceId; any diaObjectId is replaced.
    history : `History`
        Of the region and a margin that exceeds the radius and the pointing error.
    region : `Region`
        The detector: known objects in it, and those within the radius of a
        source, enter the guard that the PPDB checks when it stores.

    Returns
    -------
    `Associated`
        Sources in the order given, new DiaObject versions ordered by id.

    Raises
    ------
    DataError
        More than `max_new_objects` would be made: the subtraction failed.
    """
    frame = schema.conform(sources, "DiaSource")
    order = np.argsort(frame["diaSourceId"].to_numpy(), kind="stable")
    # Few columns and no attrs: taking rows of a hundred columns costs more than matching them.
    ordered = schema.bare(frame[["diaSourceId", *_POSITION]]).iloc[order]
    objects = schema.bare(history.objects[["diaObjectId", "validityStartMjdTai", *_POSITION]])
    objects = objects.sort_values("diaObjectId", kind="stable", ignore_index=True)
    near = _neighbours(ordered, objects, radius_arcsec)
    matched = _match(ordered, objects, near, radius_arcsec, position_floor_arcsec)
    n_new = int((matched < 0).sum())
    if n_new > max_new_objects:
        raise DataError(f"{n_new} DiaSources would make new DiaObjects; accepted: at most {max_new_objects} a detector")
    ids = ordered["diaSourceId"].to_numpy().copy()
    known = objects["diaObjectId"].to_numpy(np.int64)
    ids[matched >= 0] = known[matched[matched >= 0]]
    back = np.empty(len(order), np.int64)
    back[order] = ids
    frame["diaObjectId"] = pd.array(back, dtype="Int64")
    guarded = region.contains(objects["ra"].to_numpy(), objects["dec"].to_numpy())
    guarded[near[1]] = True
    starts = objects["validityStartMjdTai"].to_numpy()
    guard = {int(k): float(s) for k, s in zip(known[guarded], starts[guarded], strict=True)}
    versions = new_versions(frame, history, position_floor_arcsec=position_floor_arcsec)
    return Associated(frame, versions, guard)


def _neighbours(sources: pd.DataFrame, objects: pd.DataFrame, radius_arcsec: float) -> tuple[I8, I8]:
    """Indices (source, object) of all pairs within the radius."""
    if not len(sources) or not len(objects):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    chord = 2.0 * math.sin(math.radians(radius_arcsec / 3600.0) / 2.0)
    tree = cKDTree(unit_vectors(objects["ra"].to_numpy(), objects["dec"].to_numpy()))
    found = tree.query_ball_point(unit_vectors(sources["ra"].to_numpy(), sources["dec"].to_numpy()), chord)
    counts = [len(f) for f in found]
    return np.repeat(np.arange(len(sources)), counts), np.array([j for f in found for j in sorted(f)], np.int64)


def _match(sources: pd.DataFrame, objects: pd.DataFrame, near: tuple[I8, I8], radius: float, floor: float) -> I8:
    """Index of the object of each source, -1 for none."""
    matched = np.full(len(sources), -1, np.int64)
    i, j = near
    if not len(i):
        return matched
    cost = _cost(sources.iloc[i], objects.iloc[j], floor)
    alone = 0.5 * (radius / floor) ** 2 + math.log(floor**2)
    n = len(sources) + len(objects)
    graph = coo_array((np.ones(len(i)), (i, len(sources) + j)), shape=(n, n))
    _, label = connected_components(graph, directed=False)
    by_group = np.argsort(label[i], kind="stable")
    for pairs in np.split(by_group, np.flatnonzero(np.diff(label[i][by_group])) + 1):
        own, row = np.unique(i[pairs], return_inverse=True)
        theirs, column = np.unique(j[pairs], return_inverse=True)
        table = np.full((len(own), len(theirs) + len(own)), np.inf)
        table[row, column] = cost[pairs]
        table[np.arange(len(own)), len(theirs) + np.arange(len(own))] = alone
        rows, columns = linear_sum_assignment(table)
        taken = columns < len(theirs)
        matched[own[rows[taken]]] = theirs[columns[taken]]
    return matched


def _cost(sources: pd.DataFrame, objects: pd.DataFrame, floor_arcsec: float) -> F8:
    """Cost of pairs, row by row."""
    x, y = offsets_arcsec(*(f[c].to_numpy() for f in (sources, objects) for c in ("ra", "dec")))
    (xx1, yy1, xy1), (xx2, yy2, xy2) = position_variance(sources), position_variance(objects)
    xx, yy, xy = xx1 + xx2 + floor_arcsec**2, yy1 + yy2 + floor_arcsec**2, xy1 + xy2
    det = xx * yy - xy * xy
    return np.asarray(0.5 * (yy * x * x - 2.0 * xy * x * y + xx * y * y) / det + 0.5 * np.log(det))
