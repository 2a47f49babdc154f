"""The PSF of an image from its stars."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter, uniform_filter

from apflow.errors import DataError
from apflow.model.exposure import Exposure, Mask
from apflow.model.psf import Psf, polynomial_exponents, polynomial_terms
from apflow.pixels.point_sources import TAPS, fit_radius, fit_rows, registered_stamps
from apflow.pixels.wings import LEVEL_FWHM, Wing, moffat_wing, stars_wing

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]

#: Stars of the mean of the PSF's coefficients: fewer lower the spatial order.
_STARS_PER_TERM = 8
#: Error of a star's profile that is not photon noise: keeps the few brightest from deciding alone.
_PROFILE_ERROR = 0.02
#: Part by which the PSF may vary to the image's border.
_VARIATION = 0.25
#: A pixel of a star's stamp further off than this is a neighbour's, a star with worse residuals no star.
_CLIP_SIGMA, _CLIP_STARS_SIGMA = 4.0, 4.0
#: Stars whose wings are looked at, the brightest: more say no more.
_WING_STARS = 120
#: Beyond so many FWHM the PSF is its wing's model.
_WING_FWHM = 2.0
#: What exceeds the PSF by so much in 3 x 3 pixels is a neighbour.
_NEIGHBOUR_SIGMA = 3.0

_UNUSABLE = int(Mask.BAD | Mask.SAT | Mask.NO_DATA | Mask.CR)


def psf_size(fwhm_px: float) -> int:
    """Side of a PSF stamp: 3.5 FWHM each way hold 99.5 % of a Moffat of index 3."""
    return 2 * int(np.ceil(3.5 * fwhm_px)) + 1


def fit_psf(exposure: Exposure, stars: pd.DataFrame, order: int = 1, size: int | None = None) -> Psf:
    """Fit each pixel of the PSF as a polynomial in the position on the image.

    Stamps are registered to the middle pixel by Lanczos interpolation,
    scaled to unit flux, and averaged by least squares; registration and flux
    are then measured anew with that PSF, three times over. Discrepant pixels
    and stars are left out. The level under the PSF is fixed by a Moffat wing.

    Parameters
    ----------
    exposure : `Exposure`
        With the sky subtracted.
    stars : `pandas.DataFrame`
        Columns x, y, flux, fwhm of `find_stars`: stars only (`stellar_locus`).
    order : `int`
        Order of the polynomial; lowered so that each term has 8 stars.
    size : `int`, optional
        Side of the PSF stamp, odd; `psf_size` of the stars by default, which
        the fit itself always has at least.

    Raises
    ------
    DataError
        No star's stamp lies within the image.
    """
    fwhm = float(stars["fwhm"].median()) if len(stars) else np.nan
    half = max(psf_size(fwhm), size or 0) // 2 if len(stars) else 0
    x, y, flux = (stars[c].to_numpy(float) for c in ("x", "y", "flux"))
    ny, nx = exposure.shape
    edge = half + TAPS + 2
    inside = (x > edge) & (x < nx - 1 - edge) & (y > edge) & (y < ny - 1 - edge)
    if not inside.any():
        raise DataError(f"no star of {len(stars)} lies {edge} px or more inside the image of {nx} x {ny} px")
    x, y, flux = x[inside], y[inside], flux[inside]
    while order and len(x) < _STARS_PER_TERM * len(polynomial_exponents(order)):
        order -= 1
    stamps = registered_stamps(exposure.image, x, y, half)
    mean = np.median(stamps / flux[:, None, None], 0)
    psf = Psf((mean / mean.sum())[None], exposure.shape)
    good, wing = np.ones(len(x), np.bool_), moffat_wing(fwhm)
    for turn in range(3):
        rows = fit_rows(exposure.image, exposure.variance, psf.terms, psf.shape, psf.order, x, y, fit_radius(fwhm))
        good = _trusted(rows, x, y)
        x, y = np.where(good, rows[:, 0], x), np.where(good, rows[:, 1], y)
        flux = np.where(good, rows[:, 2], flux)
        profiles = registered_stamps(exposure.image, x[good], y[good], half) / flux[good, None, None]
        noise = np.sqrt(np.median(exposure.variance[:: max(1, ny // 64), :: max(1, nx // 64)])) / flux[good]
        clean = ~(_masked(exposure.mask, x[good], y[good], half) | _neighbours(profiles, psf.terms[0], noise))
        if turn:
            brightest = np.flatnonzero(good)[np.argsort(-flux[good], kind="stable")[:_WING_STARS]]
            wing = stars_wing(exposure, x[brightest], y[brightest], flux[brightest], fwhm)
        level = _levels(profiles, clean, wing, fwhm)
        design = polynomial_terms(x[good], y[good], exposure.shape, order)
        terms = _average(profiles - level[:, None, None], clean, noise, design, psf.terms[0])
        psf = Psf(_normalised(terms, wing(_radius2(half)), fwhm, design.mean(0)), exposure.shape)
    cut = max(0, half - (size or psf.size) // 2)
    return Psf(psf.terms[:, cut : psf.size - cut, cut : psf.size - cut], exposure.shape)


def _trusted(rows: F8, x: F8, y: F8) -> NDArray[np.bool_]:
    """Stars whose fit converged nearby and whose residuals are like the others'."""
    with np.errstate(invalid="ignore"):
        good = (rows[:, 2] > 0) & (np.hypot(rows[:, 0] - x, rows[:, 1] - y) < 1.0)
    if not good.any():
        raise DataError(f"no PSF: none of {len(x)} stars could be fitted")
    chi2 = np.log(rows[good, 4])
    middle = np.median(chi2)
    spread = max(1.4826 * float(np.median(np.abs(chi2 - middle))), 0.1)
    good[good] = chi2 < middle + _CLIP_STARS_SIGMA * spread
    return np.asarray(good)


