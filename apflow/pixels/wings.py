"""The light of stars beyond their cores: rings about them, the wing of the PSF, and the aperture correction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.optimize import least_squares

from apflow.model.exposure import Exposure, Mask
from apflow.model.psf import Psf, polynomial_terms

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]
Wing = Callable[[F8], F8]

#: Radius in FWHM to which rings go: the wing's and the level under it are told apart only well beyond the PSF's stamp.
RINGS_FWHM = 7.0
#: Radius in FWHM within which a star's light is its total; 99.7 % of a Moffat of index 3.
TOTAL_FWHM = 5.0
#: Beyond so many FWHM a star's own light hardly counts against the error of the sky under it.
LEVEL_FWHM = 2.5
#: Rings from here, in FWHM, are the wing; further in other stars are not looked for.
_INNER_FWHM = 1.2
#: A 3 x 3 mean off by so many sigma, and a part of the star's own light, is of something else, as are pixels near it.
_NEIGHBOUR_SIGMA, _NEIGHBOUR_RATIO, _NEIGHBOUR_PX = 4.0, 0.5, 4
#: Stars looked at, the brightest first: more say no more of the wing.
_MOST = 120
#: Error of a star's total that is not noise: faint neighbours.
_FLOOR = 0.003
#: Stars at least for an aperture correction at all, and for one that varies; by how much it may, to the border.
_FEWEST, _FOR_SLOPE, _SLOPE = 3, 60, 0.005
#: Chi squared, of two degrees of freedom, of a slope that is not chance.
_SIGNIFICANT = 16.0
#: Error of a correction of 1 that no star has told: about what the stamp of a PSF leaves out.
_UNKNOWN = 0.01

_UNUSABLE = int(Mask.BAD | Mask.SAT | Mask.NO_DATA | Mask.CR)


@dataclass(frozen=True, eq=False)
class Rings:
    """Rings of 1 px about n stars: sums (n, m) of clean pixels, how many these are, and all the pixels of a ring."""

    sums: F8
    counts: F8
    pixels: F8

    @property
    def r2(self) -> F8:
        """Mean squared radius (m,) of the pixels of a ring."""
        k = np.arange(self.sums.shape[1])
        return np.asarray(k**2 + 1.0 / 12.0, float)


def measure_rings(exposure: Exposure, x: F8, y: F8, noise: F8, fwhm: float) -> Rings:
    """Light about stars without that of their neighbours.

    Parameters
    ----------
    exposure : `Exposure`
        With the sky subtracted.
    x, y : `numpy.ndarray`, (n,)
        Stars.
    noise : `numpy.ndarray`, (n,)
        Error of a pixel of blank sky near them.
    """
    n_rings, inner = int(np.ceil(RINGS_FWHM * fwhm)) + 1, int(np.ceil(_INNER_FWHM * fwhm))
    return Rings(*_rings(exposure.image, exposure.mask, x, y, noise, inner, n_rings))


def moffat_wing(fwhm: float, beta: float = 3.5) -> Wing:
    """A Moffat star of unit flux as a function of the squared radius."""
    alpha2 = fwhm**2 / (4.0 * (2.0 ** (1.0 / beta) - 1.0))
    return lambda r2: np.asarray((beta - 1.0) / (np.pi * alpha2) * (1.0 + r2 / alpha2) ** -beta)


def fit_wing(rings: Rings, flux: F8, noise: F8, fwhm: float) -> Wing:
    """The wing of the mean PSF of unit flux beyond 1.2 FWHM.

    The error of a sky that a star's own light draws up drowns a wing pixel by
    pixel; means over rings bring it out. Their average over stars is a
    Moffat's wing on a level.
    """
    radius = np.arange(rings.sums.shape[1])
    use, far = radius >= _INNER_FWHM * fwhm, radius >= LEVEL_FWHM * fwhm
    profiles, counts = rings.sums / flux[:, None], rings.counts
    weight = (flux / noise)[:, None] ** 2
    wing, level = moffat_wing(fwhm), np.zeros(len(flux))
    for _ in range(3):
        level = (profiles - counts * wing(rings.r2))[:, far].sum(1) / np.maximum(counts[:, far].sum(1), 1.0)
        total = np.maximum((weight * counts)[:, use].sum(0), 1e-300)
        values = (weight * (profiles - level[:, None] * counts))[:, use].sum(0) / total
        # The profile of each star is a little its own.
        error = np.hypot(1.0 / np.sqrt(total), 0.01 * np.abs(values))
        wing = _fit_moffat(rings.r2[use], values, error, fwhm)
    return wing


def stars_wing(exposure: Exposure, x: F8, y: F8, flux: F8, fwhm: float) -> Wing:
    """The wing of a PSF of unit flux, measured on stars."""
    noise = local_noise(exposure, x, y)
    return fit_wing(measure_rings(exposure, x, y, noise, fwhm), flux, noise, fwhm)


def _fit_moffat(r2: F8, values: F8, error: F8, fwhm: float) -> Wing:
    """Moffat that fits a profile at radii of square r2 up to a constant level."""

    def moffat(parameters: F8, at: F8) -> F8:
        alpha, beta = np.exp(parameters)
        return np.asarray((1.0 + at / alpha**2) ** -beta / (1.0 + r2[0] / alpha**2) ** -beta)

    def solve(parameters: F8) -> tuple[F8, F8]:
        design = np.stack([moffat(parameters, r2), np.ones_like(r2)], -1) / error[:, None]
        return design, np.linalg.lstsq(design, values / error, rcond=None)[0]

    def residual(parameters: F8) -> F8:
        design, solution = solve(parameters)
        return np.asarray(design @ solution - values / error)

    bounds = np.log([[0.3 * fwhm, 1.8], [3.0 * fwhm, 8.0]])
    best = least_squares(residual, np.log([fwhm, 3.5]), bounds=tuple(bounds), max_nfev=20).x
    height = solve(best)[1][0]
    return lambda at: height * moffat(best, at)


@dataclass(frozen=True)
class ApertureCorrection:
    """Total flux of a star over its PSF flux: ``value + slope . (u, v)``, u and v from -1 to 1 over the image.

    `error` is that of `value`.
    """

    value: float
    error: float
    slope: tuple[float, float] = (0.0, 0.0)

    def relative(self, x: F8, y: F8, shape: tuple[int, int]) -> F8:
        """The correction at pixels over that of the image's middle."""
        ny, nx = shape
        u, v = 2.0 * x / max(nx - 1, 1) - 1.0, 2.0 * y / max(ny - 1, 1) - 1.0
        return np.asarray(1.0 + (self.slope[0] * u + self.slope[1] * v) / self.value)


