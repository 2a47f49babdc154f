"""What an image itself says of its camera: gain, saturation, bad columns, and borders without data."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import correlate1d, label, median_filter

from apflow.pixels.convolve import grow

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
Bool = NDArray[np.bool_]

#: Fourth difference of norm 1 along an axis: of a PSF of FWHM 4 px, two of them leave 0.002 of the peak.
_FOURTH = np.array([1.0, -4.0, 6.0, -4.0, 1.0]) / np.sqrt(70.0)
#: Bins of light, the pixels that one needs, and how many neighbours share their noise after the differences.
_BINS, _LEAST, _SHARED = 24, 40, 5.0
#: Values are clipped at so many sigma; what that leaves of a Gaussian's variance, and what it costs in its error.
_CLIP, _CLIPPED, _CLIP_COST = 2.5, 0.911, 1.3
#: Light below this many sigma of sky noise is sky; above that many it is structure.
_FAINT, _BRIGHT = 1.5, 300.0
#: Part of the structure term by which bins are uncertain.
_STRUCTURE = 0.5
#: A gain is known when its inverse is this many times its error.
_KNOWN = 4.0
#: Pixels this close to their neighbours, as a part of their height, make a plateau, from this height in sigma.
_FLAT, _HIGH = 0.015, 50.0
#: Plateaus from so far below the highest are saturation; so many pixels make one, or so many of one value.
_PILE, _PLATEAU = 0.93, 4
#: So many pixels of exactly the highest value are saturation by themselves.
_TIED = 3
#: Rows of a column that are judged at once, runs of them that make a bad column, and their least height: in
#: sigma, and as a part of the light about it, which galaxies have as well.
_SEGMENT, _RUN, _STANDS_OUT, _OF_LIGHT = 64, 3, 1.0, 0.3
#: Width of the median across columns; every so many rows are looked at.
_ACROSS, _STEP = 7, 2
#: Part of a border line of one value that is no data.
_CONSTANT = 0.5


def gain(image: F4, good: Bool, noise: float) -> tuple[float, float] | None:
    """Electrons a unit from the noise of bright pixels, by photon transfer within one image.

    Fourth differences in x and y leave next to nothing of anything as smooth as a
    PSF, and of white noise its variance V. Over pixels of light L, V = V_0 + L / gain + c L^2,
    the last term for what the differences leave of structure.
    Noise that neighbours share is seen too small by one factor everywhere; V is scaled so that the sky has its own.

    Parameters
    ----------
    image : `numpy.ndarray`, (ny, nx), float32
        With the sky subtracted.
    good : `numpy.ndarray`, (ny, nx), bool
        Pixels with values of their own.
    noise : `float`
        Standard deviation of blank sky.

    Returns
    -------
    gain, error : `float`, optional
        None where the image does not tell: too few bright pixels, or no more noise in them than in the sky.
    """
    values = np.where(good, image, np.float32(0)).astype(np.float32)
    differences, light = values, values
    for axis in (0, 1):
        differences = correlate1d(differences, _FOURTH, axis, mode="nearest")
        light = correlate1d(light, _FOURTH**2, axis, mode="nearest")
    usable = ~grow(~good, 2)
    usable[:2] = usable[-2:] = usable[:, :2] = usable[:, -2:] = False
    x, h = light[usable] / noise, differences[usable] / noise
    edges = np.concatenate([[-_FAINT, _FAINT], np.geomspace(_FAINT, _BRIGHT, _BINS + 1)[1:]])
    rows = []
    for low, high in pairwise(edges):
        inside = (x >= low) & (x < high)
        n = int(inside.sum())
        if n >= _LEAST:
            rows.append((float(x[inside].mean()), _robust_variance(h[inside]), n))
    if len(rows) < 4 or rows[0][0] > _FAINT:
        return None
    level, variance, count = np.array(rows).T
    slope, error = _slope(level, variance / variance[0], count)
    return (1 / (slope * noise), error / slope**2 / noise) if slope > _KNOWN * error else None


def _robust_variance(values: F4) -> float:
    """Of a Gaussian about 0, by the mean square of what is not far out."""
    limit = _CLIP * 1.4826 * float(np.median(np.abs(values)))
    return float((values[np.abs(values) <= limit] ** 2).mean()) / _CLIPPED


def _slope(level: F8, variance: F8, count: F8) -> tuple[float, float]:
    """Linear term of a parabola without a negative square, and its error."""
    structure = 0.0
    for _ in range(5):
        sigma = np.sqrt(_CLIP_COST * 2 * _SHARED / count) * variance
        weight = 1 / np.hypot(sigma, _STRUCTURE * structure * level**2)
        terms = 3 if structure >= 0 and len(level) > 4 else 2
        design = np.stack([level**p for p in range(terms)], 1)
        covariance = np.linalg.inv((design * weight[:, None] ** 2).T @ design)
        fit = covariance @ (design * weight[:, None] ** 2).T @ variance
        structure = float(fit[2]) if terms == 3 else -1.0
        if structure < 0 and terms == 2:
            break
    return float(fit[1]), float(np.sqrt(covariance[1, 1]))


def saturation(image: F4, good: Bool) -> float:
    """Level from which pixels are saturated, infinite where none are.

    Saturated stars have flat tops, and all at one height. One flat top tells
    nothing where its pixels differ: it may be a broad star.

    Parameters
    ----------
    image : `numpy.ndarray`, (ny, nx), float32
        As it was read out: the sky still in it.
    good : `numpy.ndarray`, (ny, nx), bool
    """
    if not good.any():
        return np.inf
    sky = float(np.median(image[good]))
    noise = 1.4826 * float(np.median(np.abs(image[good] - sky)))
    height = np.where(good, image - np.float32(sky), np.float32(0))
    top = float(height.max())
    if top <= _HIGH * max(noise, 1e-6 * top):
        return np.inf
    lowest = _lowest_of_plateaus(height, top)
    if lowest is None and np.count_nonzero(height == top) >= _TIED:
        lowest = top
    return np.inf if lowest is None else sky + lowest * (1 - _FLAT)


def _lowest_of_plateaus(height: F4, top: float) -> float | None:
    near = np.zeros(height.shape, np.int8)
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        there = np.roll(height, (-dy, -dx), (0, 1))
        alike = np.abs(height - there) <= np.float32(_FLAT) * height
        near += alike
        near += np.roll(alike, (dy, dx), (0, 1))
    flat = (near >= _PLATEAU) & (height > _PILE * top)
    high = height > _PILE * top
    if flat.sum() < _PLATEAU or grow(flat, 1)[high].mean() < 0.5:
        return None
    _, n = label(grow(flat, 1) & high)
    one_value = np.ptp(height[flat]) <= 0.003 * top
    return float(height[flat].min()) if n > 1 or one_value else None


def bad_columns(image: F4, good: Bool, noise: float) -> Bool:
    """Pixels (ny, nx) of columns, and of rows, that differ from their neighbours over hundreds of pixels.

    Parameters
    ----------
    image : `numpy.ndarray`, (ny, nx), float32
        With the sky subtracted.
    good : `numpy.ndarray`, (ny, nx), bool
    noise : `float`
        Standard deviation of blank sky.
    """
    values = np.where(good, image, np.float32(0))
    return _columns(values, noise) | _columns(values.T, noise).T


def _columns(image: F4, noise: float) -> Bool:
    ny, nx = image.shape
    n = ny // _SEGMENT
    out = np.zeros((ny, nx), np.bool_)
    if n < _RUN:
        return out
    edges = np.arange(n + 1) * ny // n
    level = np.stack([np.median(np.ascontiguousarray(image[a:b:_STEP].T), 1) for a, b in pairwise(edges)])
    light = median_filter(level, (1, _ACROSS), mode="nearest")
    level = level - light
    # As many sigma as the medians themselves scatter, where noise is shared along columns.
    scatter = 1.4826 * np.median(np.abs(level), 1, keepdims=True)
    wrong = np.abs(level) > np.maximum(_STANDS_OUT * noise + _OF_LIGHT * np.abs(light), 8 * scatter)
    for x in np.flatnonzero(wrong.sum(0) >= _RUN):
        runs, count = label(wrong[:, x])
        for r in range(1, count + 1):
            rows = np.flatnonzero(runs == r)
            if len(rows) >= _RUN:
                out[edges[rows[0]] : edges[rows[-1] + 1], x] = True
    return out


def constant_borders(image: F4) -> Bool:
    """Pixels (ny, nx) of the values that most of a border line has, connected to it."""
    out = np.zeros(image.shape, np.bool_)
    for line in (image[0], image[-1], image[:, 0], image[:, -1]):
        value = np.median(line)
        if np.isfinite(value) and np.mean(line == value) >= _CONSTANT:
            parts, _ = label(image == value)
            at_border = np.concatenate([parts[0], parts[-1], parts[:, 0], parts[:, -1]])
            out |= np.isin(parts, at_border[at_border > 0])
    return out
