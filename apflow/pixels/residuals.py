"""What a subtraction leaves: background, noise, and errors at bright sources."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.ndimage import maximum_filter

from apflow.model.exposure import Exposure
from apflow.model.psf import Psf, polynomial_exponents, polynomial_terms
from apflow.pixels.forced import psf_flux, psf_radius
from apflow.pixels.planes import EDGE, unusable
from apflow.pixels.stamps import find_peaks
from apflow.pixels.surface import Surface

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
Bool = NDArray[np.bool_]

#: Blank-sky positions at which the noise of the difference is measured, at most.
_BLANK_SKY = 20_000
#: Light of this S/N in a square as wide as a PSF is no blank sky.
_BLANK_SNR = 3.0
#: Noise is hardly ever so many times its own scatter.
_NEW_SNR = 4.0
#: Fewer of them say nothing.
_LEAST_SKY = 200
#: Peak S/N of the sources that show the matching's errors, and where these are too few.
_BRIGHT = (20.0, 10.0)
#: Their greatest number and the least for a verdict.
_MOST, _LEAST = 200, 3
#: Matching error when too few bright sources tell, and the largest accepted.
_USUAL_ERROR, _LARGEST_ERROR = 0.01, 0.1
#: How far beside a star its residuals are looked for, pixels.
_BESIDE = 2
#: Square of the largest |S/N| that noise alone puts within 2 px of a position.
_NOISE_PEAK = 2.5


def residual_background(difference: F4, bad: Bool, order: int) -> Surface:
    """Polynomial through the medians of blank blocks, order 0 with few of them."""
    ny, nx = difference.shape
    side = max(32, min(ny, nx) // 16)
    x, y, level = block_medians(difference, bad, side, max(1, side // 64))
    if not len(level):
        return Surface(np.zeros(1), 0, (ny, nx))
    order = order if len(level) > 3 * len(polynomial_exponents(order)) else 0
    design = polynomial_terms(x, y, (ny, nx), order)
    keep = np.ones(len(level), np.bool_)
    for _ in range(3):
        coefficients = np.linalg.lstsq(design[keep], level[keep], rcond=None)[0]
        residual = np.abs(level - design @ coefficients)
        keep = residual <= 4 * 1.4826 * np.median(residual[keep]) + 1e-12
    return Surface(coefficients, order, (ny, nx))


def block_medians(image: F4, bad: Bool, side: int, step: int) -> tuple[F8, F8, F8]:
    """Middles (x, y) and medians of blocks of which half the pixels are good, every `step` pixels read."""
    x, y, level = _block_medians(image, bad, side, step)
    return x, y, level


@njit(cache=True, nogil=True)
def _block_medians(image, bad, side, step):  # type: ignore[no-untyped-def]
    ny, nx = image.shape
    rows, columns = max(1, ny // side), max(1, nx // side)
    x, y, level = np.empty(rows * columns), np.empty(rows * columns), np.empty(rows * columns)
    buffer = np.empty((2 * side + 1) ** 2, np.float32)
    found = 0
    for r in range(rows):
        y0, y1 = r * ny // rows, (r + 1) * ny // rows
        for c in range(columns):
            x0, x1 = c * nx // columns, (c + 1) * nx // columns
            n = seen = 0
            for j in range(y0, y1, step):
                for i in range(x0, x1, step):
                    seen += 1
                    if not bad[j, i]:
                        buffer[n] = image[j, i]
                        n += 1
            if 2 * n > seen:
                x[found], y[found] = (x0 + x1 - 1) / 2, (y0 + y1 - 1) / 2
                level[found] = np.median(buffer[:n])
                found += 1
    return x[:found], y[:found], level[:found]


def noise_ratio(difference: Exposure, filtered: F4, matched_image: F4) -> float:
    """Robust scatter of the S/N of PSF fluxes on blank sky: 1 when the variance is right.

    Blank is where the matched template shows no light within a PSF's width;
    all of the image is taken where next to nothing is blank.

    Parameters
    ----------
    difference : `Exposure`
    filtered : `numpy.ndarray`, (ny, nx), float32
        Its PSF-matched map, see `apflow.model.products.Difference`.
    matched_image : `numpy.ndarray`, (ny, nx), float32
    """
    ny, nx = difference.shape
    assert difference.psf is not None
    step = max(2, round(difference.psf.fwhm_px()), int(np.sqrt(ny * nx / _BLANK_SKY)))
    y, x = (c.ravel() for c in np.mgrid[step : ny - 2 : step, step : nx - 2 : step])
    inside = ((difference.mask[y, x] & EDGE) == 0) & ~_near(difference.mask, x, y)
    y, x = y[inside], x[inside]
    if len(x) < _LEAST_SKY:
        return 1.0
    variance = difference.variance[y, x]
    snr = filtered[y, x] / np.sqrt(np.maximum(variance, 1e-30) * (difference.psf.centre() ** 2).sum())
    light, about = _light(matched_image, x, y, round(difference.psf.fwhm_px()))
    # Well above the template's own noise: a cut within it would choose the quiet half.
    low, middle = np.quantile(light, (0.1587, 0.5))
    blank = (variance > 0) & (about < middle + _BLANK_SNR * (middle - low))
    if blank.sum() < _LEAST_SKY:
        blank = variance > 0
    # What is new is no noise, either: it is seen beside itself, too.
    reach = round(difference.psf.fwhm_px())
    steps = (-reach, 0, reach)
    power = np.max(
        [np.abs(filtered[np.clip(y + v, 0, ny - 1), np.clip(x + u, 0, nx - 1)]) for v in steps for u in steps], 0
    )
    quiet = blank & (power < _NEW_SNR * _scatter(filtered[y, x][blank]))
    return _scatter(snr[quiet]) if quiet.any() else 1.0


def _scatter(values: NDArray[Any]) -> float:
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


@njit(cache=True, nogil=True)
def _light(image, xs, ys, reach):  # type: ignore[no-untyped-def]
    """Mean of a square as wide as a PSF on each position, and the highest of it and its eight neighbours."""
    ny, nx = image.shape
    middle, highest = np.empty(xs.size), np.empty(xs.size)
    half = max(reach // 2, 1)
    for s in range(xs.size):
        highest[s] = -np.inf
        for dy in range(-reach, reach + 1, reach):
            for dx in range(-reach, reach + 1, reach):
                total, n = 0.0, 0
                for y in range(max(ys[s] + dy - half, 0), min(ys[s] + dy + half + 1, ny)):
                    for value in image[y, max(xs[s] + dx - half, 0) : min(xs[s] + dx + half + 1, nx)]:
                        total += value
                        n += 1
                mean = total / max(n, 1)
                highest[s] = max(highest[s], mean)
                if dx == 0 and dy == 0:
                    middle[s] = mean
    return middle, highest


def _near(mask: I4, x: I8, y: I8) -> Bool:
    """True where a pixel must not be used among the 5 x 5 that hold most of a PSF."""
    found = np.zeros(len(x), np.bool_)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            found |= unusable(mask[None, y + dy, x + dx])[0]
    return found


def bright_sources(difference: Exposure, matched_image: F4, scale: float = 1.0) -> tuple[I8, I8] | None:
    """Pixels (x, y) of the brightest subtracted sources, `scale` times the variance being noise; None with too few."""
    assert difference.psf is not None
    unfit = unusable(difference.mask) | ((difference.mask & EDGE) != 0)
    reach = psf_radius(difference.psf) + 3
    for level in _BRIGHT:
        x, y, snr = find_peaks(matched_image, difference.variance, unfit, reach, level * np.sqrt(scale))
        if len(x) >= _LEAST:
            brightest = np.argsort(-snr, kind="stable")[:_MOST]
            return x[brightest], y[brightest]
    return None


def matching_error(
    difference: Exposure, matched_image: F4, scale: float = 1.0, sources: tuple[I8, I8] | None = None
) -> float:
    """Error of the subtracted sources' PSF fluxes, as a fraction of the flux.

    Registration and PSF errors leave residuals in proportion to the flux. The
    60 % quantile over the bright sources of the image, of the residuals
    within 2 px beyond what noise explains, `scale` times the variance.
    """
    assert difference.psf is not None
    sources = bright_sources(difference, matched_image, scale) if sources is None else sources
    if sources is None:
        return _USUAL_ERROR
    centre, r = difference.psf.centre(), psf_radius(difference.psf)
    half = len(centre) // 2
    psf = centre[half - r : half + r + 1, half - r : half + r + 1].astype(np.float32)
    squared = _relative_residuals(
        difference.image, difference.variance, difference.mask, matched_image, psf, *sources, scale
    )
    return float(min(np.sqrt(np.quantile(squared, 0.6, method="lower")), _LARGEST_ERROR))


def residual_power(
    difference: Exposure, matched_image: F4, scale: float = 1.0, sources: tuple[I8, I8] | None = None
) -> float:
    """Power that bright sources leave in a difference beyond noise, over that of their light.

    Square of the part of their light that is left, by pixels: 0 for a perfect
    subtraction, about 1 for none. The median over the brightest, within 1.5
    FWHM of each; 0 where there are too few to tell.

    Parameters
    ----------
    difference : `Exposure`
        Its variance times `scale` is that of blank sky and photon noise alone.
    matched_image : `numpy.ndarray`, (ny, nx), float32
        The image that was subtracted.
    scale : `float`
    sources : `tuple`, optional
        Where they are known already, see `bright_sources`.
    """
    assert difference.psf is not None
    sources = bright_sources(difference, matched_image, scale) if sources is None else sources
    if sources is None:
        return 0.0
    radius, bad = 1.5 * difference.psf.fwhm_px(), unusable(difference.mask)
    left, light, noise = _powers(difference.image, difference.variance, bad, matched_image, *sources, radius)
    return float(max(np.median((left - scale * noise) / np.maximum(light, 1e-30)), 0.0))


@njit(cache=True, nogil=True)
def _powers(image, variance, bad, matched, xs, ys, radius):  # type: ignore[no-untyped-def]
    """Sums of squared residuals, squared light and variances about each position."""
    out = np.zeros((3, xs.size))
    ny, nx = image.shape
    r = int(radius)
    for s in range(xs.size):
        for y in range(max(ys[s] - r, 0), min(ys[s] + r + 1, ny)):
            for x in range(max(xs[s] - r, 0), min(xs[s] + r + 1, nx)):
                if (x - xs[s]) ** 2 + (y - ys[s]) ** 2 <= radius * radius and not bad[y, x]:
                    out[0, s] += image[y, x] ** 2
                    out[1, s] += matched[y, x] ** 2
                    out[2, s] += variance[y, x]
    return out


@njit(cache=True, nogil=True)
def _relative_residuals(image, variance, mask, matched, psf, xs, ys, scale):  # type: ignore[no-untyped-def]
    """Largest squared residual flux about each source beyond noise, over its squared flux."""
    out = np.zeros(xs.size)
    for s in range(xs.size):
        whole, noise, _, _ = psf_flux(matched, variance, mask, psf, xs[s], ys[s])
        largest = 0.0
        for dy in range(-_BESIDE, _BESIDE + 1):
            for dx in range(-_BESIDE, _BESIDE + 1):
                flux, _, _, _ = psf_flux(image, variance, mask, psf, xs[s] + dx, ys[s] + dy)
                largest = max(largest, flux * flux)
        if whole > 0:
            out[s] = max(largest - _NOISE_PEAK * scale * noise, 0.0) / (whole * whole)
    return out


def with_matching_variance(variance: F4, matched_image: F4, scale: float, psf: Psf, error: float) -> F4:
    """Scaled variance (ny, nx), with what gives a subtracted star a PSF flux error of `error` times its flux.

    As the error is that of residuals within 2 px, a star's light counts as
    far beside it; the noise of blank sky, three sigma there, does not count as light.
    """
    p = psf.centre()
    spread = maximum_filter(p, 2 * _BESIDE + 1)
    factor = np.float32(error * (p**2).sum() / np.sqrt((p**2 * spread**2).sum()))
    out = np.empty_like(variance)
    _with_excess(variance, matched_image, np.float32(scale), factor, out)
    return out


@njit(cache=True, fastmath=True, nogil=True)
def _with_excess(variance, matched, scale, factor, out):  # type: ignore[no-untyped-def]
    ny, nx = matched.shape
    row = np.empty(nx + 2 * _BESIDE, np.float32)
    inner = row[_BESIDE : _BESIDE + nx]
    for y in range(ny):
        inner[:] = matched[y]
        for j in range(max(0, y - _BESIDE), min(ny, y + _BESIDE + 1)):
            other = matched[j]
            for x in range(nx):
                inner[x] = max(inner[x], other[x])
        row[:_BESIDE], row[_BESIDE + nx :] = inner[0], inner[nx - 1]
        of, to = variance[y], out[y]
        to[:] = inner
        for i in range(2 * _BESIDE + 1):
            other = row[i : i + nx]
            for x in range(nx):
                to[x] = max(to[x], other[x])
        for x in range(nx):
            noise = scale * of[x]
            excess = factor * max(to[x] - np.float32(3) * np.sqrt(noise), np.float32(0))
            to[x] = noise + excess * excess
