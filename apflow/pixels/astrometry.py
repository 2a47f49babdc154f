"""The WCS of an image refined against reference stars."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from apflow.errors import DataError
from apflow.model.sky import deproject, project, separation_arcsec
from apflow.model.wcs import Wcs
from apflow.pixels.distortion import bend, bent_by_arcsec

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

#: Brightest stars that vote for the offset.
_VOTERS = 200
#: Width of a cell of the vote, arcsec.
_VOTE_ARCSEC = 0.2
#: After the vote stars match within this; rotation and noise are what is left.
_MATCH_ARCSEC = 0.8
#: Matches must be so many times those expected by chance.
_CHANCE = 3.0
#: Stars at least for a fit of rotation, of scale, and of all four linear terms.
_FOR_ROTATION, _FOR_SCALE, _FOR_AFFINE = 4, 20, 60


@dataclass(frozen=True, eq=False)
class Astrometry:
    """What the fit of a WCS was like.

    Attributes
    ----------
    star, reference : `numpy.ndarray`, (n,)
        Indices of the matched stars and of their reference stars.
    offset_arcsec : `float`
        By how much the middle of the stars moved.
    rotation_arcsec : `float`
        By how much the field turned, East of North.
    scatter_arcsec : `float`
        Robust scatter of the residuals per axis.
    distortion_arcsec : `float`
        By how far the fit bends the initial WCS at most.
    """

    star: I8
    reference: I8
    offset_arcsec: float
    rotation_arcsec: float
    scatter_arcsec: float
    distortion_arcsec: float = 0.0


def fit_wcs(
    x: F8,
    y: F8,
    reference: pd.DataFrame,
    wcs: Wcs,
    match_radius_arcsec: float,
    min_matched: int = 4,
    shape: tuple[int, int] | None = None,
) -> tuple[Wcs, Astrometry]:
    """Refine an initial WCS by shift, rotation and, with many stars, scale and shear.

    All pairs of stars and reference stars vote for the shift; matched pairs
    then fit the rest, with rejection. The distortion of the initial WCS is
    kept, but for quadratic terms that the stars ask for and bear (`bend`).

    Parameters
    ----------
    x, y : `numpy.ndarray`, (n,)
        Stars, px, the brightest first.
    reference : `pandas.DataFrame`
        Columns ra, dec (degrees), mag.
    wcs : `Wcs`
        Initial guess.
    match_radius_arcsec : `float`
        Largest error of the guess.
    min_matched : `int`
        Fewest matches accepted.
    shape : `tuple` [`int`, `int`], optional
        Of the image; without, nothing is bent.

    Raises
    ------
    DataError
        Fewer than ``min_matched`` stars match, or hardly more than would by chance.
    """
    near = _nearby(reference, wcs, x, y, match_radius_arcsec)
    ra, dec = (reference[c].to_numpy(float)[near] for c in ("ra", "dec"))
    star, found = np.zeros(0, np.int64), np.zeros(0, np.int64)
    fitted, scatter, least = wcs, np.nan, float(min_matched)
    if len(x) >= min_matched and len(ra) >= min_matched:
        fitted = _moved(wcs, *_vote(x, y, ra, dec, reference["mag"].to_numpy(float)[near], wcs, match_radius_arcsec))
        radius = _MATCH_ARCSEC
        for _ in range(4):
            star, found = _match(x, y, ra, dec, fitted, radius)
            if len(star) < min_matched:
                break
            if shape is not None:
                fitted = bend(x[star], y[star], ra[found], dec[found], fitted, shape)
            fitted, scatter = _refine(x[star], y[star], ra[found], dec[found], fitted)
            radius = min(_MATCH_ARCSEC, max(5.0 * scatter, 0.05))
        star, found = _match(x, y, ra, dec, fitted, radius)
        least = max(min_matched, _CHANCE * _by_chance(x, ra, dec, radius))
    if len(star) < least:
        raise DataError(
            f"no astrometric match: {len(star)} of {len(x)} stars match {len(ra)} reference stars of the field "
            f"after shifts to {match_radius_arcsec:g} arcsec; accepted: {math.ceil(least)} or more"
        )
    offset = separation_arcsec(*wcs.pixel_to_sky(x.mean(), y.mean()), *fitted.pixel_to_sky(x.mean(), y.mean()))
    turn = (fitted.rotation_deg() - wcs.rotation_deg() + 180.0) % 360.0 - 180.0
    bent = bent_by_arcsec(fitted, wcs, shape) if shape is not None else 0.0
    return fitted, Astrometry(star, near[found], float(offset), turn * 3600.0, scatter, bent)


def _by_chance(x: F8, ra: F8, dec: F8, radius_arcsec: float) -> float:
    """Stars that would match if the reference were of another field."""
    width = np.ptp(project(ra, dec, ra[0], dec[0]), axis=1) * 3600.0
    return float(len(x) * len(ra) * math.pi * radius_arcsec**2 / max(width.prod(), radius_arcsec**2))


def _nearby(reference: pd.DataFrame, wcs: Wcs, x: F8, y: F8, margin_arcsec: float) -> I8:
    """Indices of the reference stars that may be among the stars."""
    if len(x) == 0:
        return np.zeros(0, np.int64)
    margin = margin_arcsec / wcs.pixel_scale_arcsec
    px, py = wcs.sky_to_pixel(reference["ra"].to_numpy(float), reference["dec"].to_numpy(float))
    with np.errstate(invalid="ignore"):
        inside = (px > x.min() - margin) & (px < x.max() + margin) & (py > y.min() - margin) & (py < y.max() + margin)
    return np.flatnonzero(inside)


def _vote(x: F8, y: F8, ra: F8, dec: F8, mag: F8, wcs: Wcs, radius_arcsec: float) -> tuple[float, float]:
    """Offset (degrees in the tangent plane) that most pairs of stars share."""
    xi, eta = wcs.pixel_to_plane(x[:_VOTERS], y[:_VOTERS])
    bright = np.argsort(mag, kind="stable")[: 2 * _VOTERS]
    xi_ref, eta_ref = project(ra[bright], dec[bright], *wcs.crval_deg)
    dx = ((xi_ref[:, None] - xi) * 3600.0).ravel()
    dy = ((eta_ref[:, None] - eta) * 3600.0).ravel()
    close = np.hypot(dx, dy) < radius_arcsec
    dx, dy = dx[close], dy[close]
    if len(dx) == 0:
        return 0.0, 0.0
    points = cKDTree(np.stack([dx, dy], -1))
    votes = points.query_ball_point(points.data, _VOTE_ARCSEC, return_length=True)
    best = points.query_ball_point(points.data[np.argmax(votes)], 2 * _VOTE_ARCSEC)
    return float(np.median(dx[best])) / 3600.0, float(np.median(dy[best])) / 3600.0


def _moved(wcs: Wcs, xi_deg: float, eta_deg: float) -> Wcs:
    """The WCS with its reference pixel moved in the tangent plane."""
    ra, dec = deproject(xi_deg, eta_deg, *wcs.crval_deg)
    return Wcs((float(ra), float(dec)), wcs.crpix, wcs.cd, wcs.order, wcs.a, wcs.b)


def _match(x: F8, y: F8, ra: F8, dec: F8, wcs: Wcs, radius_arcsec: float) -> tuple[I8, I8]:
    """Pairs that are each other's nearest within a radius."""
    ours = np.stack(wcs.pixel_to_plane(x, y), -1) * 3600.0
    theirs = np.stack(project(ra, dec, *wcs.crval_deg), -1) * 3600.0
    distance, index = cKDTree(theirs).query(ours, distance_upper_bound=radius_arcsec)
    star = np.flatnonzero(np.isfinite(distance))
    order = star[np.argsort(distance[star], kind="stable")]
    _, first = np.unique(index[order], return_index=True)
    star = np.sort(order[first])
    return star, index[star]


