"""Simultaneous PSF fits of sources that share their light."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from apflow.model.exposure import Exposure
from apflow.pixels.forced import shift_psf
from apflow.pixels.planes import bad_bits
from apflow.pixels.warp import TABLE

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

#: Sources nearer than this, in FWHM, have pixels in common that matter: where stamps of photometry end.
TOUCH_FWHM = 2.5
#: Sources fitted together at most: the cost of a fit grows with the square of their number.
MOST = 6
_ITERATIONS = 30
#: A fitted position is found when it moves by less than this, pixels.
_STILL = 1e-3
_MOST_STEP = 0.7


class Fit:
    """Result of a simultaneous fit of n points.

    Attributes
    ----------
    flux, x, y : `numpy.ndarray`, (n,)
    covariance : `numpy.ndarray`, (3 n, 3 n)
        Of (flux, x, y) of the first, of the second ...
    chi2, null : `float`
        Of the model, and of no model at all, on the same pixels.
    ndata : `int`
        Good pixels.
    ok : `bool`
        Whether positions were found within their bounds.
    """

    def __init__(self, rows: F8, covariance: F8, chi2: float, null: float, ndata: int, ok: bool) -> None:
        self.flux, self.x, self.y = rows.T
        self.covariance = covariance
        self.chi2, self.null, self.ndata, self.ok = chi2, null, ndata, ok

    @property
    def snr(self) -> F8:
        """Signed S/N of each point's flux."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(self.flux / np.sqrt(np.diag(self.covariance)[::3]))


def groups(x: F8, y: F8, fwhm_px: float) -> I8:
    """Number (n,) of the group of each source: those within `TOUCH_FWHM` of one another, and their neighbours'."""
    if not len(x):
        return np.empty(0, np.int64)
    pairs = cKDTree(np.c_[x, y]).query_pairs(TOUCH_FWHM * fwhm_px, output_type="ndarray")
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (len(x), len(x)))
    return np.asarray(connected_components(links, directed=False)[1], np.int64)


