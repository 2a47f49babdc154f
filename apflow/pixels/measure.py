"""Measurement of DiaSources."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.exposure import Exposure, Mask
from apflow.model.products import Difference
from apflow.model.wcs import Wcs
from apflow.pixels.forced import forced_flux, psf_flux, psf_stack, shift_psf
from apflow.pixels.planes import bad_bits
from apflow.pixels.warp import TABLE

F8 = NDArray[np.float64]
I4 = NDArray[np.int32]

#: apdb.yaml: apFlux is within 12 pixels.
_APERTURE_PX = 12.0
#: Footprints are grown by this before their boxes count, pixels.
_GROW = 2
#: A centroid may leave its peak by this, pixels.
_MOST_SHIFT = 2.5
_ITERATIONS = 12
_FIT = ("x", "y", "flux", "fluxErr", "xVar", "yVar", "xyCov", "chi2", "ndata", "used", "failed")
_FLAGS = {
    "bad": Mask.BAD,
    "cr": Mask.CR,
    "interpolated": Mask.INTRP,
    "nodata": Mask.NO_DATA,
    "saturated": Mask.SAT,
    "suspect": Mask.SUSPECT,
}


def measure(difference: Difference, science: Exposure, peaks: pd.DataFrame) -> pd.DataFrame:
    """Positions, fluxes and flags of detections, in the columns of apdb.yaml's DiaSource.

    Position and psfFlux come from a least-squares fit of the difference's PSF
    with equal weights, their errors from the variance; scienceFlux and
    templateFlux are forced at that position on the science image and on the
    matched template.

    Parameters
    ----------
    difference : `Difference`
    science : `Exposure`
        The science image, with a PSF.
    peaks : `pandas.DataFrame`
        From `apflow.pixels.detect.detect`.

    Returns
    -------
    sources : `pandas.DataFrame`
        Ordered by y, then x; without ids. ra, dec and their errors are NaN
        when the science image has no WCS; snr is the detection's, unsigned.

    Raises
    ------
    DataError
        The difference has no PSF.
    """
    exposure = difference.exposure
    if exposure.psf is None:
        raise DataError("measurement needs the PSF of the difference image; accepted: a difference with psf set")
    px, py = peaks["x"].to_numpy(np.int64), peaks["y"].to_numpy(np.int64)
    psfs = psf_stack(exposure.psf, px, py)
    rows = _fit_psf(exposure.image, exposure.variance, exposure.mask, psfs, px, py, TABLE)
    fit = dict(zip(_FIT, rows.T, strict=True))
    x, y = fit["x"], fit["y"]
    failed = fit["failed"] > 0
    out = {"x": x, "y": y, "xErr": np.sqrt(fit["xVar"]), "yErr": np.sqrt(fit["yVar"]), "centroid_flag": failed}
    out |= _sky(science.wcs, fit)
    out |= {
        "psfFlux": fit["flux"],
        "psfFluxErr": fit["fluxErr"],
        "psfLnL": -0.5 * fit["chi2"],
        "psfChi2": fit["chi2"],
        "psfNdata": fit["ndata"].astype(np.int64),
        "psfFlux_flag": fit["ndata"] == 0,
        "psfFlux_flag_noGoodPixels": fit["ndata"] == 0,
        "psfFlux_flag_edge": _beyond(x, y, psfs.shape[1] // 2, exposure.shape),
        "snr": np.abs(peaks["snr"].to_numpy(float)),
    }
    out |= _aperture(exposure, x, y)
    for name, image in (("science", science), ("template", difference.matched)):
        out[f"{name}Flux"], out[f"{name}FluxErr"] = forced_flux(image, x, y)
    out["forced_PsfFlux_flag"] = np.isnan(out["scienceFlux"])
    out["forced_PsfFlux_flag_edge"] = out["psfFlux_flag_edge"]
    out["isNegative"], out["isDipole"] = peaks["isNegative"].to_numpy(bool), peaks["isDipole"].to_numpy(bool)
    out["dipoleFitAttempted"] = np.zeros(len(x), bool)
    out |= _footprint(exposure.mask, peaks, x, y)
    if science.info is not None:
        info = science.info
        whole = {"visit": info.exposure, "detector": info.detector, "band": info.band}
        whole |= {"midpointMjdTai": info.mjd_mid_tai, "exposureTime": info.exposure_time_s}
        out |= {k: np.full(len(x), v) for k, v in whole.items()}
    return pd.DataFrame(out).sort_values(["y", "x"], kind="stable", ignore_index=True)


def _sky(wcs: Wcs | None, fit: dict[str, F8]) -> dict[str, F8]:
    """Position on the sky with its covariance, degrees."""
    nan = np.full(len(fit["x"]), np.nan)
    if wcs is None:
        return {name: nan for name in ("ra", "raErr", "dec", "decErr", "ra_dec_Cov")}
    ra, dec = wcs.pixel_to_sky(fit["x"], fit["y"])
    cov = np.array([[fit["xVar"], fit["xyCov"]], [fit["xyCov"], fit["yVar"]]])
    sky = np.einsum("ij,jkn,lk->iln", wcs.cd, cov, wcs.cd)
    return {"ra": ra, "raErr": np.sqrt(sky[0, 0]), "dec": dec, "decErr": np.sqrt(sky[1, 1]), "ra_dec_Cov": sky[0, 1]}


def _beyond(x: F8, y: F8, margin: float, shape: tuple[int, int]) -> NDArray[np.bool_]:
    return (x < margin) | (y < margin) | (x > shape[1] - 1 - margin) | (y > shape[0] - 1 - margin)


def _aperture(exposure: Exposure, x: F8, y: F8) -> dict[str, NDArray[np.generic]]:
    flux, err = _aperture_sum(exposure.image, exposure.variance, x, y)
    truncated = _beyond(x, y, _APERTURE_PX, exposure.shape)
    return {"apFlux": flux, "apFluxErr": err, "apFlux_flag": truncated, "apFlux_flag_apertureTruncated": truncated}


def _footprint(mask: I4, peaks: pd.DataFrame, x: F8, y: F8) -> dict[str, NDArray[np.generic]]:
    """Size and mask flags of the footprints' boxes."""
    box = peaks[["x0", "y0", "x1", "y1"]].to_numpy(np.int64) + np.array([-_GROW, -_GROW, _GROW, _GROW])
    whole, centre = _mask_bits(mask, box, x, y)
    ny, nx = mask.shape
    off = _beyond(x, y, -0.5, mask.shape)
    outside = (box[:, 0] < 0) | (box[:, 1] < 0) | (box[:, 2] >= nx) | (box[:, 3] >= ny)
    out: dict[str, NDArray[np.generic]] = {
        "bboxSize": np.maximum(box[:, 2] - box[:, 0], box[:, 3] - box[:, 1]) + 1,
        "pixelFlags": off,
        "pixelFlags_offimage": off,
        "pixelFlags_edge": ((whole & Mask.EDGE) != 0) | outside | off,
        "pixelFlags_injected": (whole & Mask.INJECTED) != 0,
        "pixelFlags_injectedCenter": (centre & Mask.INJECTED_CORE) != 0,
    }
    for name, plane in _FLAGS.items():
        out[f"pixelFlags_{name}"] = (whole & plane) != 0
        if name != "bad":  # apdb.yaml has no flag for a bad centre
            out[f"pixelFlags_{name}Center"] = (centre & plane) != 0
    return out


