"""Cutouts of exposures about a position."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from apflow.errors import DataError
from apflow.model.exposure import Exposure, Mask
from apflow.model.wcs import Wcs


class Cutout(NamedTuple):
    """A square piece of an exposure.

    Attributes
    ----------
    image, variance : `numpy.ndarray`, (size, size), float32
        NaN beyond the detector's edge.
    mask : `numpy.ndarray`, (size, size), int32
        NO_DATA beyond the detector's edge.
    psf : `numpy.ndarray`, (k, k), float32, or `None`
        PSF at the position, sum 1.
    wcs : `~apflow.model.wcs.Wcs` or `None`
        WCS of the cutout's own pixels.
    """

    image: NDArray[np.float32]
    variance: NDArray[np.float32]
    mask: NDArray[np.int32]
    psf: NDArray[np.float32] | None
    wcs: Wcs | None


def cutout_size(bbox_size: float, default_px: int = 30, max_px: int = 102) -> int:
    """Side of a cutout: the default, or the footprint where that is larger, up to a maximum."""
    return min(max(default_px, int(bbox_size)), max_px) if math.isfinite(bbox_size) else default_px


def cut(exposure: Exposure, x: float, y: float, size: int = 30) -> Cutout:
    """Cut a square out of an exposure.

    Parameters
    ----------
    exposure : `~apflow.model.exposure.Exposure`
    x, y : `float`
        Position, pixels, 0-based; it falls into pixel ``size // 2`` of the cutout.
    size : `int`
        Side, pixels.

    Raises
    ------
    DataError
        The position is not finite.
    """
    if not (math.isfinite(x) and math.isfinite(y)):
        raise DataError(f"no cutout can be made about ({x}, {y}); accepted: a finite position")
    x0, y0 = math.floor(x + 0.5) - size // 2, math.floor(y + 0.5) - size // 2
    ny, nx = exposure.shape
    psf = None
    if exposure.psf is not None:
        psf = exposure.psf.at(min(max(x, 0.0), nx - 1.0), min(max(y, 0.0), ny - 1.0)).astype(np.float32)
    return Cutout(
        _window(exposure.image, x0, y0, size, np.nan),
        _window(exposure.variance, x0, y0, size, np.nan),
        _window(exposure.mask, x0, y0, size, int(Mask.NO_DATA)),
        psf,
        None if exposure.wcs is None else exposure.wcs.shifted(x0, y0),
    )


def _window(plane: NDArray[Any], x0: int, y0: int, size: int, fill: float) -> NDArray[Any]:
    """A copy of plane[y0:y0 + size, x0:x0 + size], filled beyond its edge."""
    ny, nx = plane.shape
    if x0 >= 0 and y0 >= 0 and x0 + size <= nx and y0 + size <= ny:
        return plane[y0 : y0 + size, x0 : x0 + size].copy()
    out = np.full((size, size), fill, plane.dtype)
    left, right = max(x0, 0), min(x0 + size, nx)
    bottom, top = max(y0, 0), min(y0 + size, ny)
    if left < right and bottom < top:
        out[bottom - y0 : top - y0, left - x0 : right - x0] = plane[bottom:top, left:right]
    return out
