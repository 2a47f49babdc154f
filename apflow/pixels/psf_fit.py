"""Fits of the PSF to single sources."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.model.exposure import Exposure
from apflow.pixels.forced import psf_flux, shift_psf
from apflow.pixels.planes import bad_bits
from apflow.pixels.warp import TABLE

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

#: A centroid may leave its peak by this, pixels.
MOST_SHIFT = 2.5
_ITERATIONS = 12
COLUMNS = ("x", "y", "flux", "fluxErr", "xVar", "yVar", "xyCov", "chi2", "ndata", "used", "failed")


def fit_psf(exposure: Exposure, psfs: F4, x: I8, y: I8) -> dict[str, F8]:
    """Position and flux of each source by itself, least squares with equal weights.

    Parameters
    ----------
    exposure : `Exposure`
    psfs : `numpy.ndarray`, (n, k, k), float32
    x, y : `numpy.ndarray`, (n,), int64
        Peaks.

    Returns
    -------
    columns : `dict` [`str`, `numpy.ndarray`]
        `COLUMNS`, (n,) each: errors come from the variance; ndata counts good
        pixels, used is the part of the squared PSF on them, failed is 1 where
        no position was found and the flux is that at the peak.
    """
    rows = _fit_psf(exposure.image, exposure.variance, exposure.mask, psfs, x, y, TABLE)
    return {name: np.ascontiguousarray(column) for name, column in zip(COLUMNS, rows.T, strict=True)}


@njit(cache=True, nogil=True)
def _fit_psf(image, variance, mask, psfs, xs, ys, table):  # type: ignore[no-untyped-def]
    """Gauss-Newton fit of position and flux of each source; columns as `COLUMNS`."""
    n, k = xs.size, psfs.shape[1]
    out = np.zeros((n, 11))
    p, gx = np.empty((k, k), np.float32), np.empty((k, k), np.float32)
    gy, work = np.empty((k, k), np.float32), np.empty((k, k), np.float32)
    for s in range(n):
        x, y, flux, failed = float(xs[s]), float(ys[s]), 0.0, True
        for _ in range(_ITERATIONS):
            ix, iy = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
            _gradient(psfs[s], x - ix, y - iy, table, p, gx, gy, work)
            flux, _, _, _ = psf_flux(image, variance, mask, p, ix, iy)
            step, ok = _step(image, mask, p, gx, gy, flux, ix, iy)
            if not ok:
                break
            x += min(max(step[0], -0.5), 0.5)
            y += min(max(step[1], -0.5), 0.5)
            if max(abs(x - xs[s]), abs(y - ys[s])) > MOST_SHIFT:
                break
            if step[0] ** 2 + step[1] ** 2 < 1e-6:
                failed = False
                break
        if failed:
            x, y = float(xs[s]), float(ys[s])
        ix, iy = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        _gradient(psfs[s], x - ix, y - iy, table, p, gx, gy, work)
        flux, noise, count, used = psf_flux(image, variance, mask, p, ix, iy)
        cov, chi2 = _errors(image, variance, mask, p, gx, gy, flux, ix, iy)
        out[s, :4] = x, y, flux, np.sqrt(noise)
        out[s, 4:8] = cov[1, 1], cov[2, 2], cov[1, 2], chi2
        out[s, 8], out[s, 9], out[s, 10] = count, used, 1.0 if failed else 0.0
    return out


@njit(cache=True, nogil=True)
def _gradient(psf, dx, dy, table, p, gx, gy, work):  # type: ignore[no-untyped-def]
    """PSF at an offset, and its derivatives with the offset by differences of half a pixel."""
    h = np.float32(0.25)
    for axis in range(2):
        target = gx if axis == 0 else gy
        ex, ey = (h, 0.0) if axis == 0 else (0.0, h)
        shift_psf(psf, dx + ex, dy + ey, table, target, work)
        shift_psf(psf, dx - ex, dy - ey, table, p, work)
        for j in range(psf.shape[0]):
            for i in range(psf.shape[1]):
                target[j, i] = (target[j, i] - p[j, i]) / (2 * h)
    shift_psf(psf, dx, dy, table, p, work)


@njit(cache=True, nogil=True)
def _step(image, mask, p, gx, gy, flux, ix, iy):  # type: ignore[no-untyped-def]
    """Gauss-Newton step of the position at the best flux."""
    ny, nx = image.shape
    r = p.shape[0] // 2
    a, b = np.zeros((3, 3)), np.zeros(3)
    row = np.empty(3)
    for j in range(p.shape[0]):
        for i in range(p.shape[1]):
            y, x = iy + j - r, ix + i - r
            if 0 <= y < ny and 0 <= x < nx and not bad_bits(mask[y, x]):
                row[0], row[1], row[2] = p[j, i], flux * gx[j, i], flux * gy[j, i]
                d = image[y, x] - flux * p[j, i]
                for u in range(3):
                    b[u] += row[u] * d
                    for v in range(3):
                        a[u, v] += row[u] * row[v]
    if a[0, 0] <= 0 or np.linalg.det(a / a[0, 0]) <= 1e-12:
        return np.zeros(2), False
    return np.linalg.solve(a, b)[1:], True


@njit(cache=True, nogil=True)
def _errors(image, variance, mask, p, gx, gy, flux, ix, iy):  # type: ignore[no-untyped-def]
    """Covariance (flux, x, y) of the unweighted fit under the image's variance, and chi^2."""
    ny, nx = image.shape
    r = p.shape[0] // 2
    a, c = np.zeros((3, 3)), np.zeros((3, 3))
    row = np.empty(3)
    chi2 = 0.0
    for j in range(p.shape[0]):
        for i in range(p.shape[1]):
            y, x = iy + j - r, ix + i - r
            if 0 <= y < ny and 0 <= x < nx and not bad_bits(mask[y, x]) and variance[y, x] > 0:
                row[0], row[1], row[2] = p[j, i], flux * gx[j, i], flux * gy[j, i]
                chi2 += (image[y, x] - flux * p[j, i]) ** 2 / variance[y, x]
                for u in range(3):
                    for v in range(3):
                        a[u, v] += row[u] * row[v]
                        c[u, v] += row[u] * row[v] * variance[y, x]
    if a[0, 0] <= 0 or np.linalg.det(a / a[0, 0]) <= 1e-12:
        return np.full((3, 3), np.nan), chi2
    inverse = np.linalg.inv(a)
    return inverse @ c @ inverse, chi2
