"""Objects of the last Data Release near new DiaObjects."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from apflow.catalogs.positions import Places, chord, pair_cost, unit_vectors
from apflow.model import schema

I8 = NDArray[np.int64]
F8 = NDArray[np.float64]

_ARCSEC = math.degrees(1.0) * 3600.0


def nearest_drp(
    objects: pd.DataFrame,
    drp: pd.DataFrame,
    *,
    position_floor_arcsec: float,
    radius_arcsec: float = 60.0,
    n: int = 3,
) -> pd.DataFrame:
    """The nearest stars and the nearest galaxies of each DiaObject.

    A DRP Object is a star where its extendedness is below 0.5, a galaxy from
    there on, and left out where that is NaN.

    lnP assumes one thing at most in the release to be the DiaObject, any place
    as likely as another before, and the density of stars and galaxies found
    within the radius: ``P_i = L_i / (1 + sum L)`` with
    ``L_i = exp(-chi_i^2 / 2) / (2 pi rho sqrt(det C_i))`` over those recorded
    (Sutherland & Saunders 1992, equation 5, with Q of one half). C is the DiaObject's
    covariance and the square of the floor, since the release gives no errors.

    Parameters
    ----------
    objects : `pandas.DataFrame`
        New DiaObjects.
    drp : `pandas.DataFrame`
        objectId, ra, dec (degrees), extendedness.

    Returns
    -------
    `pandas.DataFrame`
        DiaObject_To_Object_Match ordered by diaObjectId and distance: dist in
        arcsec, lnP the natural logarithm of the probability that both are one.
    """
    drp = drp[drp["extendedness"].notna()].sort_values("objectId", kind="stable")
    if not len(objects) or not len(drp):
        return schema.empty("DiaObject_To_Object_Match")
    vectors = unit_vectors(objects["ra"], objects["dec"])
    galaxy = drp["extendedness"].to_numpy() >= 0.5
    found = [_nearest(vectors, drp[of_class], chord(radius_arcsec), n) for of_class in (~galaxy, galaxy)]
    i, ids, distance = (np.concatenate(parts) for parts in zip(*found, strict=True))
    own = objects["diaObjectId"].to_numpy(np.int64)[i]
    order = np.lexsort((ids, distance, own))
    i, ids, distance = i[order], ids[order], distance[order]
    tree = cKDTree(unit_vectors(drp["ra"], drp["dec"]))
    density = tree.query_ball_point(vectors, chord(radius_arcsec), return_length=True) / (math.pi * radius_arcsec**2)
    at = drp.set_index("objectId").loc[ids]
    zero = np.zeros(len(ids))
    release = Places(at["ra"].to_numpy(), at["dec"].to_numpy(), zero, zero, zero)
    cost = pair_cost(Places.of(schema.bare(objects)).take(i), release, position_floor_arcsec)
    likelihood = -cost - np.log(2.0 * math.pi * density[i])
    table = {"diaObjectId": own[order], "objectId": ids, "dist": distance, "lnP": _normalised(likelihood, i, len(own))}
    return schema.conform(pd.DataFrame(table), "DiaObject_To_Object_Match")


def _nearest(vectors: F8, drp: pd.DataFrame, reach: float, n: int) -> tuple[I8, I8, F8]:
    """Row of the DiaObject, objectId and distance (arcsec) of the nearest of one class."""
    if not len(drp):
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    tree = cKDTree(unit_vectors(drp["ra"], drp["dec"]))
    distance, which = tree.query(vectors, k=list(range(1, n + 1)), distance_upper_bound=reach)
    i, rank = np.nonzero(np.isfinite(distance))
    separation = 2.0 * np.arcsin(distance[i, rank] / 2.0) * _ARCSEC
    return i, drp["objectId"].to_numpy(np.int64)[which[i, rank]], separation


def _normalised(likelihood: F8, group: I8, n: int) -> F8:
    """``ln(L / (1 + sum L))`` by group, from ln L."""
    top = np.zeros(n)
    np.maximum.at(top, group, likelihood)
    total = np.exp(-top) + np.bincount(group, np.exp(likelihood - top[group]), n)
    return np.asarray(likelihood - top[group] - np.log(total[group]))
