"""Trails: the PSF of the image along a line, as what moves during the exposure leaves it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.exposure import Exposure, Mask
from apflow.model.products import Difference
from apflow.pixels.deblend import box_about, errors_of, normal_equations, solve_normal
from apflow.pixels.forced import psf_stack, shift_psf
from apflow.pixels.sky_frame import bearing_deg, covariance_deg
from apflow.pixels.warp import TABLE

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
Box = tuple[int, int, int, int]

#: A source is fitted as a trail when its elongation (sigma) is above this: noise gives 3.6 in a thousand sources.
LEAST_ELONGATION = 5.0
#: Trails fitted on an image at most, those of highest S/N: each takes some ms.
_MOST = 20
#: Longest trail, pixels; longer ones are streaks.
LONGEST = 100.0
#: Least length, in FWHM: a shorter one is a point.
_SHORTEST = 0.3
_ITERATIONS = 40
_STILL = 1e-3
#: apdb.yaml: the algorithm that the fit began from; 2 is that of HSM, adaptive moments.
_ALGORITHM = 2
COLUMNS = (
    "trailFlux", "trailFluxErr", "trailRa", "trailRaErr", "trailDec", "trailDecErr", "trailLength", "trailLengthErr",
    "trailAngle", "trailAngleErr", "trailChi2", "trailNdata", "trailAlgorithm", "trail_flag", "trail_flag_edge",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Trail:
    """A fitted trail.

    Attributes
    ----------
    values : `numpy.ndarray`, (5,)
        Flux, x, y of its middle, length (px), angle from +x towards +y (radians).
    covariance : `numpy.ndarray`, (5, 5)
    chi2 : `float`
    ndata : `int`
        Good pixels.
    ok : `bool`
        False when the fit failed.
    edge : `bool`
        Whether it reaches pixels without data or off the image.
    """

    values: F8
    covariance: F8
    chi2: float
    ndata: int
    ok: bool
    edge: bool


def fit_trail(
    exposure: Exposure, psf: F4, start: tuple[float, float, float, float], box: tuple[int, int, int, int], fwhm: float
) -> Trail:
    """Flux, middle, length and angle of a trail (Veres et al. 2012, with the image's PSF for their Gaussian).

    Least squares with equal weights; errors from the variance.

    Parameters
    ----------
    exposure : `Exposure`
    psf : `numpy.ndarray`, (k, k), float32
    start : `tuple` [`float`, `float`, `float`, `float`]
        x, y, length (px), angle (radians) to begin with.
    box : `tuple` [`int`, `int`, `int`, `int`]
        x0, x1, y0, y1 of the pixels, ends excluded.
    fwhm : `float`
        Of the PSF, pixels: what is summed along the line lies densely enough for it.
    """
    nodes = int(min(6 + np.ceil(3.5 * start[2] / fwhm), 96))
    points, weights = np.polynomial.legendre.leggauss(nodes)
    first = np.array([0.0, start[0], start[1], max(start[2], 0.5 * fwhm), start[3]])
    values, covariance, chi2, ndata, ok = _fit(
        exposure.image, exposure.variance, exposure.mask, psf, first, np.array(box), points, weights / 2, TABLE
    )
    ok = bool(ok) and _SHORTEST * fwhm < values[3] <= LONGEST and np.isfinite(covariance).all()
    return Trail(values, covariance, float(chi2), int(ndata), ok, _at_edge(exposure, values, psf.shape[0] // 4))


def trail_box(x: float, y: float, length: float, angle: float, half: int, shape: tuple[int, int]) -> Box:
    """The box of pixels about a trail, `half` beyond its ends."""
    reach = np.array([-0.5, 0.5]) * length
    return box_about(x + reach * np.cos(angle), y + reach * np.sin(angle), half, shape)


def fit_trails(difference: Difference, science: Exposure, sources: pd.DataFrame) -> pd.DataFrame:
    """Trail models of the sources that are longer than the PSF.

    Parameters
    ----------
    difference : `Difference`
    science : `Exposure`
        With the WCS, if there is one.
    sources : `pandas.DataFrame`
        x, y, snr, isDipole, pixelFlags_streakCenter, and of their shape:
        elongation (sigma), elongation_angle (radians from +x), elongation_px
        (length to begin with). Pieces of streaks are not fitted.

    Returns
    -------
    columns : `pandas.DataFrame`
        A row for each source, NaN where no trail was fitted. trailAngle is
        the bearing in [0, 180) degrees from North by East.

    Raises
    ------
    DataError
        The difference has no PSF.
    """
    exposure = difference.exposure
    if exposure.psf is None:
        raise DataError("a trail fit needs the PSF of the difference image; accepted: a difference with psf set")
    n = len(sources)
    out: dict[str, NDArray[np.generic]] = {name: np.full(n, np.nan) for name in COLUMNS}
    out["trailNdata"] = np.zeros(n, np.int64)
    out["trail_flag"], out["trail_flag_edge"] = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
    long = (sources["elongation"].to_numpy() > LEAST_ELONGATION) & ~sources["isDipole"].to_numpy(bool)
    long &= ~sources["pixelFlags_streakCenter"].to_numpy(bool)
    rows = np.flatnonzero(long)
    rows = rows[np.argsort(-sources["snr"].to_numpy()[rows], kind="stable")][:_MOST]
    x, y, length, angle = (sources[c].to_numpy(float) for c in ("x", "y", "elongation_px", "elongation_angle"))
    psfs, fwhm = psf_stack(exposure.psf, x[rows], y[rows]), exposure.psf.fwhm_px()
    for psf, i in zip(psfs, rows, strict=True):
        box = trail_box(x[i], y[i], length[i], angle[i], len(psf) // 2, exposure.shape)
        trail = fit_trail(exposure, psf, (x[i], y[i], length[i], angle[i]), box, fwhm)
        for name, value in _row(trail, science).items():
            out[name][i] = value
    return pd.DataFrame(out)


def _row(trail: Trail, science: Exposure) -> dict[str, float | bool]:
    """Columns of apdb.yaml of a trail."""
    flags: dict[str, float | bool] = {"trail_flag": not trail.ok, "trail_flag_edge": trail.edge}
    if not trail.ok:
        return flags
    flux, x, y, length, angle = trail.values
    errors = np.sqrt(np.diag(trail.covariance))
    row = {"trailFlux": flux, "trailFluxErr": errors[0], "trailChi2": trail.chi2, "trailNdata": trail.ndata}
    row["trailAlgorithm"] = _ALGORITHM
    wcs = science.wcs
    if wcs is not None:
        sky = covariance_deg(wcs, x, y, trail.covariance[1:3, 1:3])
        ra, dec = wcs.pixel_to_sky(x, y)
        direction, scale = bearing_deg(wcs, x, y, np.cos(angle), np.sin(angle))
        row |= {"trailRa": float(ra), "trailDec": float(dec), "trailAngle": direction % 180.0}
        row |= {"trailRaErr": np.sqrt(sky[0, 0]), "trailDecErr": np.sqrt(sky[1, 1])}
        row |= {"trailLength": length * scale, "trailLengthErr": errors[3] * scale}
        row["trailAngleErr"] = float(np.degrees(errors[4]))
    return row | flags


def _at_edge(exposure: Exposure, values: F8, margin: int) -> bool:
    ny, nx = exposure.shape
    t = np.linspace(-0.5, 0.5, 9) * (values[3] + 2 * margin)
    x, y = np.rint(values[1] + t * np.cos(values[4])), np.rint(values[2] + t * np.sin(values[4]))
    on = (x >= 0) & (y >= 0) & (x < nx) & (y < ny)
    if not on.all():
        return True
    bits = exposure.mask[y.astype(int), x.astype(int)]
    return bool(((bits & int(Mask.EDGE | Mask.NO_DATA)) != 0).any())


@njit(cache=True, nogil=True)
def _render(psf, gx, gy, p, box, nodes, weights, table, jac, model):  # type: ignore[no-untyped-def]
    """Model and its derivatives (5, h, w): the PSF at the nodes of a quadrature along the line."""
    k, r = psf.shape[0], psf.shape[0] // 2
    moved, work = np.empty((3, k, k), np.float32), np.empty((k, k), np.float32)
    flux, length = p[0], p[3]
    c, s = np.cos(p[4]), np.sin(p[4])
    jac[:] = 0
    for q in range(nodes.size):
        t = 0.5 * length * nodes[q]
        x, y = p[1] + t * c, p[2] + t * s
        ix, iy = int(np.floor(x + 0.5)), int(np.floor(y + 0.5))
        shift_psf(psf, x - ix, y - iy, table, moved[0], work)
        shift_psf(gx, x - ix, y - iy, table, moved[1], work)
        shift_psf(gy, x - ix, y - iy, table, moved[2], work)
        w, f = weights[q], weights[q] * flux
        for j in range(max(0, box[2] - iy + r), min(k, box[3] - iy + r)):
            for i in range(max(0, box[0] - ix + r), min(k, box[1] - ix + r)):
                v, u = iy + j - r - box[2], ix + i - r - box[0]
                a, b = f * moved[1, j, i], f * moved[2, j, i]
                jac[0, v, u] += w * moved[0, j, i]
                jac[1, v, u] += a
                jac[2, v, u] += b
                jac[3, v, u] += 0.5 * nodes[q] * (c * a + s * b)
                jac[4, v, u] += t * (c * b - s * a)
    for v in range(model.shape[0]):
        for u in range(model.shape[1]):
            model[v, u] = flux * jac[0, v, u]


@njit(cache=True, nogil=True)
def _fit(image, variance, mask, psf, start, box, nodes, weights, table):  # type: ignore[no-untyped-def]
    h, w, k = box[3] - box[2], box[1] - box[0], psf.shape[0]
    gx, gy = np.empty((k, k), np.float32), np.empty((k, k), np.float32)
    one, two, work = np.empty((k, k), np.float32), np.empty((k, k), np.float32), np.empty((k, k), np.float32)
    step = np.float32(0.25)
    for axis in range(2):
        ex, ey = (step, np.float32(0)) if axis == 0 else (np.float32(0), step)
        shift_psf(psf, ex, ey, table, one, work)
        shift_psf(psf, -ex, -ey, table, two, work)
        target = gx if axis == 0 else gy
        for j in range(k):
            for i in range(k):
                target[j, i] = (one[j, i] - two[j, i]) / (2 * step)
    jac, model = np.empty((5, h, w)), np.empty((h, w))
    a, b = np.empty((5, 5)), np.empty(5)
    p, trial = start.copy(), start.copy()
    _render(psf, gx, gy, trial, box, nodes, weights, table, jac, model)
    normal_equations(image, mask, box, jac, model, a, b)
    if not a[0, 0] > 0:
        return p, np.full((5, 5), np.nan), 0.0, 0, False
    trial[0] = b[0] / a[0, 0]
    damping, best, found = 1e-3, np.inf, False
    for _ in range(_ITERATIONS):
        _render(psf, gx, gy, trial, box, nodes, weights, table, jac, model)
        total = normal_equations(image, mask, box, jac, model, a, b)
        if total <= best:
            still = best < np.inf and np.abs(trial[1:4] - p[1:4]).max() < _STILL
            best, p[:] = total, trial
            damping *= 0.2
            if still:
                found = True
                break
        else:
            damping = max(damping, 1e-3) * 10
            if damping > 1e4:
                found = True
                break
            _render(psf, gx, gy, p, box, nodes, weights, table, jac, model)
            normal_equations(image, mask, box, jac, model, a, b)
        change, fine = solve_normal(a, b, damping)
        if not fine:
            break
        trial[0] = p[0] + change[0]
        for t in range(1, 3):
            trial[t] = p[t] + min(max(change[t], -2.0), 2.0)
        trial[3] = max(p[3] + min(max(change[3], -5.0), 5.0), 0.0)
        trial[4] = p[4] + min(max(change[4], -0.3), 0.3)
        if not (box[0] <= trial[1] < box[1] and box[2] <= trial[2] < box[3] and trial[3] < 4 * max(h, w)):
            break
    _render(psf, gx, gy, p, box, nodes, weights, table, jac, model)
    normal_equations(image, mask, box, jac, model, a, b)
    covariance, chi2, _, count = errors_of(image, variance, mask, box, jac, model, a)
    return p, covariance, chi2, count, found
