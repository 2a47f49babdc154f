"""Saturation: full pixels, and where their charge went."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from apflow.model.exposure import Mask
from apflow.pixels.interpolate import grow, masked_pixels

F4 = NDArray[np.float32]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]

#: A trail goes on along its column while it is above this part of saturation: wells differ by some tenths.
_TRAIL = 0.5
#: Pixels by which SAT is grown: the last of a trail holds whatever was left, and charge lags behind in transfer.
_GROW = 2

_SAT = int(Mask.SAT)


def spread_saturation(image: F4, mask: I4, level: float) -> None:
    """Extend SAT to where saturated pixels spilled their charge, in place.

    A full pixel spills up and down its column (parallel transfer runs along y
    in an assembled CCD), over rows whose wells may be shallower than the level
    by which saturation is known. From each saturated pixel SAT follows the
    column while the image is above half of that level, and is then grown by
    2 px on all sides. Bleeding along the register, and charge that comes out
    in later exposures, are not looked for.

    Parameters
    ----------
    image : `numpy.ndarray`, (ny, nx), float32
    mask : `numpy.ndarray`, (ny, nx), int32
    level : `float`
        Saturation in units of the image.
    """
    seeds = masked_pixels(mask, _SAT)
    if seeds.size:
        trails = _follow(image, mask, seeds, np.float32(_TRAIL * level))
        for where in (seeds, trails):
            grow(mask, _SAT, where, _GROW)


@njit(cache=True, nogil=True)
def _follow(image: F4, mask: I4, seeds: I8, least: np.float32) -> I8:
    """Set SAT along the columns of saturated pixels, in place; gives the flat indices of those that were not set."""
    ny, nx = image.shape
    found = [np.int64(0) for _ in range(0)]
    for seed in seeds:
        x = seed % nx
        for step in (-1, 1):
            y = seed // nx + step
            while 0 <= y < ny and not mask[y, x] & _SAT and image[y, x] > least:
                mask[y, x] |= _SAT
                found.append(y * nx + x)
                y += step
    return np.array(found, np.int64)