def fit_aperture_correction(exposure: Exposure, psf: Psf, x: F8, y: F8, flux: F8, fwhm: float) -> ApertureCorrection:
    """Compare PSF fluxes with the light within 5 FWHM, of the brightest stars.

    The level is that of the rings beyond, less the wing's light there.

    Parameters
    ----------
    exposure, psf
        With the sky subtracted.
    x, y, flux : `numpy.ndarray`, (n,)
        Stars and their PSF fluxes (`fit_point_sources`), the brightest first.
    fwhm : `float`
        Of the stars, px.
    """
    x, y, flux = x[:_MOST], y[:_MOST], flux[:_MOST]
    noise = local_noise(exposure, x, y)
    rings = measure_rings(exposure, x, y, noise, fwhm)
    wing = fit_wing(rings, flux, noise, fwhm)
    radius = np.arange(rings.sums.shape[1])
    inside = radius <= TOTAL_FWHM * fwhm
    near, far = rings.counts[:, inside], rings.counts[:, ~inside].sum(1)
    own = flux[:, None] * wing(rings.r2[~inside]) * rings.counts[:, ~inside]
    level = (rings.sums[:, ~inside] - own).sum(1) / np.maximum(far, 1.0)
    pixels = rings.pixels[:, inside]
    whole = (near >= 0.4 * pixels).all(1) & (far > 0.3 * rings.pixels[:, ~inside].sum(1))
    if whole.sum() < _FEWEST:
        return ApertureCorrection(1.0, _UNKNOWN)
    share = pixels / np.maximum(near, 1.0)
    light = ((rings.sums[:, inside] - level[:, None] * near) * share).sum(1)
    spread = noise * np.sqrt((share**2 * near).sum(1) + pixels.sum(1) ** 2 / np.maximum(far, 1.0))
    good = whole & (flux > 0)
    ratio = light[good] / flux[good]
    error = np.sqrt((spread[good] / flux[good]) ** 2 + _FLOOR**2)
    terms = polynomial_terms(x[good], y[good], exposure.shape, 1 if good.sum() >= _FOR_SLOPE else 0)
    return _fit_ratio(ratio, error, terms)


