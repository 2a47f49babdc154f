"""One judgement for the differences of all codes: false detections, completeness, fluxes, noise.

A false detection is a peak with abs(S/N) above 5 in the PSF-matched S/N map, divided by the map's own MAD-based sigma
on blank sky, on pixels that neither image masks, more than 3 px from any true change; those within 25 px of a
saturated star are counted apart. A background of 128 px steps is subtracted first, from every code's difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import sep
from numpy.typing import NDArray
from scipy.ndimage import center_of_mass, distance_transform_edt, gaussian_filter, label, maximum_filter
from scipy.ndimage import shift as shifted
from scipy.signal import fftconvolve
from scipy.spatial import cKDTree

from apflow.model.exposure import Exposure
from apflow.model.psf import Psf
from apflow.pixels.planes import SAT, unusable

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
Bool = NDArray[np.bool_]

THRESHOLD = 5.0
MATCH_PX, NEAR_STAR_PX = 3.0, 25.0
BACKGROUND_PX = 128
#: S/N at which completeness is asked for.
LEVELS = (5.0, 7.0, 10.0)
#: Fluxes are compared from this S/N, constant stars from and to these (of the science image).
FLUX_SNR, STAR_SNR = 10.0, (50.0, 2000.0)
#: Half-side of the square in which a peak is the highest pixel.
_PEAK_PX = 2
#: Light of this S/N under a PSF is no blank sky, nor is what is this near to it.
_BLANK_SNR, _BLANK_PX = 3.0, 4.0
#: Less of the image than this, and all of it must serve as blank sky.
_LEAST_BLANK = 0.02
#: A peak needs this part of the PSF's weight on pixels that can be used.
_LEAST_WEIGHT = 0.3


@dataclass(frozen=True, eq=False)
class Ground:
    """What the judgement of every code on a pair has in common.

    Attributes
    ----------
    bad : `numpy.ndarray`, (ny, nx), bool
        Pixels that either image masks.
    blank : `numpy.ndarray`, (ny, nx), bool
        Sky without light in either image.
    saturated : `numpy.ndarray`, (n, 2)
        Middles (x, y) of saturated stars.
    """

    bad: Bool
    blank: Bool
    saturated: F8


@dataclass(frozen=True, eq=False)
class Judgement:
    """How good a difference is.

    Attributes
    ----------
    n_false, n_near_star : `int`
    completeness : `dict` [`float`, `tuple` [`int`, `int`]]
        By S/N: how many were found of how many.
    flux_bias, flux_bias_err : `float`
        Of PSF fluxes at S/N 10 and above, as a part of the flux: weighted mean and its error.
    star_snr : `numpy.ndarray`
        Values of the S/N map at bright stars that did not change, and of `star_std`, their standard deviation.
    mad : `float`
        Sigma of the S/N map on blank sky as the code delivers it; the map is divided by it.
    masked : `float`
        Part of the pixels good in both images that the code has given up.
    false : `pandas.DataFrame`
        x, y, snr, near_star of the false detections.
    snr_map : `numpy.ndarray`, (ny, nx)
    """

    n_false: int
    n_near_star: int
    completeness: dict[float, tuple[int, int]]
    flux_bias: float
    flux_bias_err: float
    star_snr: F8
    mad: float
    masked: float
    false: pd.DataFrame
    snr_map: F4

    @property
    def star_std(self) -> float:
        """Standard deviation of the S/N at constant bright stars: 1 when only noise is left there."""
        return float(np.std(self.star_snr)) if len(self.star_snr) > 1 else float("nan")


def ground(science: Exposure, template: Exposure) -> Ground:
    """What a pair itself says."""
    bad = unusable(science.mask) | unusable(template.mask)
    light = np.zeros(bad.shape, np.bool_)
    for exposure in (science, template):
        assert exposure.psf is not None
        sigma = exposure.psf.fwhm_px() / 2.3548
        good = ~unusable(exposure.mask)
        noise = np.sqrt(np.median(exposure.variance[good]) / (4 * np.pi * sigma**2))
        light |= gaussian_filter(np.where(good, exposure.image, 0), sigma) > _BLANK_SNR * noise
    blank = ~bad & (distance_transform_edt(~light) > _BLANK_PX)
    if blank.mean() < _LEAST_BLANK:
        blank = ~bad
    labels, n = label((science.mask | template.mask) & SAT)
    places = np.array(center_of_mass(labels > 0, labels, range(1, n + 1))).reshape(-1, 2)[:, ::-1]
    return Ground(bad, blank, places)


def judge(
    image: F4,
    variance: F4,
    psf: Psf,
    own_bad: Bool,
    ground: Ground,
    truth: pd.DataFrame,
    constant: pd.DataFrame | None = None,
) -> Judgement:
    """Judge a difference.

    Parameters
    ----------
    image, variance : `numpy.ndarray`, (ny, nx)
        As the code delivers them, in the flux scale of the science image.
    psf : `Psf`
        Of the difference.
    own_bad : `numpy.ndarray`, (ny, nx), bool
        Pixels that the code has given up. They detect nothing; changes on them that both images show are missed.
    ground : `Ground`
    truth : `pandas.DataFrame`
        x, y, flux, snr of every change; asked, where given, is the S/N of those that count for completeness, others
        (0) are merely real.
    constant : `pandas.DataFrame`, optional
        x, y, snr of stars that did not change.

    Raises
    ------
    ValueError
        The code has given up all blank sky.
    """
    bad = ground.bad | own_bad | ~np.isfinite(image) | ~(variance > 0)
    flat = without_background(image, bad)
    snr = snr_map(flat, variance, psf, bad)
    blank = snr[ground.blank & ~bad]
    if not blank.size:
        raise ValueError("no blank sky is left of the difference")
    mad = 1.4826 * float(np.median(np.abs(blank - np.median(blank))))
    snr /= np.float32(mad)
    found = peaks(snr, bad)
    false = _false(found, truth, ground)
    near = false["near_star"].to_numpy(bool)
    bias, error = _flux_bias(flat, variance, psf, bad, truth)
    stars = _at_stars(snr, bad, constant)
    given_up = bad & ~ground.bad
    masked = float(given_up.sum()) / max(int((~ground.bad).sum()), 1)
    completeness = _completeness(found, truth)
    return Judgement(int((~near).sum()), int(near.sum()), completeness, bias, error, stars, mad, masked, false, snr)


def without_background(image: F4, bad: Bool) -> F4:
    """The difference less a background of 128 px steps."""
    filled = np.ascontiguousarray(np.where(bad, 0, image), np.float32)
    background = sep.Background(filled, mask=bad, bw=BACKGROUND_PX, bh=BACKGROUND_PX)
    return np.asarray(filled - background.back(dtype=np.float32))


def snr_map(image: F4, variance: F4, psf: Psf, bad: Bool) -> F4:
    """S/N of a PSF centred on each pixel, bad ones left out; 0 where too few are good."""
    p = psf.centre()[::-1, ::-1]
    good = ~bad
    signal = fftconvolve(np.where(good, image, 0), p, mode="same")
    noise2 = fftconvolve(np.where(good, variance, 0), p**2, mode="same")
    weight = fftconvolve(good.astype(np.float32), p**2, mode="same") / (p**2).sum()
    used = (weight > _LEAST_WEIGHT) & (noise2 > 0)
    out = np.divide(signal, np.sqrt(np.maximum(noise2, 1e-30)), out=np.zeros_like(signal), where=used)
    return np.asarray(out, np.float32)


def peaks(snr: F4, bad: Bool, threshold: float = THRESHOLD) -> pd.DataFrame:
    """Local extrema of a S/N map above the threshold, of both signs: x, y, snr."""
    tables = []
    for sign in (1, -1):
        top = maximum_filter(sign * snr, 2 * _PEAK_PX + 1)
        y, x = np.nonzero((sign * snr > threshold) & (sign * snr == top) & ~bad)
        tables.append(pd.DataFrame({"x": x, "y": y, "snr": snr[y, x]}))
    return pd.concat(tables, ignore_index=True)


def _distance(points: pd.DataFrame, places: F8) -> F8:
    """Distance of each point to the nearest place, infinite where there is none."""
    if not len(places):
        return np.full(len(points), np.inf)
    return np.asarray(cKDTree(places).query(points[["x", "y"]].to_numpy(float).reshape(-1, 2))[0], float)


def _false(found: pd.DataFrame, truth: pd.DataFrame, ground: Ground) -> pd.DataFrame:
    false = found[_distance(found, truth[["x", "y"]].to_numpy(float)) > MATCH_PX].reset_index(drop=True)
    return false.assign(near_star=_distance(false, ground.saturated) <= NEAR_STAR_PX)


def _completeness(found: pd.DataFrame, truth: pd.DataFrame) -> dict[float, tuple[int, int]]:
    """Changes with a peak of their own sign within 3 px."""
    hit = np.zeros(len(truth), np.bool_)
    for positive in (True, False):
        of_sign = (truth["flux"] > 0).to_numpy() == positive
        places = found[(found["snr"] > 0) == positive][["x", "y"]].to_numpy(float)
        hit[of_sign] = _distance(truth[of_sign], places) <= MATCH_PX
    asked = truth["asked"].to_numpy() if "asked" in truth else truth["snr"].to_numpy()
    return {level: (int(hit[asked == level].sum()), int((asked == level).sum())) for level in LEVELS}


def _flux_bias(image: F4, variance: F4, psf: Psf, bad: Bool, truth: pd.DataFrame) -> tuple[float, float]:
    """Weighted mean of measured over true flux, less 1, and its error; NaN without a change bright enough."""
    chosen = truth[truth["snr"] >= FLUX_SNR]
    if "asked" in truth:
        chosen = chosen[chosen["asked"] > 0]
    half, pairs = psf.size // 2, []
    ny, nx = image.shape
    for x, y, flux in zip(*(chosen[c].to_numpy(float) for c in ("x", "y", "flux")), strict=True):
        ix, iy = round(x), round(y)
        if not (half <= ix < nx - half and half <= iy < ny - half):
            continue
        box = np.s_[iy - half : iy + half + 1, ix - half : ix + half + 1]
        model = shifted(psf.at(x, y), (y - iy, x - ix), order=3) * ~bad[box]
        power = (model**2).sum()
        if power > _LEAST_WEIGHT * (psf.at(x, y) ** 2).sum():
            pairs.append(((model * image[box]).sum() / power, flux, (model**2 * variance[box]).sum() / power**2))
    if not pairs:
        return float("nan"), float("nan")
    measured, true, noise2 = np.array(pairs).T
    # A change that lies on a blemish must not decide alone.
    keep = np.abs(measured - true) < 5 * np.sqrt(noise2) + 0.1 * np.abs(true)
    weight = (true**2 / noise2)[keep].sum()
    if not weight > 0:
        return float("nan"), float("nan")
    return float((measured * true / noise2)[keep].sum() / weight - 1), float(weight**-0.5)


def _at_stars(snr: F4, bad: Bool, constant: pd.DataFrame | None) -> F8:
    if constant is None:
        return np.empty(0)
    bright = constant[constant["snr"].between(*STAR_SNR)]
    y, x = np.rint(bright["y"].to_numpy()).astype(int), np.rint(bright["x"].to_numpy()).astype(int)
    return np.asarray(snr[y, x][~bad[y, x]], float)
