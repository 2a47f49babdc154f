"""Choice of the objects that a PSF-matching kernel is fitted to."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.model.exposure import Exposure

F4 = NDArray[np.float32]
I8 = NDArray[np.int64]
Bool = NDArray[np.bool_]

#: Peak pixels below this S/N are not worth a stamp.
_PEAK_SNR = 6.0
#: Part of a stamp that may be masked.
_MASKED = 0.25
#: Pixels that are looked at together for whether any of them is bright.
_STRETCH = 64


def choose(science: Exposure, template: Exposure, bad: Bool, half: int, most: int) -> tuple[I8, I8]:
    """Bright objects seen in both images, spread over the image, brightest first in each part of it.

    Parameters
    ----------
    science, template : `Exposure`
        On one grid, background subtracted.
    bad : `numpy.ndarray`, (ny, nx), bool
        Pixels that must not be used in either image.
    half : `int`
        Half-side of a stamp, pixels; no stamp leaves the image.
    most : `int`
        Number of stamps wanted at most.

    Returns
    -------
    x, y : `numpy.ndarray`, int64
        Middle pixels; no two stamps share their inner halves.
    """
    ny, nx = science.shape
    x, y, snr = find_peaks(science.image, science.variance, bad, half, _PEAK_SNR)
    side = int(np.clip(min(ny, nx) // 64, 3, 16))
    part = (y * side // ny) * side + x * side // nx
    order = np.lexsort((x, y, -snr))
    takes = np.zeros(side * side, np.int64)
    share = max(1, -(-most // (side * side)))
    spare: list[int] = []
    taken: list[int] = []
    occupied = np.zeros((ny, nx), np.bool_)
    for i in order:
        if len(taken) >= most:
            break
        if takes[part[i]] >= share:
            spare.append(i)
        elif _take(template, bad, occupied, int(x[i]), int(y[i]), half):
            takes[part[i]] += 1
            taken.append(i)
    for i in spare[: 4 * most]:
        if len(taken) >= most:
            break
        if _take(template, bad, occupied, int(x[i]), int(y[i]), half):
            taken.append(i)
    return x[taken], y[taken]


def _take(template: Exposure, bad: Bool, occupied: Bool, x: int, y: int, half: int) -> bool:
    """Claim a stamp when it is free, clean, and the template shows the object as well."""
    core = np.s_[y - 1 : y + 2, x - 1 : x + 2]
    if occupied[y, x] or bad[core].any():
        return False
    peak = template.image[core]
    if not (peak**2 > (0.5 * _PEAK_SNR) ** 2 * template.variance[core]).any() or peak.max() <= 0:
        return False
    if bad[y - half : y + half + 1, x - half : x + half + 1].mean() > _MASKED:
        return False
    inner = half // 2
    occupied[y - inner : y + inner + 1, x - inner : x + inner + 1] = True
    return True


def find_peaks(image: F4, variance: F4, bad: Bool, margin: int, snr: float) -> tuple[I8, I8, F4]:
    """Local maxima (x, y, S/N of the pixel) of an image above a S/N, at least `margin` from its border."""
    room = max(1000, image.size // 50)
    x, y, s = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.float32)
    n = _find(image, variance, bad, margin, np.float32(snr), x, y, s)
    return x[:n], y[:n], s[:n]


@njit(cache=True, nogil=True)
def _find(image, variance, bad, margin, snr, xs, ys, values):  # type: ignore[no-untyped-def]
    n = 0
    ny, nx = image.shape
    margin = max(margin, 2)
    squared = snr * snr
    for y in range(margin, ny - margin):
        row, noise = image[y], variance[y]
        for start in range(margin, nx - margin, _STRETCH):
            stop = min(start + _STRETCH, nx - margin)
            # Most stretches of a row hold nothing, which takes no branch to see.
            values_here, noise_here, bright = row[start:stop], noise[start:stop], False
            for x in range(values_here.size):
                bright |= values_here[x] * abs(values_here[x]) > squared * noise_here[x]
            if not bright:
                continue
            for x in range(start, stop):
                a = row[x]
                if a > 0 and a * a > squared * noise[x] and not bad[y, x] and _highest(image, x, y, a) and n < xs.size:
                    xs[n], ys[n], values[n] = x, y, a / np.sqrt(noise[x])
                    n += 1
    return n


@njit(cache=True, nogil=True)
def _highest(image, x, y, a):  # type: ignore[no-untyped-def]
    for j in range(y - 2, y + 3):
        for i in range(x - 2, x + 3):
            if image[j, i] > a:
                return False
    return True