def _fit_ratio(ratio: F8, error: F8, terms: F8) -> ApertureCorrection:
    """Robust weighted mean, or plane, of ratios."""
    prior = np.diag([0.0] + [1.0 / _SLOPE**2] * (terms.shape[1] - 1))
    solution = np.zeros(terms.shape[1])
    solution[0] = np.median(ratio)
    scale, covariance = 1.0, prior
    for _ in range(5):
        pull = (ratio - terms @ solution) / error
        scale = max(1.0, 1.4826 * float(np.median(np.abs(pull))))
        weight = np.where(np.abs(pull) < 3.0 * scale, 1.0, 0.0) / (error * scale) ** 2
        covariance = np.linalg.inv((terms.T * weight) @ terms + prior)
        solution = covariance @ (terms.T @ (weight * ratio))
    slope = (0.0, 0.0)
    if len(solution) == 3:
        tilt = solution[1:]
        if tilt @ np.linalg.solve(covariance[1:, 1:], tilt) > _SIGNIFICANT:
            slope = (float(tilt[0]), float(tilt[1]))
    return ApertureCorrection(float(solution[0]), float(np.sqrt(covariance[0, 0])), slope)


def local_noise(exposure: Exposure, x: F8, y: F8) -> F8:
    """Error (n,) of a pixel of sky: the same everywhere, from the variance's median."""
    ny, nx = exposure.shape
    sample = exposure.variance[:: max(1, ny // 64), :: max(1, nx // 64)]
    return np.full(len(x), np.sqrt(np.median(sample)))


@njit(cache=True, nogil=True)
def _rings(image: F4, mask: I4, x: F8, y: F8, noise: F8, inner: int, n_rings: int) -> tuple[F8, F8, F8]:
    """Sums and numbers of clean pixels in the rings of stars, and of all their pixels."""
    ny, nx = image.shape
    k = 2 * n_rings + 1
    sums, counts, pixels = np.zeros((len(x), n_rings)), np.zeros((len(x), n_rings)), np.zeros((len(x), n_rings))
    other, ring, mean = np.empty((k, k), np.bool_), np.empty((k, k), np.int64), np.empty((k, k))
    values, filled = np.empty((n_rings, 8 * n_rings + 8)), np.empty(n_rings, np.int64)
    for n in range(len(x)):
        x0, y0 = round(x[n]) - n_rings, round(y[n]) - n_rings
        other[:], filled[:], mean[:] = False, 0, np.nan
        for j in range(k):
            for i in range(k):
                xx, yy = x0 + i, y0 + j
                at = int(np.sqrt((xx - x[n]) ** 2 + (yy - y[n]) ** 2) + 0.5)
                ring[j, i] = at
                if at < inner or at >= n_rings or xx < 1 or xx >= nx - 1 or yy < 1 or yy >= ny - 1:
                    continue
                total = 0.0
                for a in range(-1, 2):
                    total += image[yy + a, xx - 1] + image[yy + a, xx] + image[yy + a, xx + 1]
                if np.isfinite(total):
                    mean[j, i] = total / 9.0
                    values[at, filled[at]] = mean[j, i]
                    filled[at] += 1
        for at in range(inner, n_rings):
            # What most of a ring looks like is the star's own; the rest has another source in it.
            values[at, 0] = np.median(values[at, : filled[at]]) if filled[at] else 0.0
        limit = _NEIGHBOUR_SIGMA / 3.0 * noise[n]
        for j in range(k):
            for i in range(k):
                at = ring[j, i]
                if at < inner or at >= n_rings:
                    continue
                own = values[at, 0]
                if abs(mean[j, i] - own) > limit + _NEIGHBOUR_RATIO * abs(own):
                    other[
                        max(0, j - _NEIGHBOUR_PX) : j + _NEIGHBOUR_PX + 1,
                        max(0, i - _NEIGHBOUR_PX) : i + _NEIGHBOUR_PX + 1,
                    ] = True
        for j in range(k):
            for i in range(k):
                xx, yy, at = x0 + i, y0 + j, ring[j, i]
                if at >= n_rings:
                    continue
                pixels[n, at] += 1.0
                if xx < 0 or xx >= nx or yy < 0 or yy >= ny or (at >= inner and other[j, i]):
                    continue
                if not mask[yy, xx] & _UNUSABLE and np.isfinite(image[yy, xx]):
                    sums[n, at] += image[yy, xx]
                    counts[n, at] += 1.0
    return sums, counts, pixels