def _refine(x: F8, y: F8, ra: F8, dec: F8, wcs: Wcs) -> tuple[Wcs, float]:
    """Fit the linear part to matched pairs: a new WCS and the scatter per axis in arcsec."""
    keep = np.ones(len(x), np.bool_)
    scatter = 0.0
    for _ in range(3):
        xi, eta = wcs.pixel_to_plane(x, y)
        xi_ref, eta_ref = project(ra, dec, *wcs.crval_deg)
        matrix, shift = _linear(xi[keep], eta[keep], xi_ref[keep], eta_ref[keep])
        residual = np.stack([xi_ref, eta_ref]) - matrix @ np.stack([xi, eta]) - shift[:, None]
        scatter = float(1.4826 * np.median(np.abs(residual[:, keep]))) * 3600.0
        distance = np.hypot(*residual) * 3600.0
        keep = distance < max(3.5 * scatter, 1e-4)
        moved = _moved(wcs, *shift)
        wcs = Wcs(moved.crval_deg, wcs.crpix, matrix @ wcs.cd, wcs.order, wcs.a, wcs.b)
    return wcs, scatter


def _linear(xi: F8, eta: F8, xi_ref: F8, eta_ref: F8) -> tuple[F8, F8]:
    """Matrix (2, 2) and shift that take (xi, eta) to the reference, of as many terms as the stars bear."""
    n = len(xi)
    mean, mean_ref = np.array([xi.mean(), eta.mean()]), np.array([xi_ref.mean(), eta_ref.mean()])
    u, v, u_ref, v_ref = xi - mean[0], eta - mean[1], xi_ref - mean_ref[0], eta_ref - mean_ref[1]
    if n >= _FOR_AFFINE:
        matrix = np.linalg.lstsq(np.stack([u, v], -1), np.stack([u_ref, v_ref], -1), rcond=None)[0].T
    elif n >= _FOR_ROTATION:
        cosine, sine = (u * u_ref + v * v_ref).sum(), (u * v_ref - v * u_ref).sum()
        norm = (u * u + v * v).sum() if n >= _FOR_SCALE else np.hypot(cosine, sine)
        matrix = np.array([[cosine, -sine], [sine, cosine]]) / norm
    else:
        matrix = np.eye(2)
    return matrix, mean_ref - matrix @ mean
