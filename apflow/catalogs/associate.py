"""Association of new DiaSources with Solar System objects and known DiaObjects."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from apflow.catalogs.diaobject import new_versions
from apflow.catalogs.drp import nearest_drp
from apflow.catalogs.injected import is_injected
from apflow.catalogs.matching import best_pairs
from apflow.catalogs.positions import Places, neighbours, pair_cost
from apflow.catalogs.solar_system import POSITION, check_columns, ss_sources
from apflow.errors import DataError
from apflow.model import schema
from apflow.model.products import Associated, History

I8 = NDArray[np.int64]
F8 = NDArray[np.float64]

_POSITION = ["ra", "dec", "raErr", "decErr", "ra_dec_Cov"]
#: The store computes separations its own way: what it may call within the radius must be in the guard.
_GUARD_REACH = 1.0 + 1e-4
_UNLIKELY_SIGMA = 5.0


def associate(
    sources: pd.DataFrame,
    history: History,
    *,
    radius_arcsec: float,
    position_floor_arcsec: float,
    max_new_objects: int,
    history_days: float = 365.0,
    ss_objects: pd.DataFrame | None = None,
) -> Associated:
    """Give each DiaSource its SSObject or its DiaObject: the assignment of least total cost.

    A pair within `radius_arcsec` costs ``0.5 chi^2 + 0.5 ln(det C)`` where C
    is the sum of both position covariances and of `position_floor_arcsec`
    squared. A source left alone costs what a pair at the radius costs whose
    errors make that 5 sigma. Pairs that cost more are worth a little still:
    within the radius a source takes the only object there is, but pushes no
    better pair aside. Sources of Solar System objects go first and have no
    DiaObject; what is left alone becomes a new DiaObject with the source's own
    id. Sources with the light of a fake (pixelFlags_injected) get neither, see
    `apflow.catalogs.injected`. The order of rows does not matter.

    Parameters
    ----------
    sources : `pandas.DataFrame`
        DiaSources with final diaSourceId; ids of objects are replaced.
    history : `History`
        Of the region and a margin that exceeds the radius and the pointing error.
    max_new_objects : `int`
        The circuit breaker, before anything is written.
    history_days : `float`
        How far the history reaches back from the visit.
    ss_objects : `pandas.DataFrame`, optional
        Positions of Solar System objects predicted for the visit, as
        `apflow.catalogs.solar_system.predicted` gives them.

    Returns
    -------
    `Associated`
        Sources in the order given, new DiaObject versions ordered by id, DRP
        Objects near each new DiaObject, SSSources. The guard names the known
        DiaObjects within the radius of a source, matched or not, and no others.

    Raises
    ------
    DataError
        More than `max_new_objects` would be made: the subtraction failed.
    """
    frame = schema.conform(sources, "DiaSource")
    ids = frame["diaSourceId"].to_numpy()
    order = np.argsort(ids, kind="stable")
    # Few columns and no attrs: taking rows of a hundred columns costs more than matching them.
    found = Places.of(schema.bare(frame[_POSITION])).take(order)
    objects = schema.bare(history.objects[["diaObjectId", "validityStartMjdTai", *_POSITION]])
    objects = objects.sort_values("diaObjectId", kind="stable", ignore_index=True)
    places, known = Places.of(objects), objects["diaObjectId"].to_numpy(np.int64)
    limits = radius_arcsec, position_floor_arcsec

    ours = ~is_injected(schema.bare(frame[["pixelFlags_injected"]]))[order]
    moving = _moving(found, ss_objects, ours, *limits)
    ours &= moving == 0
    matched = _match(found, places, ours, *limits)
    fresh = (matched < 0) & ours
    if fresh.sum() > max_new_objects:
        raise DataError(
            f"{fresh.sum()} DiaSources would make new DiaObjects; accepted: at most {max_new_objects} a detector"
        )
    owner = np.where(ours, ids[order], 0)
    owner[matched >= 0] = known[matched[matched >= 0]]
    frame["diaObjectId"], frame["ssObjectId"] = (_column(v, order) for v in (owner, moving))

    near = np.unique(neighbours(found, places, radius_arcsec * _GUARD_REACH)[1])
    starts = objects["validityStartMjdTai"].to_numpy()
    guard = dict(zip(known[near].tolist(), starts[near].tolist(), strict=True))
    versions = new_versions(frame, history, position_floor_arcsec=position_floor_arcsec, history_days=history_days)
    new = versions[np.isin(versions["diaObjectId"], owner[fresh])]
    matches = nearest_drp(new, history.drp, position_floor_arcsec=position_floor_arcsec)
    if ss_objects is None or not moving.any():
        return Associated(frame, versions, guard, matches)
    return Associated(frame, versions, guard, matches, ss_sources(frame, ss_objects, radius_arcsec))


def _column(values: I8, order: I8) -> pd.api.extensions.ExtensionArray:
    """Ids of the ordered sources as a column of the given ones; 0 is null."""
    back = np.empty(len(order), np.int64)
    back[order] = values
    return pd.arrays.IntegerArray(back, back == 0)


def _match(sources: Places, objects: Places, free: NDArray[np.bool_], radius: float, floor: float) -> I8:
    """Index of the object of each source, -1 for none; only `free` sources are matched."""
    i, j = neighbours(sources, objects, radius)
    i, j = i[free[i]], j[free[i]]
    chosen = best_pairs(i, j, pair_gain(pair_cost(sources.take(i), objects.take(j), floor), radius))
    matched = np.full(len(sources), -1, np.int64)
    matched[i[chosen]] = j[chosen]
    return matched


def pair_gain(cost: F8, radius_arcsec: float) -> F8:
    """What a pair saves against leaving its source alone; above 0 for any cost.

    Up to one unit below the cost of a source alone it is the difference, from
    there on it falls as ``1 / (1 + excess)``, with the same slope. Without that
    two sources, each of them ten sigma from the object it gets, would be better
    than a perfect pair and a new object.
    """
    alone = 0.5 * _UNLIKELY_SIGMA**2 + 2.0 * math.log(radius_arcsec / _UNLIKELY_SIGMA)
    excess = np.maximum(cost - (alone - 1.0), 0.0)
    return np.where(excess > 0.0, 1.0 / (1.0 + excess), alone - cost)


def _moving(
    sources: Places, ss_objects: pd.DataFrame | None, free: NDArray[np.bool_], radius: float, floor: float
) -> I8:
    """ssObjectId of each source, 0 for none; only `free` sources have one."""
    if ss_objects is None or not len(ss_objects):
        return np.zeros(len(sources), np.int64)
    check_columns(ss_objects)
    table = ss_objects.sort_values("ssObjectId", kind="stable").reindex(columns=[*POSITION, "ra_dec_Cov"])
    matched = _match(sources, Places.of(table), free, radius, floor)
    ids = table["ssObjectId"].to_numpy(np.int64)
    return np.where(matched >= 0, ids[matched], 0)
