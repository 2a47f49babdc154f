"""Finding compact sources that can serve as stars."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from apflow.model.exposure import Exposure, Mask

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]

#: Peaks to this S/N in a 3 x 3 box count as neighbours.
_NEIGHBOUR_SNR = 6.0
#: A neighbour within so many FWHM with more than this part of the flux spoils a candidate.
_ISOLATION_FWHM, _ISOLATION_RATIO = 2.5, 0.1
#: Sources measured at most, the brightest first: more stars make nothing better.
_MOST = 3000
#: Pixels from the border within which nothing is measured.
_BORDER = 8

_UNUSABLE = int(Mask.BAD | Mask.SAT | Mask.NO_DATA | Mask.CR)


def find_stars(exposure: Exposure, threshold: float = 20.0) -> pd.DataFrame:
    """Compact, unsaturated, isolated sources of an image with its sky subtracted.

    Peaks of 3 x 3 sums, measured with a round Gaussian weight whose width
    adapts to the source (Bernstein & Jarvis 2002), so that `fwhm` is the
    source's own.

    Parameters
    ----------
    exposure : `Exposure`
    threshold : `float`
        Least S/N of the Gaussian-weighted flux.

    Returns
    -------
    stars : `pandas.DataFrame`
        Brightest first: x, y (px), flux (unit of the exposure), snr, fwhm
        (px), e1, e2 (ellipticity (Ixx - Iyy, 2 Ixy) / (Ixx + Iyy) under the weight).
        None has an unusable pixel within 2 px of its peak.
    """
    peaks = _peaks(_box3(exposure.image), exposure.variance, exposure.mask, np.float32(_NEIGHBOUR_SNR), _BORDER)
    peaks = peaks[np.argsort(-peaks[:, 2], kind="stable")]
    bright = peaks[:_MOST]
    rows = _measure(exposure.image, exposure.variance, bright)
    with np.errstate(invalid="ignore"):
        keep = (rows[:, 3] >= threshold) & _usable(exposure.mask, bright, 2)
    keep &= _isolated(bright, peaks, rows[:, 4])
    return pd.DataFrame(rows[keep], columns=["x", "y", "flux", "snr", "fwhm", "e1", "e2"])


def _isolated(sources: F8, peaks: F8, fwhm: F8) -> NDArray[np.bool_]:
    """Whether no peak with a sizeable part of the flux is near; ``peaks`` holds x, y, flux."""
    alone = np.ones(len(sources), np.bool_)
    known = np.isfinite(fwhm)
    if known.sum() == 0:
        return alone
    radius = _ISOLATION_FWHM * float(np.median(fwhm[known]))
    near = cKDTree(peaks[:, :2]).query_ball_point(sources[:, :2], radius)
    for n, found in enumerate(near):
        if len(found) > 1:
            ratio = peaks[found, 2] / sources[n, 2]
            alone[n] = np.sort(ratio)[:-1].sum() < _ISOLATION_RATIO and ratio.max() <= 1.0
    return alone


@njit(cache=True, nogil=True)
def _box3(image: F4) -> F4:
    """Sums over 3 x 3 pixels; zero on the border."""
    ny, nx = image.shape
    out = np.zeros((ny, nx), np.float32)
    row = np.empty(nx, np.float32)
    for y in range(1, ny - 1):
        for x in range(nx):
            row[x] = image[y - 1, x] + image[y, x] + image[y + 1, x]
        for x in range(1, nx - 1):
            out[y, x] = row[x - 1] + row[x] + row[x + 1]
    return out


@njit(cache=True, nogil=True)
def _peaks(box: F4, variance: F4, mask: I4, threshold: np.float32, border: int) -> F8:
    """Local maxima over 5 x 5 pixels: rows of x, y, box sum."""
    ny, nx = box.shape
    found = [(0, 0) for _ in range(0)]
    cut = np.float32(9) * threshold * threshold
    for y in range(border, ny - border):
        for x in range(border, nx - border):
            b = box[y, x]
            if b <= 0 or b * b < cut * variance[y, x]:
                continue
            top = True
            for yy in range(y - 2, y + 3):
                for xx in range(x - 2, x + 3):
                    later = yy > y or (yy == y and xx > x)
                    if box[yy, xx] > b or (later and box[yy, xx] == b):
                        top = False
                        break
                if not top:
                    break
            if top:
                found.append((y, x))
    out = np.empty((len(found), 3))
    for n in range(len(found)):
        out[n, 0], out[n, 1], out[n, 2] = found[n][1], found[n][0], box[found[n][0], found[n][1]]
    return out


@njit(cache=True, nogil=True)
def _usable(mask: I4, peaks: F8, radius: int) -> NDArray[np.bool_]:
    """Whether no pixel within ``radius`` of a peak is masked."""
    out = np.ones(len(peaks), np.bool_)
    for n in range(len(peaks)):
        x, y = int(peaks[n, 0]), int(peaks[n, 1])
        for yy in range(y - radius, y + radius + 1):
            for xx in range(x - radius, x + radius + 1):
                if mask[yy, xx] & _UNUSABLE:
                    out[n] = False
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def _measure(image: F4, variance: F4, peaks: F8) -> F8:
    """Adaptive Gaussian moments: rows of x, y, flux, snr, fwhm, e1, e2; NaN where they do not converge."""
    ny, nx = image.shape
    out = np.full((len(peaks), 7), np.nan)
    for n in range(len(peaks)):
        x0, y0 = peaks[n, 0], peaks[n, 1]
        x, y, s2 = x0, y0, 3.0
        ixx, iyy, ixy, amplitude, noise2 = 0.0, 0.0, 0.0, 0.0, 0.0
        converged = False
        for _ in range(30):
            radius = int(3.5 * np.sqrt(s2)) + 1
            xa, xb = max(0, int(x) - radius), min(nx, int(x) + radius + 2)
            ya, yb = max(0, int(y) - radius), min(ny, int(y) + radius + 2)
            wx = np.exp(-0.5 * (np.arange(xa, xb) - x) ** 2 / s2)
            sw = swi = swx = swy = swxx = swyy = swxy = noise2 = 0.0
            for j in range(ya, yb):
                wy = np.exp(-0.5 * (j - y) ** 2 / s2)
                for i in range(xa, xb):
                    w = wy * wx[i - xa]
                    wi = w * image[j, i]
                    dx, dy = i - x, j - y
                    sw += w * w
                    swi += wi
                    swx += wi * dx
                    swy += wi * dy
                    swxx += wi * dx * dx
                    swyy += wi * dy * dy
                    swxy += wi * dx * dy
                    noise2 += w * w * variance[j, i]
            if swi <= 0.0:
                break
            # A Gaussian under a weight of its own width has half its moments, and half its shift.
            mx, my = swx / swi, swy / swi
            ixx, iyy, ixy = swxx / swi - mx * mx, swyy / swi - my * my, swxy / swi - mx * my
            amplitude = swi / sw
            measured = 0.5 * (ixx + iyy)
            if not measured > 0.0:
                break
            # The weighted moment m and the width s2 of the weight give the source's: 1/m = 1/s2 + 1/source.
            source = 1.0 / max(1.0 / measured - 1.0 / s2, 1.0 / 64.0)
            x, y = x + 2.0 * mx, y + 2.0 * my
            step = abs(source - s2)
            s2 = min(max(source, 0.3), 64.0)
            if abs(x - x0) > 3.0 or abs(y - y0) > 3.0:
                break
            if abs(mx) < 1e-3 and abs(my) < 1e-3 and step < 1e-3 * s2:
                converged = True
                break
        if converged and noise2 > 0.0:
            out[n, 0], out[n, 1] = x, y
            out[n, 2] = amplitude * 2.0 * np.pi * s2
            out[n, 3] = amplitude * (np.pi * s2) / np.sqrt(noise2)
            out[n, 4] = 2.3548 * np.sqrt(s2)
            out[n, 5], out[n, 6] = (ixx - iyy) / (ixx + iyy), 2.0 * ixy / (ixx + iyy)
    return out


def stellar_locus(stars: pd.DataFrame) -> NDArray[np.bool_]:
    """Which sources have the size of the stars: the densest clump of sizes.

    Cosmic rays are smaller than the clump, galaxies larger; the window
    around it widens for faint sources by their own error, FWHM / S/N.
    """
    fwhm, snr = stars["fwhm"].to_numpy(), stars["snr"].to_numpy()
    if len(fwhm) < 3:
        return np.ones(len(fwhm), np.bool_)
    bright = fwhm[np.argsort(-snr, kind="stable")[: max(10, len(fwhm) // 2)]]
    weight = np.exp(-0.5 * ((bright[:, None] - bright) / (0.04 * bright)) ** 2).sum(1)
    centre = bright[np.argmax(weight)]
    for _ in range(3):
        inside = np.abs(fwhm - centre) < 0.1 * centre + 2.0 * fwhm / snr
        centre = float(np.median(fwhm[inside]))
    return np.asarray(np.abs(fwhm - centre) < 0.1 * centre + 2.0 * fwhm / snr)