def _neighbours(profiles: F8, psf: F8, noise: F8) -> NDArray[np.bool_]:
    """Pixels (n, k, k) under and about what exceeds the PSF in 3 x 3 means: other sources."""
    excess = uniform_filter(profiles - psf, (0, 3, 3), mode="nearest")
    return np.asarray(
        maximum_filter(excess > _NEIGHBOUR_SIGMA / 3 * noise[:, None, None] + 0.1 * psf, (1, 9, 9), mode="constant")
    )


def _average(profiles: F8, clean: NDArray[np.bool_], noise: F8, design: F8, psf: F8) -> F8:
    """Coefficient images (nterms, k, k) by weighted least squares with clipping of pixels.

    `profiles` (n, k, k) of unit flux, `clean` where they are the star's own,
    `noise` (n,) of their pixels, `design` (n, nterms), `psf` (k, k) what is
    known already. Variation is expected to be a part of that, and shrinks to
    it where the stars say little.
    """
    n, k, _ = profiles.shape
    data, known = profiles.reshape(n, k * k), np.maximum(psf.reshape(k * k), 0.0)
    floor = _PROFILE_ERROR * known + 1e-3 * known.max()
    variance = noise[:, None] ** 2 + floor**2
    weight = np.where(clean.reshape(n, k * k), 1.0, 1e-6) / variance
    products = (design[:, :, None] * design[:, None, :]).reshape(n, -1)
    m = design.shape[1]
    prior = np.zeros((k * k, m, m))
    for term in range(1, m):
        prior[:, term, term] = 1.0 / (_VARIATION * known + 1e-4 * known.max()) ** 2
    terms = np.zeros((m, k * k))
    for turn in range(3):
        if turn:
            off = (data - design @ terms) ** 2 / variance
            weight = np.where(off < _CLIP_SIGMA**2, weight, weight * 1e-6)
        normal = (weight.T @ products).reshape(k * k, m, m) + prior
        right = (weight * data).T @ design
        terms = np.linalg.solve(normal, right[:, :, None])[:, :, 0].T
    return np.asarray(terms.reshape(m, k, k))


def _normalised(terms: F8, wing: F8, fwhm: float, mean: F8) -> F8:
    """The PSF with its wing in place of noise beyond 2 FWHM, of sum 1 everywhere on the image.

    Fluxes that drift over the image and a PSF whose sum does are one and the
    same: the drift is taken out, about the stars' ``mean`` terms.
    """
    k = terms.shape[1]
    axis = np.arange(k) - k // 2
    far = np.hypot(axis[:, None], axis) > _WING_FWHM * fwhm
    out = np.where(far, 0.0, terms)
    typical = np.tensordot(mean, out, 1)
    drift = out.sum((1, 2)) / typical.sum()
    drift[0] -= 1.0
    out -= drift[:, None, None] * typical
    out[0] += np.where(far, wing, 0.0)
    return np.asarray(out / out[0].sum())


def _levels(profiles: F8, clean: NDArray[np.bool_], wing: Wing, fwhm: float) -> F8:
    """Level (n,) under each profile, from where its own light hardly counts."""
    r2 = _radius2(profiles.shape[1] // 2)
    use = clean & (r2 > (LEVEL_FWHM * fwhm) ** 2)
    return np.asarray(np.where(use, profiles - wing(r2), 0.0).sum((1, 2)) / np.maximum(use.sum((1, 2)), 1))


def _radius2(half: int) -> F8:
    """Squared distance (k, k) from the middle of a stamp."""
    axis = np.arange(-half, half + 1.0)
    return np.asarray(axis[:, None] ** 2 + axis**2)


@njit(cache=True, nogil=True)
def _masked(mask: I4, x: F8, y: F8, half: int) -> NDArray[np.bool_]:
    """Pixels (n, k, k) of stamps that hold no light of their own."""
    k = 2 * half + 1
    out = np.zeros((len(x), k, k), np.bool_)
    for n in range(len(x)):
        x0, y0 = round(x[n]) - half, round(y[n]) - half
        for j in range(k):
            for i in range(k):
                out[n, j, i] = mask[y0 + j, x0 + i] & _UNUSABLE
    return out
