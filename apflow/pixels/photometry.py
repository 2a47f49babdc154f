"""The photometric zero point."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

F8 = NDArray[np.float64]

#: AB magnitude of 1 nJy.
NJY_ZERO_POINT = 31.4
#: Errors of the reference magnitudes and of the flat: keeps the few brightest stars from deciding alone.
_FLOOR_MAG = 0.005


@dataclass(frozen=True)
class ZeroPoint:
    """Magnitude of 1 e-/s, its robust scatter from star to star, and the number of stars kept."""

    zero_point_mag: float
    scatter_mag: float
    n: int


def fit_zero_point(flux: F8, exposure_time_s: float, mag: F8, flux_err: F8 | None = None) -> ZeroPoint:
    """Zero point of stars with known magnitudes, with rejection.

    Parameters
    ----------
    flux, flux_err : `numpy.ndarray`, (n,)
        PSF fluxes and their errors, electrons; without errors all weigh the same.
    exposure_time_s : `float`
    mag : `numpy.ndarray`, (n,)
        AB magnitudes.

    Returns
    -------
    zero_point : `ZeroPoint`
        NaN with n = 0 when there is no star with a positive flux.
    """
    good = np.isfinite(flux) & (flux > 0) & np.isfinite(mag)
    each = mag[good] + 2.5 * np.log10(flux[good] / exposure_time_s)
    if len(each) == 0:
        return ZeroPoint(np.nan, np.nan, 0)
    error = np.zeros(len(each)) if flux_err is None else 1.0857 * flux_err[good] / flux[good]
    weight = 1.0 / (error**2 + _FLOOR_MAG**2)
    middle = float(np.median(each))
    scatter = 0.0
    keep = np.ones(len(each), np.bool_)
    for _ in range(5):
        scatter = float(1.4826 * np.median(np.abs(each[keep] - middle)))
        pull = np.abs(each - middle)
        kept = (pull < 3.0 * max(scatter, _FLOOR_MAG)) & (pull < 3.0 * np.maximum(np.sqrt(1 / weight), scatter))
        if not kept.any() or (kept == keep).all():
            break
        keep = kept
        middle = float(np.average(each[keep], weights=weight[keep]))
    return ZeroPoint(middle, scatter, int(keep.sum()))


def nanojansky_per_electron(zero_point_mag: float, exposure_time_s: float) -> float:
    """Flux in nJy of one electron collected during the exposure."""
    return float(10.0 ** (0.4 * (NJY_ZERO_POINT - zero_point_mag)) / exposure_time_s)
