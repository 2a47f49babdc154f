"""Point sources fitted with a PSF at sub-pixel positions."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from apflow.model.exposure import Exposure
from apflow.model.psf import Psf

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]

#: Half-width of the Lanczos kernel that registers stamps, px: 4 widens a PSF of 4 px and costs 0.1 % of the flux.
TAPS = 8
#: Radius of the fit in FWHM: flux and position are in the core, neighbours outside.
_FIT_FWHM = 1.75


def fit_point_sources(exposure: Exposure, psf: Psf, x: F8, y: F8) -> pd.DataFrame:
    """Fit flux, position and local level of point sources near given positions.

    Least squares with equal weights for all pixels: a flux that does not
    lean on the noise in the variance.

    Returns
    -------
    sources : `pandas.DataFrame`
        x, y (px), flux, flux_err (unit of the exposure), chi2 (per pixel);
        NaN where the fit left the image or ran away.
    """
    radius = fit_radius(psf.fwhm_px())
    rows = fit_rows(exposure.image, exposure.variance, psf.terms, psf.shape, psf.order, x, y, radius)
    return pd.DataFrame(rows, columns=["x", "y", "flux", "flux_err", "chi2"])


def fit_radius(fwhm: float) -> float:
    """Radius of the pixels that take part in a fit."""
    return max(3.0, _FIT_FWHM * fwhm)


@njit(cache=True, nogil=True)
def _lanczos(fraction: float, weights: F8) -> None:
    """Lanczos weights, sum 1, of the samples about a point ``fraction`` beyond the middle one."""
    total = 0.0
    for t in range(2 * TAPS):
        d = np.pi * (t - (TAPS - 1) - fraction)
        weights[t] = 1.0 if abs(d) < 1e-9 else TAPS * np.sin(d) * np.sin(d / TAPS) / (d * d)
        total += weights[t]
    for t in range(2 * TAPS):
        weights[t] /= total


@njit(cache=True, nogil=True)
def _sample(image: F4, x: float, y: float, half: int, out: F8) -> None:
    """Resample a stamp whose middle pixel is at (x, y); it and `TAPS` px about it lie within the image."""
    wx, wy = np.empty(2 * TAPS), np.empty(2 * TAPS)
    ix, iy = int(np.floor(x)), int(np.floor(y))
    _lanczos(x - ix, wx)
    _lanczos(y - iy, wy)
    k = 2 * half + 1
    rows = np.zeros((k + 2 * TAPS - 1, k))
    for j in range(k + 2 * TAPS - 1):
        yy = iy - half - (TAPS - 1) + j
        for t in range(2 * TAPS):
            x0 = ix - half - (TAPS - 1) + t
            for i in range(k):
                rows[j, i] += wx[t] * image[yy, x0 + i]
    out[:] = 0.0
    for j in range(k):
        for t in range(2 * TAPS):
            for i in range(k):
                out[j, i] += wy[t] * rows[j + t, i]


@njit(cache=True, nogil=True)
def registered_stamps(image: F4, x: F8, y: F8, half: int) -> F8:
    """Stamps (n, k, k) registered to their middle pixel."""
    out = np.empty((len(x), 2 * half + 1, 2 * half + 1))
    for n in range(len(x)):
        _sample(image, x[n], y[n], half, out[n])
    return out


@njit(cache=True, nogil=True)
def _psf_at(terms: F8, shape: tuple[int, int], order: int, x: float, y: float) -> F8:
    """`Psf.at`, compiled."""
    u, v = 2.0 * x / max(shape[1] - 1, 1) - 1.0, 2.0 * y / max(shape[0] - 1, 1) - 1.0
    out = np.zeros(terms.shape[1:])
    n = 0
    for total in range(order + 1):
        for q in range(total + 1):
            out += u ** (total - q) * v**q * terms[n]
            n += 1
    return out / out.sum()


@njit(cache=True, nogil=True, error_model="numpy")
def fit_rows(
    image: F4, variance: F4, terms: F8, shape: tuple[int, int], order: int, xs: F8, ys: F8, radius: float
) -> F8:
    """Gauss-Newton fit of point sources: rows of x, y, flux, flux error, chi2 per pixel."""
    ny, nx = image.shape
    middle = terms.shape[1] // 2
    half = min(int(radius) + 1, middle - 1)
    k = 2 * half + 1
    n_px = 0
    inside = np.zeros((k, k), np.bool_)
    for j in range(k):
        for i in range(k):
            inside[j, i] = (j - half) ** 2 + (i - half) ** 2 <= radius * radius
            n_px += inside[j, i]
    out = np.full((len(xs), 5), np.nan)
    design, data, noise2 = np.ones((n_px, 4)), np.empty(n_px), np.empty(n_px)
    stamp = np.empty((k, k))
    edge = half + TAPS
    for n in range(len(xs)):
        x, y = xs[n], ys[n]
        if not (edge < x < nx - 1 - edge and edge < y < ny - 1 - edge):
            continue
        psf = _psf_at(terms, shape, order, x, y)
        m = 0
        for j in range(k):
            for i in range(k):
                if inside[j, i]:
                    a, b = middle - half + j, middle - half + i
                    design[m, 0] = psf[a, b]
                    design[m, 1] = 0.5 * (psf[a, b - 1] - psf[a, b + 1])
                    design[m, 2] = 0.5 * (psf[a - 1, b] - psf[a + 1, b])
                    m += 1
        solve = np.linalg.inv(design.T @ design) @ design.T
        solution = np.zeros(4)
        for _ in range(8):
            _sample(image, x, y, half, stamp)
            m = 0
            for j in range(k):
                for i in range(k):
                    if inside[j, i]:
                        data[m] = stamp[j, i]
                        noise2[m] = variance[round(y) + j - half, round(x) + i - half]
                        m += 1
            solution = solve @ data
            if not solution[0] > 0.0:
                break
            dx, dy = solution[1] / solution[0], solution[2] / solution[0]
            if abs(dx) + abs(dy) < 1e-3:
                break
            x, y = x + min(max(dx, -0.5), 0.5), y + min(max(dy, -0.5), 0.5)
            if not (edge < x < nx - 1 - edge and edge < y < ny - 1 - edge):
                break
        if not solution[0] > 0.0 or np.hypot(x - xs[n], y - ys[n]) > 2.0:
            continue
        residual = data - design @ solution
        out[n, 0], out[n, 1], out[n, 2] = x, y, solution[0]
        out[n, 3] = np.sqrt((solve[0] ** 2 * noise2).sum())
        out[n, 4] = (residual**2 / (noise2 + (0.01 * solution[0] * design[:, 0]) ** 2)).mean()
    return out
