"""Detection of point sources of both signs in a difference image."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pandas as pd
from numba import njit
from numpy.typing import NDArray
from scipy.signal import fftconvolve

from apflow.errors import DataError
from apflow.model.exposure import Mask
from apflow.model.products import Difference
from apflow.model.psf import Psf
from apflow.pixels.convolve import convolve
from apflow.pixels.deblend import MOST, groups
from apflow.pixels.forced import psf_flux, psf_stack
from apflow.pixels.planes import EDGE, bad_bits, unusable
from apflow.pixels.stamps import find_peaks

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I8 = NDArray[np.int64]

#: Two peaks of opposite signs this close, in FWHM, and this similar are the halves of a dipole.
_DIPOLE_FWHM, _DIPOLE_RATIO = 1.6, 0.3
#: Part of a bright neighbour's S/N that its own PSF model may leave about it.
_MODEL_ERROR = 0.08
#: Peak S/N from which a subtracted star's residuals are looked for, and the part of its wing, which
#: falls with the cube of the distance, and of its light that they may be.
_BLINDING, _WING_ERROR, _LIGHT_ERROR = 300.0, 0.15, 0.15
#: Half-side of the window within which a footprint is traced, pixels.
_WINDOW = 50
COLUMNS = ("x", "y", "snr", "isNegative", "isDipole", "x0", "y0", "x1", "y1", "npix")


def detect(difference: Difference, threshold: float) -> pd.DataFrame:
    """Peaks of the PSF-matched S/N map.

    Peaks that a brighter source's PSF explains are dropped. A close pair of
    opposite signs, as a registration error leaves at a bright star, is one
    source with isDipole set. All the peaks that a star of hundreds of sigma
    leaves about itself when it moves, varies or has not quite the others'
    PSF are one source, too: the strongest of them, or where both signs are
    alike a dipole in the star's place with the strongest's S/N.

    Parameters
    ----------
    difference : `Difference`
        With the difference's own PSF.
    threshold : `float`
        Least |S/N|.

    Returns
    -------
    peaks : `pandas.DataFrame`
        Ordered by y, then x: x, y (px, whole), snr (signed, at the maximum
        between the pixels, which `threshold` is for), isNegative,
        isDipole, the footprint's bounding box x0, y0, x1, y1 (inclusive) and
        npix, the pixels connected to the peak above the threshold. None is
        centred on a BAD, SAT, CR, NO_DATA or EDGE pixel.

    Raises
    ------
    DataError
        The difference has no PSF.
    """
    exposure = difference.exposure
    if exposure.psf is None:
        raise DataError("detection needs the PSF of the difference image; accepted: a difference with psf set")
    psf = exposure.psf.centre()
    filtered = difference.filtered
    if filtered is None:
        filtered = convolve(np.where(unusable(exposure.mask), np.float32(0), exposure.image), psf[::-1, ::-1])
    power = np.float32((psf**2).sum())
    reach = max(1, round(exposure.psf.fwhm_px() / 2))
    y, x = _candidates(filtered, exposure.variance, exposure.mask, power, np.float32(0.7 * threshold), reach)
    snr = _exact(exposure.image, exposure.variance, exposure.mask, psf_stack(exposure.psf, x, y), x, y)
    between = _between(filtered, x, y)
    strong = np.abs(snr * between) >= threshold
    x, y, snr, between = x[strong], y[strong], snr[strong], between[strong]
    keep, dipole = _separate(x, y, snr, exposure.psf, threshold)
    x, y, snr, dipole = x[keep], y[keep], snr[keep] * between[keep], dipole[keep]
    boxes = _footprints(filtered, exposure.variance, power, np.float32(threshold), x, y)
    columns = (x, y, snr, snr < 0, dipole, *boxes.T)
    table = pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))
    table = _patterns_as_one(table, difference, threshold)
    return table.sort_values(["y", "x"], kind="stable", ignore_index=True)


def mark(difference: Difference, peaks: pd.DataFrame) -> Difference:
    """The difference with its detections in the mask.

    DETECTED and DETECTED_NEGATIVE are set in the ellipse of each footprint's
    box; NOT_DEBLENDED, too, where more sources touch than are fitted together.
    """
    assert difference.exposure.psf is not None
    mask = difference.exposure.mask.copy()
    number = groups(peaks["x"].to_numpy(float), peaks["y"].to_numpy(float), difference.exposure.psf.fwhm_px())
    crowded = np.bincount(number, minlength=1)[number] > MOST
    boxes = peaks[["x0", "y0", "x1", "y1"]].to_numpy(np.int64)
    for (x0, y0, x1, y1), negative, many in zip(boxes, peaks["isNegative"].to_numpy(bool), crowded, strict=True):
        box = np.s_[y0 : y1 + 1, x0 : x1 + 1]
        v, u = np.mgrid[box]
        across = (2 * u - x0 - x1) / (x1 - x0 + 1)
        along = (2 * v - y0 - y1) / (y1 - y0 + 1)
        planes = (Mask.DETECTED_NEGATIVE if negative else Mask.DETECTED) | (Mask.NOT_DEBLENDED if many else 0)
        mask[box][across**2 + along**2 <= 1.0] |= int(planes)
    return dataclasses.replace(difference, exposure=dataclasses.replace(difference.exposure, mask=mask))


@njit(cache=True, nogil=True)
def _candidates(filtered, variance, mask, power, threshold, reach):  # type: ignore[no-untyped-def]
    """Extrema (y, x) of the filtered image over their own pixel's noise."""
    room = 1000
    found = np.empty((room, 2), np.int64)
    n = 0
    ny, nx = filtered.shape
    level = threshold * threshold * power
    for y in range(1, ny - 1):
        for x in range(1, nx - 1):
            m = filtered[y, x]
            if m * m <= level * variance[y, x] or (mask[y, x] & EDGE) != 0 or bad_bits(mask[y, x]):
                continue
            sign = np.float32(1) if m > 0 else np.float32(-1)
            highest = True
            for j in range(max(y - reach, 0), min(y + reach + 1, ny)):
                for i in range(max(x - reach, 0), min(x + reach + 1, nx)):
                    other = sign * filtered[j, i]
                    # Of two equal pixels the first one counts.
                    if other > sign * m or (other == sign * m and (j < y or (j == y and i < x))):
                        highest = False
            if highest:
                if n == room:
                    room *= 2
                    larger = np.empty((room, 2), np.int64)
                    larger[:n] = found
                    found = larger
                found[n, 0], found[n, 1] = y, x
                n += 1
    return found[:n, 0].copy(), found[:n, 1].copy()


