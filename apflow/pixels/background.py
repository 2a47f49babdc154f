"""The sky under the sources."""

from __future__ import annotations

import dataclasses

import numpy as np
import sep

from apflow.model.exposure import Exposure, Mask

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
    return dataclasses.replace(exposure, image=image), float(background.globalback), float(background.globalrms)


def _cell(side: int) -> int:
    """Side of cells of nearly equal size that cover an image's side."""
    return -(-side // max(1, round(side / _MESH_PX)))
