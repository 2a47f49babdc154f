"""Which true changes were found, and which DiaSources are real."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from apflow.model.sky import project

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
Flags = NDArray[np.bool_]

MATCH_RADIUS_ARCSEC = 1.0
#: Longer trails are no point sources: their flux and position are left out of the errors.
_POINT_ARCSEC = 0.3
#: An isolated change has no other within this distance.
_ISOLATED_ARCSEC = 5.0
_KEY = ["visit", "detector"]


class Match(NamedTuple):
    """What belongs together.

    Attributes
    ----------
    found : `numpy.ndarray`, (n,), bool
        Of each change, whether a source is within the radius of it, or of the line that it drew.
    real : `numpy.ndarray`, (m,), bool
        The same of each source.
    pairs : `numpy.ndarray`, (k, 2)
        Rows of points and of the sources nearest to them.
    """

    found: Flags
    real: Flags
    pairs: I8


def match(truth: pd.DataFrame, sources: pd.DataFrame) -> Match:
    """Match by position within each detector-visit."""
    found, real = np.zeros(len(truth), bool), np.zeros(len(sources), bool)
    pairs: list[I8] = []
    rows_of = sources.groupby(_KEY).indices
    for key, t in truth.groupby(_KEY).indices.items():
        if key not in rows_of:
            continue
        s = np.asarray(rows_of[key])
        here, seen = truth.iloc[t], sources.iloc[s]
        centre = float(here["ra"].iloc[0]), float(here["dec"].iloc[0])
        places = _plane(seen, centre)
        lines, which = _lines(here, centre)
        finite = np.isfinite(places).all(-1)
        if not finite.any():
            continue
        s, places = s[finite], places[finite]
        distance, nearest = cKDTree(places).query(lines, distance_upper_bound=MATCH_RADIUS_ARCSEC)
        hit = np.isfinite(distance)
        found[t[which[hit]]] = True
        near, _ = cKDTree(lines).query(places, distance_upper_bound=MATCH_RADIUS_ARCSEC)
        real[s[np.isfinite(near)]] = True
        point = hit & (here["trail_length_arcsec"].to_numpy()[which] <= _POINT_ARCSEC)
        pairs.append(np.stack([t[which[point]], s[nearest[point]]], -1))
    return Match(found, real, np.concatenate(pairs) if pairs else np.empty((0, 2), np.int64))


def _plane(table: pd.DataFrame, centre: tuple[float, float]) -> F8:
    """Positions (n, 2) in the tangent plane, arcsec."""
    return np.stack(project(table["ra"].to_numpy(float), table["dec"].to_numpy(float), *centre), -1) * 3600.0


def _lines(truth: pd.DataFrame, centre: tuple[float, float]) -> tuple[F8, I8]:
    """Points (n, 2) along every change, arcsec about `centre`, and the row that each belongs to."""
    length, angle = truth["trail_length_arcsec"].to_numpy(), np.radians(truth["trail_angle_deg"].to_numpy())
    n = 2 * np.ceil(length / 0.2).astype(int) + 1
    n[length <= _POINT_ARCSEC] = 1
    which = np.repeat(np.arange(len(truth)), n)
    step = np.arange(len(which)) - np.repeat(np.cumsum(n) - n, n) - (n[which] - 1) / 2
    along = step / np.maximum(n[which] - 1, 1) * length[which]
    places = _plane(truth, centre)
    return places[which] + along[:, None] * np.stack([np.sin(angle), np.cos(angle)], -1)[which], which


def isolated(truth: pd.DataFrame) -> Flags:
    """Which changes have no other near."""
    alone = np.ones(len(truth), bool)
    for rows in truth.groupby(_KEY).indices.values():
        here = truth.iloc[rows]
        places = _plane(here, (float(here["ra"].iloc[0]), float(here["dec"].iloc[0])))
        if len(rows) > 1:
            alone[rows] = cKDTree(places).query(places, k=2)[0][:, 1] > _ISOLATED_ARCSEC
    return alone


def attributed(truth: pd.DataFrame, sources: pd.DataFrame) -> tuple[Flags, Flags]:
    """Which changes have a source with their ssObjectId near, and which sources bear one that is not theirs.

    Parameters
    ----------
    truth : `pandas.DataFrame`
        With ssObjectId: that of the prediction, null where nobody made one.
    sources : `pandas.DataFrame`
        With ssObjectId.
    """
    mine = np.flatnonzero(sources["ssObjectId"].fillna(0).to_numpy(np.int64) != 0)
    theirs = np.flatnonzero(truth["ssObjectId"].fillna(0).to_numpy(np.int64) != 0)
    key = [*_KEY, "ssObjectId"]
    named = [t[key].astype({"ssObjectId": "int64"}).assign(row=r) for t, r in
             ((truth.iloc[theirs], theirs), (sources.iloc[mine], mine))]  # fmt: skip
    both = named[1].merge(named[0], on=key, suffixes=("_s", "_t"))
    t, s = both["row_t"].to_numpy(), both["row_s"].to_numpy()
    right, wrong = np.zeros(len(truth), bool), np.zeros(len(sources), bool)
    near = _off_line(truth.iloc[t], sources.iloc[s]) <= MATCH_RADIUS_ARCSEC
    right[t[near]], wrong[mine] = True, True
    wrong[s[near]] = False
    return right, wrong


def _off_line(truth: pd.DataFrame, sources: pd.DataFrame) -> F8:
    """How far each source is from the line that its change drew, arcsec."""
    ra, dec, at_ra, at_dec = (t[c].to_numpy(float) for t in (sources, truth) for c in ("ra", "dec"))
    east, north = (3600.0 * axis for axis in project(ra, dec, at_ra, at_dec))
    angle, half = np.radians(truth["trail_angle_deg"].to_numpy()), truth["trail_length_arcsec"].to_numpy() / 2
    along, across = east * np.sin(angle) + north * np.cos(angle), east * np.cos(angle) - north * np.sin(angle)
    return np.asarray(np.hypot(np.maximum(np.abs(along) - half, 0.0), across))
