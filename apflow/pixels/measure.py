"""Measurement of DiaSources."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.exposure import Exposure, Mask
from apflow.model.products import Difference
from apflow.model.wcs import Wcs
from apflow.pixels.dipole import fit_dipoles
from apflow.pixels.forced import forced_flux
from apflow.pixels.glints import glint_trails
from apflow.pixels.resolve import Resolved, resolve, separation
from apflow.pixels.shape import extendedness
from apflow.pixels.trail import fit_trails

F8 = NDArray[np.float64]
I4 = NDArray[np.int32]

#: apdb.yaml: apFlux is within 12 pixels.
_APERTURE_PX = 12.0
#: Footprints are grown by this before their boxes count, pixels.
_GROW = 2
#: A glint shows on the science image alone: the template has this S/N at most, and less than this part of its flux.
_NO_TEMPLATE_SNR, _NO_TEMPLATE = 3.0, 0.2
_FLAGS = {
    "bad": Mask.BAD,
    "cr": Mask.CR,
    "interpolated": Mask.INTRP,
    "nodata": Mask.NO_DATA,
    "saturated": Mask.SAT,
    "suspect": Mask.SUSPECT,
    "streak": Mask.STREAK,
    "injected": Mask.INJECTED,
    "injected_template": Mask.INJECTED_TEMPLATE,
}
#: Planes whose middle has one of its own.
_CORES = {"injected": Mask.INJECTED_CORE, "injected_template": Mask.INJECTED_CORE_TEMPLATE}


def measure(difference: Difference, science: Exposure, peaks: pd.DataFrame) -> pd.DataFrame:
    """Positions, fluxes and flags of detections, in the columns of apdb.yaml's DiaSource.

    Position and psfFlux come from a least-squares fit of the difference's PSF
    with equal weights, their errors from the variance; sources that touch are
    fitted together, and a peak that is two sources becomes two rows
    (`apflow.pixels.resolve`). scienceFlux and templateFlux are forced at that
    position on the science image and on the matched template. Dipoles and
    trails are fitted where a point source does not do.

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
        Ordered by y, then x; without ids, but parentDiaSourceId numbers the
        blends on from the number of rows. What is on the sky (ra, dec,
        moments, lengths, angles) is NaN when the science image has no WCS; snr
        is the detection's, unsigned. Moments are along the pixels' axes.

    Raises
    ------
    DataError
        The difference has no PSF.
    """
    exposure = difference.exposure
    if exposure.psf is None:
        raise DataError("measurement needs the PSF of the difference image; accepted: a difference with psf set")
    found = resolve(exposure, peaks)
    peaks, fit = found.peaks, found.fit
    x, y, ndata = fit["x"], fit["y"], fit["ndata"]
    out: dict[str, Any] = {"x": x, "y": y, "xErr": np.sqrt(fit["xVar"]), "yErr": np.sqrt(fit["yVar"])}
    out |= {"centroid_flag": fit["failed"] > 0} | _sky(science.wcs, fit)
    out |= {
        "psfFlux": fit["flux"],
        "psfFluxErr": fit["fluxErr"],
        "psfLnL": -0.5 * fit["chi2"],
        "psfChi2": fit["chi2"],
        "psfNdata": ndata.astype(np.int64),
        "psfFlux_flag": ndata == 0,
        "psfFlux_flag_noGoodPixels": ndata == 0,
        "psfFlux_flag_edge": _beyond(x, y, found.psfs.shape[1] // 2, exposure.shape),
        "snr": np.abs(peaks["snr"].to_numpy(float)),
        "isNegative": peaks["isNegative"].to_numpy(bool),
        "isDipole": peaks["isDipole"].to_numpy(bool),
    }
    out |= _aperture(exposure, x, y)
    for name, image in (("science", science), ("template", difference.matched)):
        out[f"{name}Flux"], out[f"{name}FluxErr"] = forced_flux(image, x, y)
    failed = np.isnan(out["scienceFlux"])
    out |= {"forced_PsfFlux_flag": failed, "forced_PsfFlux_flag_edge": out["psfFlux_flag_edge"]}
    out["forced_PsfFlux_flag_noGoodPixels"] = failed & ~_beyond(x, y, -0.5, exposure.shape)
    out |= _footprint(exposure.mask, peaks, x, y) | _shape(found, peaks, science.wcs)
    out["glint_trail"] = _glints(out, science.wcs, exposure.shape)
    if science.info is not None:
        info = science.info
        whole = {"visit": info.exposure, "detector": info.detector, "band": info.band}
        whole |= {"midpointMjdTai": info.mjd_mid_tai, "exposureTime": info.exposure_time_s}
        out |= {k: np.full(len(x), v) for k, v in whole.items()}
    table = pd.DataFrame(out)
    table["parentDiaSourceId"] = _parents(found.parent)
    models = table.assign(**_elongation(found))
    for columns in (fit_dipoles(difference, science, models), fit_trails(difference, science, models)):
        table = pd.concat([table.drop(columns=table.columns.intersection(columns.columns)), columns], axis=1)
    return table.sort_values(["y", "x"], kind="stable", ignore_index=True)


def _parents(parent: NDArray[np.int64]) -> pd.api.extensions.ExtensionArray:
    """Numbers of the blends, from the number of rows plus one on; null for what is no part of one."""
    rank = np.searchsorted(np.flatnonzero(np.bincount(parent[parent >= 0])), parent)
    return pd.arrays.IntegerArray(len(parent) + 1 + rank, parent < 0)


def _elongation(found: Resolved) -> dict[str, F8]:
    """What the trail fits begin with."""
    along = found.peaks["trail_px"].to_numpy(float)
    merged = np.isfinite(along)
    # A uniform line is sqrt(3) times as long as two points of the same variance are apart.
    own = np.array([np.sqrt(3) * separation(found, i) for i in range(len(along))])
    return {
        "elongation": np.where(merged, np.inf, found.elongation),
        "elongation_px": np.where(merged, along, own),
        "elongation_angle": np.where(merged, found.peaks["trail_rad"].to_numpy(float), found.angle),
    }


def _shape(found: Resolved, peaks: pd.DataFrame, wcs: Wcs | None) -> dict[str, NDArray[np.generic]]:
    """Adaptive moments (arcsec^2) of sources and PSF, and how extended the sources are."""
    scale = np.nan if wcs is None else wcs.pixel_scale_arcsec
    names = ("ixx", "iyy", "ixy")
    out: dict[str, NDArray[np.generic]] = {n: scale**2 * found.moments[:, i] for i, n in enumerate(names)}
    out |= {f"{n}PSF": scale**2 * found.of_psf[:, i] for i, n in enumerate(names)}
    with np.errstate(divide="ignore", invalid="ignore"):
        out["extendedness"] = extendedness(found.moments, found.of_psf, found.fit["flux"] / found.fit["fluxErr"])
    x, y = found.fit["x"], found.fit["y"]
    x0, y0, x1, y1 = peaks[["x0", "y0", "x1", "y1"]].to_numpy(float).T
    none = found.usable == 0
    outside = (x < x0 - 0.5) | (x > x1 + 0.5) | (y < y0 - 0.5) | (y > y1 + 0.5)
    out |= {"shape_flag_no_pixels": none, "shape_flag_not_contained": outside}
    out["shape_flag_parent_source"] = np.zeros(len(x), np.bool_)
    out["shape_flag"] = none | outside | np.isnan(found.moments[:, 0])
    return out


def _glints(out: dict[str, Any], wcs: Wcs | None, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Sources in a row that only the science image has."""
    if wcs is None:
        return np.zeros(len(out["x"]), np.bool_)
    template = np.maximum(_NO_TEMPLATE_SNR * out["templateFluxErr"], _NO_TEMPLATE * np.abs(out["psfFlux"]))
    with np.errstate(invalid="ignore"):
        alone = ~out["isNegative"] & ~out["isDipole"] & ~(out["templateFlux"] > template)
    return glint_trails(out["x"], out["y"], alone, wcs.pixel_scale_arcsec, shape[0] * shape[1])


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
    }
    for name, plane in _FLAGS.items():
        out[f"pixelFlags_{name}"] = (whole & plane) != 0
        if name != "bad":  # apdb.yaml has no flag for a bad centre
            out[f"pixelFlags_{name}Center"] = (centre & _CORES.get(name, plane)) != 0
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