@njit(cache=True, nogil=True)
def _exact(image, variance, mask, psfs, xs, ys):  # type: ignore[no-untyped-def]
    out = np.zeros(xs.size)
    for s in range(xs.size):
        flux, noise, _, used = psf_flux(image, variance, mask, psfs[s], xs[s], ys[s])
        if used >= 0.3 and noise > 0:
            out[s] = flux / np.sqrt(noise)
    return out


@njit(cache=True, nogil=True)
def _between(filtered, xs, ys):  # type: ignore[no-untyped-def]
    """What the S/N gains between the pixels: the parabolas' maximum over the peak pixel's value."""
    out = np.ones(xs.size)
    for s in range(xs.size):
        x, y = xs[s], ys[s]
        m = filtered[y, x]
        for low, high in ((filtered[y, x - 1], filtered[y, x + 1]), (filtered[y - 1, x], filtered[y + 1, x])):
            slope, bend = (high - low) / (2 * m), (2 * m - high - low) / m
            # Noise may bend a peak little: no source gains more than half a pixel's offset gives.
            if bend > abs(slope):
                out[s] += slope * slope / (2 * bend)
    return out


def _separate(x: I8, y: I8, snr: F8, psf: Psf, threshold: float) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which peaks stand on their own, and which of them are dipoles."""
    centre = psf.centre()
    response = fftconvolve(centre, centre[::-1, ::-1]) / (centre**2).sum()
    reach, fwhm = len(centre) - 1, psf.fwhm_px()
    keep, dipole = np.zeros(len(x), np.bool_), np.zeros(len(x), np.bool_)
    for i in np.lexsort((x, y, -np.abs(snr))):
        near = np.flatnonzero(keep & (np.abs(x - x[i]) <= reach) & (np.abs(y - y[i]) <= reach))
        distance = np.hypot(x[near] - x[i], y[near] - y[i])
        twins = near[(distance < _DIPOLE_FWHM * fwhm) & (snr[near] * snr[i] < 0)]
        twins = twins[np.abs(snr[twins]) * _DIPOLE_RATIO < abs(snr[i])]
        if len(twins):
            dipole[twins] = True
            continue
        explained = (snr[near] * response[y[i] - y[near] + reach, x[i] - x[near] + reach]).sum()
        halo = np.abs(snr[near][distance < 2.5 * fwhm])
        needed = max(threshold, _MODEL_ERROR * float(halo.max(initial=0.0)))
        keep[i] = (snr[i] - explained) * np.sign(snr[i]) >= needed
    return keep, dipole


def _patterns_as_one(peaks: pd.DataFrame, difference: Difference, threshold: float) -> pd.DataFrame:
    """The peaks, those of both signs about a very bright star replaced by one."""
    matched, psf = difference.matched, difference.exposure.psf
    assert psf is not None
    if len(peaks) < 2:
        return peaks
    xs, ys, snr = find_peaks(matched.image, matched.variance, unusable(matched.mask), 2, _BLINDING)
    fwhm = psf.fwhm_px()
    x, y = peaks["x"].to_numpy(np.int64), peaks["y"].to_numpy(np.int64)
    noise = np.sqrt(difference.exposure.variance[y, x] / (psf.centre() ** 2).sum())
    flux = np.abs(peaks["snr"].to_numpy()) * noise
    negative = peaks["isNegative"].to_numpy(bool)
    free = np.ones(len(peaks), np.bool_)
    stars: list[dict[Any, Any]] = []
    for i in np.argsort(-snr, kind="stable"):
        light = float(matched.image[ys[i], xs[i]]) / float(psf.centre().max())
        reach = fwhm * (_WING_ERROR * snr[i] / threshold) ** (1 / 3)
        about = free & (np.hypot(x - xs[i], y - ys[i]) < reach) & (flux < _LIGHT_ERROR * light)
        if negative[about].any() and (~negative[about]).any():
            free &= ~about
            stars.append(_as_one(peaks[about], int(xs[i]), int(ys[i])))
    return pd.concat([peaks[free], pd.DataFrame(stars)], ignore_index=True) if stars else peaks


def _as_one(pattern: pd.DataFrame, x: int, y: int) -> dict[Any, Any]:
    """Peaks as a row with the box around all: the strongest, or a dipole at (x, y) where both signs are alike."""
    snr = pattern["snr"].to_numpy()
    row: dict[Any, Any] = pattern.iloc[int(np.abs(snr).argmax())].to_dict()
    if min(snr.max(), -snr.min()) > _DIPOLE_RATIO * np.abs(snr).max():
        row |= {"x": x, "y": y, "isDipole": True}
    row |= {k: pattern[k].min() for k in ("x0", "y0")} | {k: pattern[k].max() for k in ("x1", "y1")}
    return row | {"npix": pattern["npix"].sum()}


@njit(cache=True, nogil=True)
def _footprints(filtered, variance, power, threshold, xs, ys):  # type: ignore[no-untyped-def]
    """Bounding box and size of the pixels of one sign that are connected to each peak: (n, 5)."""
    ny, nx = filtered.shape
    side = 2 * _WINDOW + 1
    out = np.empty((xs.size, 5), np.int64)
    stack = np.empty((side * side, 2), np.int64)
    level = threshold * threshold * power
    for s in range(xs.size):
        seen = np.zeros((side, side), np.bool_)
        positive = filtered[ys[s], xs[s]] > 0
        x0 = x1 = xs[s]
        y0 = y1 = ys[s]
        stack[0, 0], stack[0, 1] = ys[s], xs[s]
        seen[_WINDOW, _WINDOW] = True
        depth, count = 1, 0
        while depth:
            depth -= 1
            y, x = stack[depth, 0], stack[depth, 1]
            count += 1
            x0, x1, y0, y1 = min(x0, x), max(x1, x), min(y0, y), max(y1, y)
            for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0)):
                j, i = y + dy, x + dx
                v, u = j - ys[s] + _WINDOW, i - xs[s] + _WINDOW
                if 0 <= j < ny and 0 <= i < nx and 0 <= v < side and 0 <= u < side and not seen[v, u]:
                    seen[v, u] = True
                    m = filtered[j, i]
                    if (m > 0) == positive and m * m > level * variance[j, i]:
                        stack[depth, 0], stack[depth, 1] = j, i
                        depth += 1
        out[s] = np.array([x0, y0, x1, y1, count])
    return out
