"""Positions in catalogues: unit vectors, small offsets, covariances, means, neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import cKDTree

from apflow.catalogs.grouped import total

F8 = NDArray[np.float64]
I8 = NDArray[np.int64]
_ARCSEC = 3600.0


def unit_vectors(ra_deg: ArrayLike, dec_deg: ArrayLike) -> F8:
    """Unit vectors, shape (n, 3), of ICRS positions in degrees."""
    ra, dec = np.radians(np.asarray(ra_deg, float)), np.radians(np.asarray(dec_deg, float))
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], -1)


def offsets_arcsec(ra1_deg: ArrayLike, dec1_deg: ArrayLike, ra2_deg: ArrayLike, dec2_deg: ArrayLike) -> tuple[F8, F8]:
    """Offset of position 1 from position 2 towards East and North, arcsec; good anywhere for small ones."""
    v = unit_vectors(ra1_deg, dec1_deg)
    ra, dec = np.radians(np.asarray(ra2_deg, float)), np.radians(np.asarray(dec2_deg, float))
    east = -np.sin(ra) * v[:, 0] + np.cos(ra) * v[:, 1]
    north = -np.sin(dec) * (np.cos(ra) * v[:, 0] + np.sin(ra) * v[:, 1]) + np.cos(dec) * v[:, 2]
    scale = np.degrees(1.0) * _ARCSEC
    return east * scale, north * scale


def moved(ra_deg: F8, dec_deg: F8, east_arcsec: F8, north_arcsec: F8) -> tuple[F8, F8]:
    """Positions (ra in [0, 360), dec; degrees) at small offsets from others: undoes `offsets_arcsec`."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    east, north = np.radians(east_arcsec / _ARCSEC), np.radians(north_arcsec / _ARCSEC)
    radial = np.cos(dec) - north * np.sin(dec)
    x, y = radial * np.cos(ra) - east * np.sin(ra), radial * np.sin(ra) + east * np.cos(ra)
    new_ra = np.degrees(np.arctan2(y, x)) % 360.0
    # A tiny negative angle comes out of the modulo as 360 itself.
    new_ra = np.where(new_ra >= 360.0, 0.0, new_ra)
    return new_ra, np.degrees(np.arctan2(np.sin(dec) + north * np.cos(dec), np.hypot(x, y)))


@dataclass(frozen=True, eq=False)
class Places:
    """Positions with their covariances, row by row.

    `ra` and `dec` in degrees; `xx`, `yy`, `xy` are the variances towards East
    and North and their covariance, arcsec^2, with cos(dec) in them.
    """

    ra: F8
    dec: F8
    xx: F8
    yy: F8
    xy: F8

    @classmethod
    def of(cls, table: pd.DataFrame | Mapping[str, Any]) -> Self:
        """Places of rows with ra, dec, raErr, decErr and ra_dec_Cov (degrees).

        Unknown errors count as 0, and so does a covariance that the errors do
        not allow.
        """
        values = {c: np.asarray(table[c], np.float64) for c in ("ra", "dec", "raErr", "decErr", "ra_dec_Cov")}
        east, north = (np.nan_to_num(values[c]) * _ARCSEC for c in ("raErr", "decErr"))
        covariance = np.nan_to_num(values["ra_dec_Cov"]) * _ARCSEC**2
        allowed = np.where(np.abs(covariance) < east * north, covariance, 0.0)
        return cls(values["ra"], values["dec"], east**2, north**2, allowed)

    def __len__(self) -> int:
        return len(self.ra)

    def take(self, rows: I8 | NDArray[np.bool_]) -> Places:
        """Some of the rows."""
        return Places(self.ra[rows], self.dec[rows], self.xx[rows], self.yy[rows], self.xy[rows])

    @property
    def vectors(self) -> F8:
        """Unit vectors, shape (n, 3)."""
        return unit_vectors(self.ra, self.dec)


def mean_places(places: Places, floor_arcsec2: F8, group: I8, n: int) -> Places:
    """Mean position of each of n groups of nearby places, none of them empty, with its covariance.

    Weights are ``W = (C + floor)^-1``, so that no place outweighs all others
    because its error is claimed to be tiny; the covariance of the mean is the one
    that the C claim, without the floor: ``V = A^-1 (sum W C W) A^-1`` with ``A = sum W``.

    Parameters
    ----------
    floor_arcsec2 : `numpy.ndarray`
        Variance added to each place in both directions, above 0.
    """
    _, start = np.unique(group, return_index=True)
    ra0, dec0 = places.ra[start], places.dec[start]
    x, y = offsets_arcsec(places.ra, places.dec, ra0[group], dec0[group])
    xx, yy, xy = places.xx + floor_arcsec2, places.yy + floor_arcsec2, places.xy
    det = xx * yy - xy * xy
    xx, yy, xy = yy / det, xx / det, -xy / det

    def summed(*values: F8) -> F8:
        return np.stack([total(group, v, n) for v in values], -1)

    a = np.linalg.inv(summed(xx, xy, xy, yy).reshape(n, 2, 2))
    moves = (a @ summed(xx * x + xy * y, xy * x + yy * y)[:, :, None])[:, :, 0]
    # W C W = W - floor W W, since C + floor = W^-1.
    square = (xx * xx + xy * xy, xy * (xx + yy), xy * (xx + yy), yy * yy + xy * xy)
    v = a - a @ summed(*(floor_arcsec2 * s for s in square)).reshape(n, 2, 2) @ a
    # Rounding may leave a variance of nothing below 0.
    variance = np.maximum(v[:, 0, 0], 0.0), np.maximum(v[:, 1, 1], 0.0)
    return Places(*moved(ra0, dec0, *moves.T), *variance, v[:, 0, 1])


def chord(radius_arcsec: float) -> float:
    """Distance of two unit vectors that are an angle apart."""
    return 2.0 * math.sin(math.radians(radius_arcsec / _ARCSEC) / 2.0)


def neighbours(a: Places, b: Places, radius_arcsec: float) -> tuple[I8, I8]:
    """Indices of all pairs (a, b) within a radius, in order."""
    if not len(a) or not len(b):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    # Balanced trees take three times as long to build as these, and to search no less.
    trees = [cKDTree(p.vectors, balanced_tree=False, compact_nodes=False) for p in (a, b)]
    found = trees[0].sparse_distance_matrix(trees[1], chord(radius_arcsec), output_type="ndarray")
    order = np.lexsort((found["j"], found["i"]))
    return found["i"][order].astype(np.int64), found["j"][order].astype(np.int64)


def pair_cost(a: Places, b: Places, floor_arcsec: float) -> F8:
    """``0.5 chi^2 + 0.5 ln(det C)`` of pairs, row by row.

    C (arcsec^2) is the sum of both covariances and of the square of a floor in
    each direction; chi^2 the squared separation in its units. Up to a constant
    it is minus the logarithm of the likelihood that both are one thing
    (Sutherland & Saunders 1992).
    """
    x, y = offsets_arcsec(a.ra, a.dec, b.ra, b.dec)
    xx, yy, xy = a.xx + b.xx + floor_arcsec**2, a.yy + b.yy + floor_arcsec**2, a.xy + b.xy
    det = xx * yy - xy * xy
    return np.asarray(0.5 * (yy * x * x - 2.0 * xy * x * y + xx * y * y) / det + 0.5 * np.log(det))
