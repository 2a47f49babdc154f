"""Directions and covariances of small things on the sky, from pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apflow.model.wcs import Wcs

F8 = NDArray[np.float64]


def local_frame(wcs: Wcs, x: float, y: float) -> F8:
    """Degrees to the East (first row) and North for a pixel along x (first column) and y, at a position."""
    ra, dec = wcs.pixel_to_sky(np.array([x, x + 0.5, x - 0.5, x, x]), np.array([y, y, y, y + 0.5, y - 0.5]))
    east = (ra[1::2] - ra[2::2] + 180.0) % 360.0 - 180.0
    return np.stack([east * np.cos(np.radians(dec[0])), dec[1::2] - dec[2::2]])


def bearing_deg(wcs: Wcs, x: float, y: float, dx: float, dy: float) -> tuple[float, float]:
    """Angle from North by East of a direction (dx, dy) in pixels, in [0, 360) degrees, and arcsec for its length."""
    east, north = local_frame(wcs, x, y) @ np.array([dx, dy])
    return float(np.degrees(np.arctan2(east, north)) % 360.0), float(np.hypot(east, north) * 3600.0)


def covariance_deg(wcs: Wcs, x: float, y: float, covariance: F8) -> F8:
    """A covariance (2, 2) in pixels as one of (ra cos(dec), dec) in degrees."""
    frame = local_frame(wcs, x, y)
    return np.asarray(frame @ covariance @ frame.T)
