"""PSF photometry at given positions."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.exposure import Exposure
from apflow.model.psf import Psf, polynomial_terms
from apflow.pixels.planes import bad_bits
from apflow.pixels.warp import TABLE

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

_TABLE_SIZE = len(TABLE) - 1


def forced_flux(exposure: Exposure, x: F8, y: F8) -> tuple[F8, F8]:
    """PSF fluxes at positions that are not fitted.

    The flux is the least-squares amplitude of the PSF with equal weights, so
    that a source's own photon noise does not bias it; its error comes from
    the variance. Masked pixels (BAD, SAT, CR, NO_DATA unless INTRP) are left out.

    Parameters
    ----------
    exposure : `Exposure`
        With a PSF.
    x, y : `numpy.ndarray`, (n,)
        Pixels.

    Returns
    -------
    flux, err : `numpy.ndarray`, (n,)
        In the exposure's unit; NaN off the image and where less than half of
        the PSF's weight falls on good pixels.

    Raises
    ------
    DataError
        The exposure has no PSF.
    """
    if exposure.psf is None:
        raise DataError("forced photometry needs the PSF of the image; accepted: an exposure with psf set")
    x, y = np.atleast_1d(np.asarray(x, np.float64)), np.atleast_1d(np.asarray(y, np.float64))
    psfs = psf_stack(exposure.psf, x, y)
    flux, err = _forced(exposure.image, exposure.variance, exposure.mask, psfs, x, y, TABLE)
    return flux, err


def psf_radius(psf: Psf) -> int:
    """Half-side of the stamp that photometry uses: 2.5 FWHM, at most what the PSF has."""
    return int(min(psf.size // 2, max(5, np.ceil(2.5 * psf.fwhm_px()))))


def psf_stack(psf: Psf, x: F8, y: F8) -> F4:
    """PSF images (n, k, k) at positions, cut to `psf_radius`; NaN positions give the centre's."""
    half, r = psf.size // 2, psf_radius(psf)
    middle_x, middle_y = (psf.shape[1] - 1) / 2, (psf.shape[0] - 1) / 2
    at_x = np.clip(np.where(np.isfinite(x), x, middle_x), 0, psf.shape[1] - 1)
    at_y = np.clip(np.where(np.isfinite(y), y, middle_y), 0, psf.shape[0] - 1)
    weights = polynomial_terms(at_x, at_y, psf.shape, psf.order)
    total = weights @ psf.terms.sum((1, 2))
    cut = psf.terms[:, half - r : half + r + 1, half - r : half + r + 1]
    return np.asarray((np.tensordot(weights, cut, 1) / total[:, None, None]).astype(np.float32))


# No fastmath: where its arrays happen to lie in memory would then change the last digits of the products.
@njit(cache=True, nogil=True)
def shift_psf(psf, dx, dy, table, out, work):  # type: ignore[no-untyped-def]
    """Move a PSF image by (dx, dy), |d| <= 1, into `out` by Lanczos-4; `work` has its shape."""
    k = psf.shape[0]
    cx, cy = (1 if dx > 0 else 0), (1 if dy > 0 else 0)
    wx = table[int((cx - dx) * _TABLE_SIZE + 0.5)]
    wy = table[int((cy - dy) * _TABLE_SIZE + 0.5)]
    for y in range(k):
        for x in range(k):
            s = np.float32(0)
            for t in range(8):
                i = x + t - 3 - cx
                if 0 <= i < k:
                    s += wx[t] * psf[y, i]
            work[y, x] = s
    for y in range(k):
        for x in range(k):
            s = np.float32(0)
            for t in range(8):
                j = y + t - 3 - cy
                if 0 <= j < k:
                    s += wy[t] * work[j, x]
            out[y, x] = s


@njit(cache=True, nogil=True)
def psf_flux(image, variance, mask, psf, ix, iy):  # type: ignore[no-untyped-def]
    """Amplitude, its variance, pixels used and weight used of a PSF image centred on pixel (ix, iy)."""
    ny, nx = image.shape
    r = psf.shape[0] // 2
    top = bottom = noise = whole = 0.0
    count = 0
    for j in range(psf.shape[0]):
        for i in range(psf.shape[1]):
            p = psf[j, i]
            whole += p * p
            y, x = iy + j - r, ix + i - r
            if 0 <= y < ny and 0 <= x < nx and not bad_bits(mask[y, x]):
                top += p * image[y, x]
                bottom += p * p
                noise += p * p * variance[y, x]
                count += 1
    if bottom <= 0.0:
        return 0.0, 0.0, 0, 0.0
    return top / bottom, noise / (bottom * bottom), count, bottom / whole


def sky_snr(exposure: Exposure, x: I8, y: I8) -> F8:
    """S/N of PSF fluxes at whole pixels, by the PSF of the image's centre; NaN where too few pixels are good."""
    if exposure.psf is None:
        raise DataError("forced photometry needs the PSF of the image; accepted: an exposure with psf set")
    middle = np.array([(exposure.psf.shape[1] - 1) / 2]), np.array([(exposure.psf.shape[0] - 1) / 2])
    psf = psf_stack(exposure.psf, *middle)[0]
    return np.asarray(_sky_snr(exposure.image, exposure.variance, exposure.mask, psf, x, y))


@njit(cache=True, nogil=True)
def _sky_snr(image, variance, mask, psf, xs, ys):  # type: ignore[no-untyped-def]
    out = np.full(xs.size, np.nan)
    for s in range(xs.size):
        f, v, _, used = psf_flux(image, variance, mask, psf, xs[s], ys[s])
        if used >= 0.5 and v > 0:
            out[s] = f / np.sqrt(v)
    return out


@njit(cache=True, nogil=True)
def _forced(image, variance, mask, psfs, xs, ys, table):  # type: ignore[no-untyped-def]
    n, k = xs.size, psfs.shape[1]
    ny, nx = image.shape
    flux, err = np.full(n, np.nan), np.full(n, np.nan)
    moved, work = np.empty((k, k), np.float32), np.empty((k, k), np.float32)
    for s in range(n):
        x, y = xs[s], ys[s]
        if not (-0.5 <= x < nx - 0.5 and -0.5 <= y < ny - 0.5):
            continue
        ix, iy = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        shift_psf(psfs[s], x - ix, y - iy, table, moved, work)
        f, v, _, used = psf_flux(image, variance, mask, moved, ix, iy)
        if used >= 0.5:
            flux[s], err[s] = f, np.sqrt(v)
    return flux, err
