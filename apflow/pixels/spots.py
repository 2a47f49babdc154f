"""Spots of a collimated beam projector."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy import ndimage

from apflow.model.exposure import Mask

F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
I4 = NDArray[np.int32]

#: Side of the squares that are lit or not, px; a lit one has at least half of its pixels above the limit.
_SIDE = 8
#: A pixel counts when it is so many sigma above the background.
_SIGMA = 5.0

_SAT, _NO_DATA = int(Mask.SAT), int(Mask.NO_DATA)


@dataclass(frozen=True)
class Spots:
    """The spots of one detector; peak and flux above the background, electrons, NaN where there is none."""

    n: int
    peak: float
    saturated_fraction: float
    flux: float


def find_spots(image: F4, mask: I4, background: float, sigma: float) -> Spots:
    """Spots of light on a dark background.

    A square of 8 x 8 px is lit when half of its pixels are 5 sigma above the
    background, which no track of a cosmic ray reaches; lit squares that touch
    are one spot. So spots of some 12 px or more are found. A spot's flux is
    the sum over its squares and those around them.

    Parameters
    ----------
    image, mask : `numpy.ndarray`, (ny, nx)
        In electrons, bad pixels interpolated.
    background, sigma : `float`
        Level and noise of unlit pixels, electrons.
    """
    squares = np.zeros((4, *(-(-n // _SIDE) for n in image.shape)))
    _add_up(image, mask, np.float32(background), np.float32(_SIGMA * sigma), squares)
    lit_pixels, flux, peak, saturated = squares
    lit = lit_pixels >= _SIDE * _SIDE / 2
    labels, n = ndimage.label(lit, np.ones((3, 3)))
    if n == 0:
        return Spots(0, math.nan, math.nan, math.nan)
    around = ndimage.maximum_filter(labels, 3)
    fluxes = np.bincount(around.ravel(), flux.ravel())[1:]
    return Spots(
        n, float(peak[around > 0].max()), float(saturated[lit].sum() / (lit.sum() * _SIDE * _SIDE)), float(fluxes.max())
    )


@njit(cache=True, nogil=True)
def _add_up(image: F4, mask: I4, background: np.float32, limit: np.float32, squares: F8) -> None:
    """Per square: pixels above the limit, flux, highest pixel, saturated pixels."""
    for y in range(image.shape[0]):
        for x in range(image.shape[1]):
            if mask[y, x] & _NO_DATA:
                continue
            j, i = y // _SIDE, x // _SIDE
            v = image[y, x] - background
            squares[0, j, i] += 1 if v > limit else 0
            squares[1, j, i] += v
            squares[2, j, i] = max(squares[2, j, i], v)
            squares[3, j, i] += 1 if mask[y, x] & _SAT else 0
