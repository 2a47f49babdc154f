"""Pixels that are bad in one dark or one flat, against those that are known to be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.model.camera import Amplifier
from apflow.model.exposure import Mask
from apflow.pixels.interpolate import nearby
from apflow.pixels.survey import EXCLUDED, Survey, sample_of

F4 = NDArray[np.float32]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]

#: Bright pixels of LSST's sensor tests (eotest): dark current above, e-/s.
HOT_E_PER_S = 5.0
#: Dark pixels of the same: response off the surroundings' by more.
RESPONSE = 0.2
#: And never closer to the noise: 16 million pixels have 0.03 by chance beyond 6 sigma.
_NOISE_SIGMA = 6.0
#: A hit shares its charge with its neighbours: four of them hold so much of it, and so many sigma of their noise.
_SHARED, _SHARED_SIGMA = 0.05, 3.5
#: So many in a column are a bad column whatever their neighbours hold (as eotest has it).
_COLUMN = 20

_BAD, _SAT, _NO_DATA = int(Mask.BAD), int(Mask.SAT), int(Mask.NO_DATA)


@dataclass(frozen=True)
class Outliers:
    """Pixels outside limits: high known defects, new low and high ones, and hits of cosmic rays."""

    known: int
    low: int
    high: int
    hits: int


def hot_limit(found: Survey, exposure_time_s: float) -> float:
    """Electrons above an amplifier's level from which a pixel of a dark is hot."""
    return max(HOT_E_PER_S * exposure_time_s, _NOISE_SIGMA * found.sigma)


def response_limit(found: Survey) -> float:
    """Part of the level by which a pixel of a flat is off when it is bad."""
    return max(RESPONSE, _NOISE_SIGMA * found.sigma / found.mean)


def outliers(
    image: F4, mask: I4, amp: Amplifier, flat: F4 | None, centre: float, sigma: float, limit: float
) -> Outliers:
    """Count the pixels of one amplifier further from `centre` than `limit`.

    One image cannot tell a hot pixel from a cosmic ray by its charge. But
    charge from outside diffuses on its way through the silicon and most
    particles cross several pixels, while dark current stays in its pixel. So a
    high pixel is a hit when one of its eight neighbours is high too, or the
    nearest four together hold more than 5 % of its charge and more than 3.5
    sigma of their noise. Exempt are columns, 20 or more in a row; and of
    shorter rows along a column with saturated pixels in them those count as
    bad, and the others as neither: they bled.

    A hot pixel beside another new one, or under a hit, is missed, and the rare
    hit that stays in one pixel is counted: 1 or 2 in 100 simulated ones.

    Parameters
    ----------
    image, mask : `numpy.ndarray`, (ny, nx)
        Of the whole CCD; defects are BAD.
    amp : `Amplifier`
    flat : `numpy.ndarray`, (ny, nx), float32, or `None`
        By which the image is divided, whose saturated pixels are overexposed; None for a dark.
    centre, sigma, limit : `float`
        Level and noise of the pixels, and how far off is bad.
    """
    used = flat if flat is not None else np.empty((0, 0), np.float32)
    counts = _count(
        image, mask, (amp.x0, amp.y0, amp.nx, amp.ny), used, np.float32(centre), np.float32(sigma), np.float32(limit)
    )
    return Outliers(*(int(n) for n in counts))


def gone_from_dark(
    image: F4, mask: I4, dark: F4, where: I8, amp: Amplifier, centre: float, limit: float, exposure_time_s: float
) -> int:
    """Of the defects ``where`` (flat indices), those that the master dark shows as hot and the image does not.

    Only those count whose charge would be twice the limit.
    """
    sample = sample_of(dark, amp)
    known = dark.reshape(-1)[where] - np.float32(np.median(sample[np.isfinite(sample)]))
    due = (known >= HOT_E_PER_S) & (known * exposure_time_s >= 2 * limit)
    seen = mask.reshape(-1)[where] & EXCLUDED == _BAD
    return int(np.count_nonzero(due & seen & (image.reshape(-1)[where] - centre < limit)))


