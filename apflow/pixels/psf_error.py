"""How wrong the model of a PSF is, as the fluxes fitted with it show."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apflow.model.exposure import Exposure
from apflow.model.psf import Psf
from apflow.pixels.point_sources import TAPS, fit_radius, registered_stamps
from apflow.pixels.wings import LEVEL_FWHM

F8 = NDArray[np.float64]

#: The aperture is whole to the first radius and ends at the second, in FWHM: no edge that pixels straddle.
_TAPER_FWHM = 1.0, 2.0
#: Fewest stars that tell a scatter.
_FEWEST = 5
#: Median of chi squared with one degree of freedom.
_MEDIAN_CHI2 = 0.4549


def psf_model_error(exposure: Exposure, psf: Psf, x: F8, y: F8, flux: F8) -> float:
    """Scatter of PSF fluxes that the PSF's model makes, as a part of the flux.

    A PSF flux leans on the shape of the PSF, the light in an aperture hardly
    does. What their ratio scatters beyond the noise of both is the model's
    error, for a star that had no part in it.

    Parameters
    ----------
    exposure : `Exposure`
        With the sky subtracted.
    x, y, flux : `numpy.ndarray`, (n,)
        Bright stars that the PSF was made of, and their PSF fluxes (`fit_point_sources`).

    Returns
    -------
    error : `float`
        0 where the noise explains the scatter; NaN with fewer than 5 stars.
    """
    half, (ny, nx) = psf.size // 2, exposure.shape
    edge = half + TAPS + 1
    use = (x > edge) & (x < nx - 1 - edge) & (y > edge) & (y < ny - 1 - edge) & (flux > 0)
    x, y, flux = x[use], y[use], flux[use]
    if len(x) < _FEWEST:
        return float("nan")
    stamps = registered_stamps(exposure.image, x, y, half)
    ratios, errors = np.array([_ratio(exposure, psf, *star) for star in zip(stamps, x, y, flux, strict=True)]).T
    known = np.isfinite(ratios)
    if known.sum() < _FEWEST:
        return float("nan")
    square = (ratios[known] - np.median(ratios[known])) ** 2
    scatter = _intrinsic(square, errors[known] ** 2)
    n, terms = int(known.sum()), len(psf.terms)
    # Stars that made the model lie nearer to it than others will.
    return float(scatter * np.sqrt((n + terms) / max(n - terms, 1)))


def _ratio(exposure: Exposure, psf: Psf, stamp: F8, x: float, y: float, flux: float) -> tuple[float, float]:
    """Light in an aperture over what the PSF says of it, and the error of that by noise."""
    half = psf.size // 2
    axis = np.arange(-half, half + 1.0)
    radius = np.hypot(axis[:, None], axis)
    fwhm = psf.fwhm_px()
    first, last = (r * fwhm for r in _TAPER_FWHM)
    taper = 0.5 + 0.5 * np.cos(np.pi * np.clip((radius - first) / (last - first), 0.0, 1.0))
    far = (radius > LEVEL_FWHM * fwhm) / np.count_nonzero(radius > LEVEL_FWHM * fwhm)
    profile = psf.at(x, y)
    # Fluxes are linear in the pixels: by these weights of the aperture on its level, and of the PSF on its own.
    aperture = (taper - taper.sum() * far) / ((taper - taper.sum() * far) * profile).sum()
    inside = radius <= fit_radius(fwhm)
    fitted = np.where(inside, profile - profile[inside].mean(), 0.0)
    fitted /= (fitted * profile).sum()
    y0, x0 = round(y) - half, round(x) - half
    variance = exposure.variance[y0 : y0 + psf.size, x0 : x0 + psf.size]
    noise = np.sqrt(((aperture - fitted) ** 2 * variance).sum())
    return float((aperture * stamp).sum() / flux), float(noise / flux)


def _intrinsic(square: F8, noise2: F8) -> float:
    """Scatter that, with the noise, explains the median of squared deviations; 0 where the noise does alone."""
    low, high = 0.0, float(np.sqrt(square.max()) * 2.0)
    if np.median(square / noise2) < _MEDIAN_CHI2:
        return 0.0
    for _ in range(40):
        middle = 0.5 * (low + high)
        if np.median(square / (noise2 + middle**2)) > _MEDIAN_CHI2:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)