def box_about(x: F8, y: F8, half: int, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """(x0, x1, y0, y1), ends excluded, of the pixels within `half` of any of the positions, cut by the image."""
    ny, nx = shape
    x0, x1 = max(round(np.min(x)) - half, 0), min(round(np.max(x)) + half + 1, nx)
    y0, y1 = max(round(np.min(y)) - half, 0), min(round(np.max(y)) + half + 1, ny)
    return x0, x1, y0, y1


def fit_points(
    exposure: Exposure, psf: F4, x: F8, y: F8, box: tuple[int, int, int, int], reach_px: float, move: bool = True
) -> Fit:
    """Fluxes and positions of points that share their pixels.

    Least squares with equal weights, so that photon noise does not bias
    fluxes; errors from the variance.

    Parameters
    ----------
    exposure : `Exposure`
    psf : `numpy.ndarray`, (k, k), float32
        Of all of them.
    x, y : `numpy.ndarray`, (n,)
        Where to begin.
    box : `tuple` [`int`, `int`, `int`, `int`]
        x0, x1, y0, y1 of the pixels, ends excluded.
    reach_px : `float`
        How far a position may leave its beginning.
    move : `bool`
        Whether positions are fitted at all.
    """
    start = np.stack([np.zeros(len(x)), np.asarray(x, float), np.asarray(y, float)], 1)
    return Fit(
        *_fit(exposure.image, exposure.variance, exposure.mask, psf, start, np.array(box), reach_px, move, TABLE)
    )


def points_chi2(exposure: Exposure, psf: F4, points: F8, box: tuple[int, int, int, int]) -> float:
    """Chi^2 of given points: rows of flux, x, y."""
    return float(_chi2(exposure.image, exposure.variance, exposure.mask, psf, points, np.array(box), TABLE))


@njit(cache=True, nogil=True)
def _render(psf, points, box, table, jac):  # type: ignore[no-untyped-def]
    """Models of unit flux and their derivatives (3 n, h, w): by flux, x and y."""
    k, r = psf.shape[0], psf.shape[0] // 2
    h = np.float32(0.25)
    shifted, work = np.empty((5, k, k), np.float32), np.empty((k, k), np.float32)
    jac[:] = 0
    for n in range(points.shape[0]):
        x, y = points[n, 1], points[n, 2]
        ix, iy = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        dx, dy = x - ix, y - iy
        shift_psf(psf, dx, dy, table, shifted[0], work)
        shift_psf(psf, dx + h, dy, table, shifted[1], work)
        shift_psf(psf, dx - h, dy, table, shifted[2], work)
        shift_psf(psf, dx, dy + h, table, shifted[3], work)
        shift_psf(psf, dx, dy - h, table, shifted[4], work)
        for j in range(max(0, box[2] - iy + r), min(k, box[3] - iy + r)):
            for i in range(max(0, box[0] - ix + r), min(k, box[1] - ix + r)):
                v, u = iy + j - r - box[2], ix + i - r - box[0]
                jac[3 * n, v, u] = shifted[0, j, i]
                jac[3 * n + 1, v, u] = (shifted[1, j, i] - shifted[2, j, i]) / (2 * h)
                jac[3 * n + 2, v, u] = (shifted[3, j, i] - shifted[4, j, i]) / (2 * h)


@njit(cache=True, nogil=True)
def solve_normal(a, b, damping):  # type: ignore[no-untyped-def]
    """Solution of (A + damping diag A) s = b, and whether there is one."""
    n = b.size
    scale = np.empty(n)
    for i in range(n):
        if not a[i, i] > 0:
            return np.zeros(n), False
        scale[i] = np.sqrt(a[i, i])
    scaled = np.empty((n, n))
    for i in range(n):
        for j in range(n):
            scaled[i, j] = a[i, j] / (scale[i] * scale[j])
        scaled[i, i] += damping
    if not np.linalg.det(scaled) > 1e-14:
        return np.zeros(n), False
    return np.linalg.solve(scaled, b / scale) / scale, True


@njit(cache=True, nogil=True)
def normal_equations(image, mask, box, jac, model, a, b):  # type: ignore[no-untyped-def]
    """Fill A = J^T J and b = J^T (image - model) over the good pixels of the box; their sum of squares."""
    m = jac.shape[0]
    a[:], b[:] = 0, 0
    total = 0.0
    row = np.empty(m)
    for v in range(jac.shape[1]):
        for u in range(jac.shape[2]):
            if bad_bits(mask[box[2] + v, box[0] + u]):
                continue
            d = image[box[2] + v, box[0] + u] - model[v, u]
            total += d * d
            for s in range(m):
                row[s] = jac[s, v, u]
            for s in range(m):
                if row[s] != 0:
                    b[s] += row[s] * d
                    for t in range(s, m):
                        a[s, t] += row[s] * row[t]
    for s in range(m):
        for t in range(s):
            a[s, t] = a[t, s]
    return total


@njit(cache=True, nogil=True)
def errors_of(image, variance, mask, box, jac, model, a):  # type: ignore[no-untyped-def]
    """Covariance of an equal-weight fit under the image's variance; chi^2, that of no model, and pixels."""
    m = jac.shape[0]
    c = np.zeros((m, m))
    chi2 = null = 0.0
    count = 0
    for v in range(jac.shape[1]):
        for u in range(jac.shape[2]):
            y, x = box[2] + v, box[0] + u
            if bad_bits(mask[y, x]) or not variance[y, x] > 0:
                continue
            chi2 += (image[y, x] - model[v, u]) ** 2 / variance[y, x]
            null += image[y, x] ** 2 / variance[y, x]
            count += 1
            for s in range(m):
                if jac[s, v, u] != 0:
                    for t in range(m):
                        c[s, t] += jac[s, v, u] * jac[t, v, u] * variance[y, x]
    out = np.full((m, m), np.nan)
    scale = np.empty(m)
    for s in range(m):
        if not a[s, s] > 0:
            return out, chi2, null, count
        scale[s] = np.sqrt(a[s, s])
    scaled = a / np.outer(scale, scale)
    if np.linalg.det(scaled) > 1e-14:
        inverse = np.linalg.inv(scaled) / np.outer(scale, scale)
        out = inverse @ c @ inverse
    return out, chi2, null, count


@njit(cache=True, nogil=True)
def _sum(points, jac, model):  # type: ignore[no-untyped-def]
    model[:] = 0
    for n in range(points.shape[0]):
        for v in range(model.shape[0]):
            for u in range(model.shape[1]):
                model[v, u] += points[n, 0] * jac[3 * n, v, u]


@njit(cache=True, nogil=True)
def _state(image, mask, psf, points, box, table, fixed, jac, model, a, b):  # type: ignore[no-untyped-def]
    """Set the best fluxes at the points' positions, and jac, model, A and b with them; sum of squares, fine."""
    _render(psf, points, box, table, jac)
    model[:] = 0
    normal_equations(image, mask, box, jac[::3], model, fixed[0], fixed[1])
    flux, fine = solve_normal(fixed[0], fixed[1], 0.0)
    for s in range(points.shape[0]):
        points[s, 0] = flux[s]
        jac[3 * s + 1 : 3 * s + 3] *= flux[s]
    _sum(points, jac, model)
    return normal_equations(image, mask, box, jac, model, a, b), fine


@njit(cache=True, nogil=True)
def _fit(image, variance, mask, psf, start, box, reach, move, table):  # type: ignore[no-untyped-def]
    n = start.shape[0]
    h, w = box[3] - box[2], box[1] - box[0]
    jac, model = np.empty((3 * n, h, w)), np.empty((h, w))
    a, b, at, bt = np.empty((3 * n, 3 * n)), np.empty(3 * n), np.empty((3 * n, 3 * n)), np.empty(3 * n)
    fixed = (np.empty((n, n)), np.empty(n))
    points, trial = start.copy(), start.copy()
    damping, best, found = 1e-3, np.inf, False
    for _ in range(_ITERATIONS):
        total, fine = _state(image, mask, psf, trial, box, table, fixed, jac, model, at, bt)
        if not fine:
            break
        if total <= best:
            found = not move or (best < np.inf and np.abs(trial[:, 1:] - points[:, 1:]).max() < _STILL)
            best, points[:], a[:], b[:] = total, trial, at, bt
            damping *= 0.2
        else:
            damping = max(damping, 1e-3) * 10
            found = damping > 1e4
        if found:
            break
        step, fine = solve_normal(a, b, damping)
        if not fine:
            break
        for s in range(n):
            for t in range(1, 3):
                trial[s, t] = points[s, t] + min(max(step[3 * s + t], -_MOST_STEP), _MOST_STEP)
        if np.abs(trial[:, 1:] - start[:, 1:]).max() > reach:
            break
    _state(image, mask, psf, points, box, table, fixed, jac, model, a, b)
    if not move:
        for s in range(n):
            jac[3 * s + 1 : 3 * s + 3] = 0
            for t in range(1, 3):
                a[3 * s + t, :] = 0
                a[:, 3 * s + t] = 0
                a[3 * s + t, 3 * s + t] = 1
    covariance, chi2, null, count = errors_of(image, variance, mask, box, jac, model, a)
    return points, covariance, chi2, null, count, found


@njit(cache=True, nogil=True)
def _chi2(image, variance, mask, psf, points, box, table):  # type: ignore[no-untyped-def]
    h, w = box[3] - box[2], box[1] - box[0]
    jac, model = np.empty((3 * points.shape[0], h, w)), np.empty((h, w))
    _render(psf, points, box, table, jac)
    _sum(points, jac, model)
    chi2 = 0.0
    for v in range(h):
        for u in range(w):
            y, x = box[2] + v, box[0] + u
            if not bad_bits(mask[y, x]) and variance[y, x] > 0:
                chi2 += (image[y, x] - model[v, u]) ** 2 / variance[y, x]
    return chi2
