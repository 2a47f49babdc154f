"""The photometric zero point."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Magnitude of 1 e-/s, its robust scatter from star to star, the number of stars kept, and its error."""

    zero_point_mag: float
    scatter_mag: float
    n: int
    error_mag: float = float("nan")


def in_our_band(mag: F8, colour: F8 | None, colour_term: float) -> F8:
    """Reference magnitudes in the image's own band: ``mag + colour_term * colour``.

    Stars without a colour (NaN) take the median one; without any colour, or
    term, magnitudes stay as they are.
    """
    if colour is None or colour_term == 0.0 or not np.isfinite(colour).any():
        return mag
    return np.asarray(mag + colour_term * np.where(np.isfinite(colour), colour, np.nanmedian(colour)))


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
    # Stars may scatter more than their errors say.
    excess = max(1.0, float(np.average((each[keep] - middle) ** 2 * weight[keep])))
    return ZeroPoint(middle, scatter, int(keep.sum()), float(np.sqrt(excess / weight[keep].sum())))


def nanojansky_per_electron(zero_point_mag: float, exposure_time_s: float) -> float:
    """Flux in nJy of one electron collected during the exposure."""
    return float(10.0 ** (0.4 * (NJY_ZERO_POINT - zero_point_mag)) / exposure_time_s)


def surface_brightness(sky_electron_s: float, zero_point_mag: float, pixel_scale_arcsec: float) -> float:
    """Surface brightness (mag/arcsec^2) of a sky of so many e-/s a pixel; NaN where it is not positive."""
    rate = sky_electron_s / pixel_scale_arcsec**2
    return float(zero_point_mag - 2.5 * np.log10(rate)) if rate > 0 else float("nan")


def effective_time_ratio(
    summary: Mapping[str, float], zero_point_mag: float, sky_mag_arcsec2: float, fwhm_arcsec: float
) -> float:
    """Exposure time that reaches the same depth under nominal conditions, over the exposure time.

    Neilsen et al. (2016, FNAL-TM-2610), with b the sky as it was counted, so
    that clouds dim it, too::

        tau = eta^2 (FWHM / FWHM_0)^-2 (b / b_0)^-1

    It is 1 at SMTN-002's conditions, and the depth of a background-limited
    image goes as 1.25 log10 of it.

    Parameters
    ----------
    summary : mapping
        zero_point_mag, sky_mag_arcsec2 and psf_fwhm_arcsec as measured.
    zero_point_mag, sky_mag_arcsec2, fwhm_arcsec : `float`
        Nominal ones of the filter at the zenith under a dark sky.
    """
    eta = 10.0 ** (0.4 * (summary["zero_point_mag"] - zero_point_mag))
    # Counts from the surface brightness: 10^(0.4 (zero point - brightness)).
    sky = eta * 10.0 ** (0.4 * (sky_mag_arcsec2 - summary["sky_mag_arcsec2"]))
    return float(eta**2 * (fwhm_arcsec / summary["psf_fwhm_arcsec"]) ** 2 / sky)