@njit(cache=True, nogil=True)
def _mask_bits(mask, box, xs, ys):  # type: ignore[no-untyped-def]
    ny, nx = mask.shape
    whole, centre = np.zeros(xs.size, np.int32), np.zeros(xs.size, np.int32)
    for s in range(xs.size):
        for j in range(max(box[s, 1], 0), min(box[s, 3] + 1, ny)):
            for i in range(max(box[s, 0], 0), min(box[s, 2] + 1, nx)):
                whole[s] |= mask[j, i]
        ix, iy = int(np.floor(xs[s] + 0.5)), int(np.floor(ys[s] + 0.5))
        for j in range(max(iy - 1, 0), min(iy + 2, ny)):
            for i in range(max(ix - 1, 0), min(ix + 2, nx)):
                centre[s] |= mask[j, i]
    return whole, centre


@njit(cache=True, nogil=True)
def _aperture_sum(image, variance, xs, ys):  # type: ignore[no-untyped-def]
    ny, nx = image.shape
    flux, err = np.empty(xs.size), np.empty(xs.size)
    r = int(_APERTURE_PX) + 1
    for s in range(xs.size):
        ix, iy = int(np.floor(xs[s] + 0.5)), int(np.floor(ys[s] + 0.5))
        f = v = 0.0
        for j in range(max(iy - r, 0), min(iy + r + 1, ny)):
            for i in range(max(ix - r, 0), min(ix + r + 1, nx)):
                if (i - xs[s]) ** 2 + (j - ys[s]) ** 2 <= _APERTURE_PX**2:
                    f += image[j, i]
                    v += variance[j, i]
        flux[s], err[s] = f, np.sqrt(v)
    return flux, err


@njit(cache=True, nogil=True)
def _fit_psf(image, variance, mask, psfs, xs, ys, table):  # type: ignore[no-untyped-def]
    """Gauss-Newton fit of position and flux of each source; columns as `_FIT`."""
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
            if max(abs(x - xs[s]), abs(y - ys[s])) > _MOST_SHIFT:
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
