"""Positions in catalogues: unit vectors, small offsets, covariances."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

F8 = NDArray[np.float64]
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


def position_variance(frame: pd.DataFrame) -> tuple[F8, F8, F8]:
    """Variances and covariance (East East, North North, East North) in arcsec^2.

    raErr and ra_dec_Cov are along the sky, that is with cos(dec) in them;
    unknown ones count as 0, and so does a covariance that the errors do not allow.
    """
    east, north = (np.nan_to_num(frame[c].to_numpy(np.float64)) * _ARCSEC for c in ("raErr", "decErr"))
    covariance = np.nan_to_num(frame["ra_dec_Cov"].to_numpy(np.float64)) * _ARCSEC**2
    return east**2, north**2, np.where(np.abs(covariance) < east * north, covariance, 0.0)
