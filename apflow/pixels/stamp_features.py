"""What the pixels about a DiaSource look like, in numbers without unit.

Lengths are in FWHM of the difference's PSF, noise in sigma, fluxes in that of
the source, so that one model serves cameras of any scale, depth and seeing.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.exposure import Exposure
from apflow.model.products import Difference
from apflow.pixels.forced import psf_stack, shift_psf
from apflow.pixels.planes import INTRP, bad_bits
from apflow.pixels.stamp_light import light, likeness, template_light
from apflow.pixels.stamp_sky import lines, masked_around, rings, sky
from apflow.pixels.warp import TABLE

F4 = NDArray[np.float32]

#: Of the fitted source, within 2.5 FWHM.
_SHAPE = (
    "log_snr",  # of the flux fitted here
    "snr_ratio",  # of detection over that
    "chi2_core",  # per pixel within 0.75 FWHM
    "chi2_rim",  # to 1.5 FWHM
    "chi2_skirt",  # to 2.5 FWHM
    "misfit",  # squared residual beyond noise over the squared source, within 1.5 FWHM
    "highest",  # residual of a pixel within 1 FWHM, sigma
    "lowest",
    "peakiness",  # brightest pixel over that of the PSF
    "sharpness",  # flux by a narrower weight over that by the PSF's
    "breadth",  # flux by a broader weight
    "width",  # second moment of the residual over that of the source
    "elongation",  # its quadrupole
    "negative",  # light of the wrong sign beyond 2 sigma over the source's
    "surplus",  # light that the PSF leaves beyond 2 sigma
    "parity",  # of the residual under reflection, -1 to 1
)
#: Of the pixels' masks.
_MASK = (
    "masked",  # part of the squared PSF on unusable pixels
    "interpolated",
    "outside",
    "masked_near",  # part of the pixels within 4 FWHM
    "saturated_near",
    "edge_near",
)
#: Of the neighbourhood in the difference.
_SKY = (
    "inner_low",  # least and most S/N of a PSF flux 1.1 FWHM away, after the source is taken out
    "inner_high",
    "outer_low",  # 2 FWHM away
    "outer_high",
    "sky_mean",  # 2.5 FWHM and more away, in sigma of the mean
    "sky_power",  # mean squared S/N of a pixel
    "sky_tail",  # part of the pixels beyond 3 sigma
    "column",  # mean of the pixel's column, sigma of the mean
    "row",
    "line",  # the most of any straight line through the source, on both of its sides
)
#: Of the two images that were subtracted.
_LIGHT = (
    "brighter",  # flux in the image that has more over that of the source
    "fainter",
    "consistent",  # their difference over that of the source
    "light_snr",  # logarithm of the S/N of the brighter image's flux
    "template_peak",  # logarithm of S/N of the template's brightest pixel within 1.5 FWHM
    "template_offset",  # how far that is away
    "contrast",  # logarithm of the brightest pixel of the source over that
    "glare",  # logarithm of the most that a neighbour's wing, by the cube of distance, may leave
    "like_gradient",  # part of the source's power that the template's gradient explains
    "shift",  # by that displacement
    "like_psf",  # by a point source
    "like_template",  # by the template's light
    "like_laplacian",  # by a change of the template's width
)
NAMES = (*_SHAPE, *_MASK, *_SKY, *_LIGHT)
#: The neighbourhood is so wide: in FWHM, and in pixels at least and at most.
_REACH_FWHM, _LEAST_PX, _MOST_PX = 6.0, 14, 32


def features(difference: Difference, science: Exposure, sources: pd.DataFrame) -> F4:
    """Numbers that tell real sources from bogus ones.

    Parameters
    ----------
    difference : `Difference`
    science : `Exposure`
    sources : `pandas.DataFrame`
        x, y (pixels), snr, isNegative.

    Returns
    -------
    features : `numpy.ndarray`, (n, len(NAMES)), float32
        NaN where a number cannot be had, in a whole row for a source without
        position or without a usable pixel.

    Raises
    ------
    DataError
        The difference has no PSF, or the shapes differ.
    """
    exposure = difference.exposure
    if exposure.psf is None:
        raise DataError("reliability needs the PSF of the difference image; accepted: a difference with psf set")
    if science.shape != exposure.shape:
        raise DataError(f"a science image of shape {science.shape} for a difference of {exposure.shape}: must agree")
    x, y, snr = (sources[name].to_numpy(np.float64) for name in ("x", "y", "snr"))
    sign = np.where(sources["isNegative"].to_numpy(bool), np.float32(-1), np.float32(1))
    planes = exposure.image, exposure.variance, exposure.mask, science.image, difference.matched.image
    return np.asarray(
        _features(*planes, psf_stack(exposure.psf, x, y), exposure.psf.fwhm_px(), x, y, np.abs(snr), sign, TABLE)
    )


@njit(cache=True, nogil=True)
def _features(image, variance, mask, science, template, psfs, fwhm, xs, ys, snr, sign, table):  # type: ignore[no-untyped-def]
    n, k = xs.size, psfs.shape[1]
    ny, nx = image.shape
    out = np.full((n, len(NAMES)), np.nan, np.float32)
    psf, work, left = np.empty((k, k), np.float32), np.empty((k, k), np.float32), np.empty((k, k), np.float32)
    first, second, third = len(_SHAPE), len(_SHAPE) + len(_MASK), len(_SHAPE) + len(_MASK) + len(_SKY)
    reach = int(min(max(_REACH_FWHM * fwhm, _LEAST_PX), _MOST_PX))
    for s in range(n):
        if not (-0.5 <= xs[s] < nx - 0.5 and -0.5 <= ys[s] < ny - 0.5):
            continue
        ix, iy = int(np.floor(xs[s] + 0.5)), int(np.floor(ys[s] + 0.5))
        dx, dy = xs[s] - ix, ys[s] - iy
        shift_psf(psfs[s], dx, dy, table, psf, work)
        flux, noise, masked, interpolated, outside = _fit(image, variance, mask, psf, ix, iy)
        flux *= sign[s]
        if not noise > 0.0:
            continue
        row = out[s]
        row[0] = np.log10(max(flux / noise, 0.1))
        row[1] = snr[s] / max(flux / noise, 0.1)
        _shape(image, variance, mask, psf, flux, sign[s], fwhm, ix, iy, dx, dy, left, row)
        row[first : first + 3] = masked, interpolated, outside
        masked_around(mask, fwhm, ix, iy, row, first + 3)
        rings(variance, mask, psf, left, fwhm, ix, iy, row, second)
        sky(image, variance, mask, sign[s], fwhm, reach, ix, iy, row, second + 4)
        lines(image, variance, mask, sign[s], fwhm, reach, ix, iy, row, second + 7)
        light(science, template, variance, mask, psf, flux, noise, sign[s], ix, iy, row, third)
        template_light(image, template, variance, mask, sign[s], fwhm, reach, ix, iy, dx, dy, row, third + 4)
        likeness(image, template, variance, mask, psf, fwhm, ix, iy, row, third + 8)
    return out


@njit(cache=True, nogil=True)
def _fit(image, variance, mask, psf, ix, iy):  # type: ignore[no-untyped-def]
    """PSF flux and its error, and the parts of the squared PSF on unusable, interpolated and no pixels."""
    ny, nx = image.shape
    r = psf.shape[0] // 2
    top = bottom = noise = whole = masked = interpolated = outside = 0.0
    for j in range(psf.shape[0]):
        for i in range(psf.shape[1]):
            p2 = psf[j, i] * psf[j, i]
            whole += p2
            y, x = iy + j - r, ix + i - r
            if not (0 <= y < ny and 0 <= x < nx):
                outside += p2
                continue
            if mask[y, x] & INTRP:
                interpolated += p2
            if bad_bits(mask[y, x]) or not variance[y, x] > 0:
                masked += p2
                continue
            top += psf[j, i] * image[y, x]
            bottom += p2
            noise += p2 * variance[y, x]
    if bottom <= 0.0:
        return 0.0, 0.0, 1.0, 0.0, 0.0
    return top / bottom, np.sqrt(noise) / bottom, masked / whole, interpolated / whole, outside / whole


@njit(cache=True, nogil=True)
def _shape(image, variance, mask, psf, flux, sign, fwhm, ix, iy, dx, dy, left, row):  # type: ignore[no-untyped-def]
    """Residual of the PSF fit into `left` (NaN where unusable), and `_SHAPE` but for the first two."""
    ny, nx = image.shape
    k = psf.shape[0]
    r = k // 2
    chi2, count = np.zeros(3), np.zeros(3)
    misfit = light = negative = surplus = 0.0
    sharp = sharp_norm = broad = broad_norm = 0.0
    width = plus = cross = moment = 0.0
    highest, lowest, brightest, top = -1e3, 1e3, -1e30, np.float32(0)
    for j in range(k):
        for i in range(k):
            left[j, i] = np.nan
            y, x = iy + j - r, ix + i - r
            p = psf[j, i]
            top = max(top, p)
            if not (0 <= y < ny and 0 <= x < nx) or bad_bits(mask[y, x]) or not variance[y, x] > 0:
                continue
            d, v = sign * image[y, x], variance[y, x]
            sigma = np.sqrt(v)
            u, w = i - r - dx, j - r - dy
            q2 = (u * u + w * w) / (fwhm * fwhm)
            if q2 > 6.25:
                continue
            res = d - flux * p
            left[j, i] = res
            zone = 0 if q2 < 0.5625 else (1 if q2 < 2.25 else 2)
            chi2[zone] += res * res / v
            count[zone] += 1.0
            negative += max(-d - 2 * sigma, 0.0)
            surplus += max(res - 2 * sigma, 0.0)
            a = max(p, np.float32(0))
            sharp += d * a * a
            sharp_norm += p * a * a
            broad += d * np.sqrt(a)
            broad_norm += p * np.sqrt(a)
            if q2 < 2.25:
                misfit += res * res - v
                light += p * p
                width += res * a * (u * u + w * w)
                plus += res * a * (u * u - w * w)
                cross += res * a * 2 * u * w
                moment += p * a * (u * u + w * w)
            if q2 < 1.0:
                highest, lowest = max(highest, res / sigma), min(lowest, res / sigma)
                brightest = max(brightest, d)
    size = max(flux, 1e-30)
    for zone in range(3):
        if count[zone] > 0:
            row[2 + zone] = chi2[zone] / count[zone]
    if light > 0 and moment > 0 and sharp_norm > 0:
        row[5] = misfit / (size * size * light)
        row[6], row[7] = highest, lowest
        row[8] = brightest / (size * top)
        row[9] = sharp / sharp_norm / size
        row[10] = broad / broad_norm / size
        row[11] = width / moment / size
        row[12] = np.hypot(plus, cross) / moment / size
        row[13], row[14] = negative / size, surplus / size
    same = power = 0.0
    for j in range(k):
        for i in range(k):
            a, b = left[j, i], left[k - 1 - j, k - 1 - i]
            if np.isfinite(a) and np.isfinite(b):
                same += a * b
                power += a * a
    if power > 0:
        row[15] = same / power
