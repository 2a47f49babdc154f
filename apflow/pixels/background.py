"""The sky under the sources."""

from __future__ import annotations

import dataclasses

import numpy as np
import sep
from numpy.typing import NDArray

from apflow.model.exposure import Exposure, Mask

F4 = NDArray[np.float32]
I4 = NDArray[np.int32]

#: Side of a mesh cell, px: large against a star and its wings, small against gradients of the sky.
_MESH_PX = 128
#: Pixels that tell nothing of the sky.
_UNUSABLE = int(Mask.BAD | Mask.SAT | Mask.NO_DATA | Mask.CR)


def subtract_background(exposure: Exposure) -> tuple[Exposure, float, float]:
    """Subtract a smooth sky.

    The mode of clipped pixels in cells of about 128 px, median-filtered over
    3 x 3 cells and joined by a bicubic spline (Bertin & Arnouts 1996, by sep).
    The variance still holds the noise of the sky.

    Returns
    -------
    exposure : `Exposure`
        With the sky subtracted.
    sky : `float`
        Level of the sky in the exposure's unit, per pixel.
    noise : `float`
        Its standard deviation per pixel.
    """
    ny, nx = exposure.shape
    background = sep.Background(
        exposure.image, mask=(exposure.mask & _UNUSABLE) != 0, bw=_cell(nx), bh=_cell(ny), fw=3, fh=3
    )
    image = exposure.image - background.back(dtype=np.float32)
    return dataclasses.replace(exposure, image=image), float(background.globalback), _noise(image, exposure.mask)


def _noise(image: F4, mask: I4) -> float:
    """Noise per pixel from the differences of neighbours, in which faint sources hardly show."""
    step = max(1, int(np.sqrt(image.size / 65536)))
    left, right = np.s_[::step, :-1:step], np.s_[::step, 1::step]
    good = ((mask[left] | mask[right]) & _UNUSABLE) == 0
    difference = (image[right] - image[left])[good]
    return float(1.4826 / np.sqrt(2) * np.median(np.abs(difference))) if difference.size else float("nan")


def _cell(side: int) -> int:
    """Side of cells of nearly equal size that cover an image's side."""
    return -(-side // max(1, round(side / _MESH_PX)))