def gone_from_flat(image: F4, mask: I4, flat: F4, where: I8, limit: float) -> int:
    """Of the defects ``where`` (flat indices), those that the master flat shows as low or high and the image does not.

    Each is compared with the good pixels about it, in either plane.
    """
    seen = mask.reshape(-1)[where] & EXCLUDED == _BAD
    now, then = (
        plane.reshape(-1)[where] / nearby(plane, mask, EXCLUDED, where, np.float32(0)) for plane in (image, flat)
    )
    deviant = ~(np.abs(then - 1) <= RESPONSE)  # NaN is no response either
    return int(np.count_nonzero(seen & deviant & (np.abs(now - 1) < limit)))


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "reassoc", "nsz", "arcp"})
def _count(
    image: F4,
    mask: I4,
    box: tuple[int, int, int, int],
    flat: F4,
    centre: np.float32,
    sigma: np.float32,
    limit: np.float32,
) -> I8:
    """Known, low, high and hit pixels outside the limits."""
    x0, y0, nx, ny = box
    off = np.empty(nx, np.float32)
    # Of the run of high pixels that each column is in: its last row, then as _settle has it.
    last, runs = np.full(nx, -2, np.int64), np.zeros((nx, 5), np.int64)
    counts = np.zeros(4, np.int64)
    skipped = _NO_DATA | _SAT if flat.size else _NO_DATA
    for j in range(ny):
        y, out = y0 + j, np.float32(0)
        # Slices, since indices that might be negative keep the compiler from vectorizing.
        line = image[y, x0 : x0 + nx]
        if flat.size:
            other = flat[y, x0 : x0 + nx]
            for i in range(nx):
                off[i] = line[i] / other[i] - centre
        else:
            for i in range(nx):
                off[i] = line[i] - centre
        for i in range(nx):
            out += np.float32(1) if abs(off[i]) > limit else np.float32(0)
        for i in range(nx if out > 0 else 0):
            bits = mask[y, x0 + i]
            if not limit < abs(off[i]) < np.float32(1e30) or bits & skipped:
                continue
            new = 0 if bits & _BAD else 1
            if off[i] < 0:
                counts[1] += new
                continue
            if last[i] != j - 1:
                _settle(runs[i], counts)
            last[i] = j
            saturated = 1 if bits & _SAT else 0
            runs[i, 0] += 1
            runs[i, 1] += new
            runs[i, 2] += saturated
            runs[i, 3] += saturated * new
            runs[i, 4] += (
                0 if new == 0 or _shares(image, mask, box, flat, centre, sigma, limit, y, x0 + i, off[i]) else 1
            )
    for i in range(nx):
        _settle(runs[i], counts)
    return counts


@njit(cache=True, nogil=True)
def _settle(run: I8, counts: I8) -> None:
    """Count a run of high pixels along a column, and clear it.

    It has: all pixels, new ones, saturated ones, new saturated ones, and new
    ones that share no charge. Counts are of known, low, high and hit pixels.
    """
    counts[0] += run[0] - run[1]
    if run[0] >= _COLUMN:
        counts[2] += run[1]
    elif run[2]:
        counts[2] += run[3]
    else:
        counts[2] += run[4]
        counts[3] += run[1] - run[4]
    run[:] = 0


@njit(cache=True, nogil=True, error_model="numpy")
def _shares(
    image: F4,
    mask: I4,
    box: tuple[int, int, int, int],
    flat: F4,
    centre: np.float32,
    sigma: np.float32,
    limit: np.float32,
    y: int,
    x: int,
    peak: np.float32,
) -> bool:
    """Whether a high pixel's four neighbours hold charge, or one of the eight is high too."""
    x0, y0, nx, ny = box
    total, n = np.float32(0), 0
    for yy in range(max(y0, y - 1), min(y0 + ny, y + 2)):
        for xx in range(max(x0, x - 1), min(x0 + nx, x + 2)):
            distance = abs(yy - y) + abs(xx - x)
            if distance == 0 or mask[yy, xx] & (_BAD | _NO_DATA):
                continue
            v = (image[yy, xx] / flat[yy, xx] if flat.size else image[yy, xx]) - centre
            if limit < v < np.float32(1e30):
                return True
            if distance == 1:
                total += v
                n += 1
    return bool(total > max(np.float32(_SHARED) * peak, np.float32(_SHARED_SIGMA) * sigma * np.sqrt(np.float32(n))))
